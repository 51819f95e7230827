// Moving the data of a complete collective: once, by ranges that any thread may do.
#include <algorithm>

#include "collectives/algorithms/hierarchical.h"
#include "collectives/internal/copy.h"
#include "collectives/internal/reduce.h"
#include "collectives/internal/state.h"

namespace shardproof::internal {

namespace {

// What is read from one input stays in the cache while it is written to all outputs.
constexpr std::size_t kCopyBlock = 16384;
// From here on results are written past the caches: a write then costs no read of what it overwrites.
constexpr std::size_t kStreamBytes = 16 * 1024 * 1024;

std::size_t index(int value) {
  return static_cast<std::size_t>(value);
}

// offsets[i] = elements before part i.
void set_offsets(Movement& movement, const Call& call, std::size_t ranks, std::size_t each) {
  movement.offsets.resize(ranks + 1);
  movement.offsets[0] = 0;
  for (std::size_t i = 0; i < ranks; ++i) {
    movement.offsets[i + 1] = movement.offsets[i] + (call.counts_given ? call.counts[i] : each);
  }
}

void set_inputs(GroupState& state) {
  const std::size_t ranks = state.members.size();
  state.movement.inputs.resize(ranks);
  for (std::size_t i = 0; i < ranks; ++i) state.movement.inputs[i] = state.call(i).in;
}

void set_outputs(GroupState& state) {
  const std::size_t ranks = state.members.size();
  state.movement.outputs.resize(ranks);
  for (std::size_t i = 0; i < ranks; ++i) state.movement.outputs[i] = state.call(i).out;
}

void set_nodes(GroupState& state) {
  const int gpus_per_node = state.call(0).options.gpus_per_node;
  if (state.call(0).options.algorithm != Algorithm::hierarchical) return;
  if (state.movement.gpus_per_node == gpus_per_node) return;
  state.movement.gpus_per_node = gpus_per_node;
  std::vector<int> ranks;
  for (const GlobalRank member : state.group.members) ranks.push_back(to_int(member));
  state.movement.nodes = split_into_nodes(ranks, gpus_per_node);
}

Reducer reducer(const GroupState& state) {
  const Call& call = state.call(0);
  return {call.type, &call.options, state.size(), state.movement.inputs.data(), state.movement.stream};
}

struct Range {
  std::size_t begin;
  std::size_t end;
};

// Pieces begin at multiples of a cache line, so that no two threads write the same one.
Range piece_range(const Movement& movement, std::size_t piece) {
  constexpr std::size_t kAlign = 64;
  const auto begin = [&](std::size_t p) {
    if (p == movement.pieces) return movement.elements;
    return chunk_begin(movement.elements, movement.pieces, p) / kAlign * kAlign;
  };
  return {begin(piece), begin(piece + 1)};
}

Range intersect(Range a, Range b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

void move_all_reduce(GroupState& state, Range range) {
  const Movement& movement = state.movement;
  const Algorithm algorithm = state.call(0).options.algorithm;
  const Reducer reduce = reducer(state);
  const std::size_t chunks = chunk_count(algorithm, state.size(), movement.nodes);
  Order order;
  for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
    const Range part = intersect(
        range, {chunk_begin(movement.elements, chunks, chunk), chunk_begin(movement.elements, chunks, chunk + 1)});
    if (part.begin >= part.end) continue;
    order.clear();
    append_order(algorithm, state.size(), movement.nodes, chunk, order);
    reduce_range(reduce, order, part.begin, part.end, movement.outputs, 0);
  }
}

// The root receives the sum in rank order, or down a chain that ends at the root.
void move_reduce(GroupState& state, Range range) {
  const Call& call = state.call(0);
  Order order;
  append_order(call.options.algorithm, state.size(), {}, index(call.root), order);
  reduce_range(reducer(state), order, range.begin, range.end, state.movement.outputs, 0);
}

void move_reduce_scatter(GroupState& state, Range range) {
  const Movement& movement = state.movement;
  const Algorithm algorithm = state.call(0).options.algorithm;
  const Reducer reduce = reducer(state);
  Order order;
  for (std::size_t owner = 0; owner < state.members.size(); ++owner) {
    const Range part = intersect(range, {movement.offsets[owner], movement.offsets[owner + 1]});
    if (part.begin >= part.end) continue;
    order.clear();
    append_order(algorithm, state.size(), {}, owner, order);
    reduce_range(reduce, order, part.begin, part.end, {&movement.outputs[owner], 1}, movement.offsets[owner]);
  }
}

void move_all_gather(GroupState& state, Range range) {
  const Movement& movement = state.movement;
  const std::size_t width = size_of(state.call(0).type);
  const std::size_t block = kCopyBlock / width;
  for (std::size_t from = 0; from < state.members.size(); ++from) {
    const Range part = intersect(range, {movement.offsets[from], movement.offsets[from + 1]});
    const std::byte* in = static_cast<const std::byte*>(movement.inputs[from]);
    for (std::size_t at = part.begin; at < part.end; at += block) {
      const std::size_t bytes = std::min(block, part.end - at) * width;
      for (void* const out : movement.outputs) {
        copy_bytes(static_cast<std::byte*>(out) + at * width, in + (at - movement.offsets[from]) * width, bytes,
                   movement.stream);
      }
    }
  }
}

void move_broadcast(GroupState& state, Range range) {
  const Movement& movement = state.movement;
  const std::size_t width = size_of(state.call(0).type);
  const std::size_t block = kCopyBlock / width;
  const std::byte* in = static_cast<const std::byte*>(movement.inputs[index(state.call(0).root)]);
  for (std::size_t at = range.begin; at < range.end; at += block) {
    const std::size_t bytes = std::min(block, range.end - at) * width;
    for (void* const out : state.movement.outputs)
      copy_bytes(static_cast<std::byte*>(out) + at * width, in + at * width, bytes, movement.stream);
  }
}

// Pieces are ranges of receiving ranks.
void move_all_to_all(GroupState& state, Range receivers) {
  const std::size_t ranks = state.members.size();
  const std::size_t width = size_of(state.call(0).type);
  // sent[i]: elements of rank i's input that lie before the part for the current receiver.
  std::vector<std::size_t> sent(ranks, 0);
  const bool counts_given = state.call(0).counts_given;
  const auto count = [&](std::size_t from, std::size_t to) {
    return counts_given ? state.call(from).counts[to] : state.call(from).in_count / ranks;
  };
  for (std::size_t from = 0; from < ranks; ++from) {
    for (std::size_t to = 0; to < receivers.begin; ++to) sent[from] += count(from, to);
  }
  for (std::size_t to = receivers.begin; to < receivers.end; ++to) {
    std::byte* out = static_cast<std::byte*>(state.call(to).out);
    for (std::size_t from = 0; from < ranks; ++from) {
      const std::size_t elements = count(from, to);
      copy_bytes(out, static_cast<const std::byte*>(state.call(from).in) + sent[from] * width, elements * width,
                 state.movement.stream);
      out += elements * width;
      sent[from] += elements;
    }
  }
}

}  // namespace

namespace {

// Returns the bytes that will be read and written.
std::size_t prepare_operation(GroupState& state) {
  Movement& movement = state.movement;
  const Call& first = state.call(0);
  const std::size_t ranks = state.members.size();
  const std::size_t width = size_of(first.type);
  movement.elements = 0;
  switch (first.operation) {
    case Operation::all_reduce:
      set_inputs(state);
      set_outputs(state);
      set_nodes(state);
      movement.elements = first.in_count;
      return 2 * ranks * first.in_count * width;
    case Operation::reduce:
      set_inputs(state);
      movement.outputs.assign(1, state.call(index(first.root)).out);
      movement.elements = first.in_count;
      return (ranks + 1) * first.in_count * width;
    case Operation::reduce_scatter:
      set_inputs(state);
      set_outputs(state);
      set_offsets(movement, first, ranks, first.out_count);
      movement.elements = first.in_count;
      return (ranks + 1) * first.in_count * width;
    case Operation::all_gather:
      set_inputs(state);
      set_outputs(state);
      set_offsets(movement, first, ranks, first.in_count);
      movement.elements = first.out_count;
      return (ranks + 1) * first.out_count * width;
    case Operation::broadcast:
      set_inputs(state);
      set_outputs(state);
      movement.elements = first.in_count;
      return (ranks + 1) * first.in_count * width;
    case Operation::all_to_all: {
      movement.elements = ranks;
      std::size_t elements = 0;
      for (std::size_t i = 0; i < ranks; ++i) elements += state.call(i).in_count;
      if (first.options.algorithm == Algorithm::hierarchical && state.world->options.keep_records) {
        set_nodes(state);
        movement.sent = hierarchical_all_to_all_elements(movement.nodes, [&](std::size_t from, std::size_t to) {
          const Call& call = state.call(from);
          return call.counts_given ? call.counts[to] : call.in_count / ranks;
        });
      }
      return 2 * elements * width;
    }
    default:
      return 0;
  }
}

void move_range(GroupState& state, std::size_t piece) {
  const Movement& movement = state.movement;
  const Range range = piece_range(movement, piece);
  switch (state.call(0).operation) {
    case Operation::all_reduce:
      return move_all_reduce(state, range);
    case Operation::reduce:
      return move_reduce(state, range);
    case Operation::reduce_scatter:
      return move_reduce_scatter(state, range);
    case Operation::all_gather:
      return move_all_gather(state, range);
    case Operation::broadcast:
      return move_broadcast(state, range);
    case Operation::all_to_all:
      return move_all_to_all(state, {chunk_begin(movement.elements, movement.pieces, piece),
                                     chunk_begin(movement.elements, movement.pieces, piece + 1)});
    default:
      return;
  }
}

}  // namespace

std::size_t prepare_movement(GroupState& state) {
  const std::size_t bytes = prepare_operation(state);
  state.movement.stream = bytes >= kStreamBytes;
  return bytes;
}

void move_piece(GroupState& state, std::size_t piece) {
  move_range(state, piece);
  if (state.movement.stream) finish_streaming();
}

}  // namespace shardproof::internal
