#include "collectives/internal/movement.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "collectives/algorithms/hierarchical.h"
#include "collectives/internal/reduce.h"
#include "collectives/internal/state.h"

namespace shardproof::internal {

namespace {

// What is read from one input stays in the cache while it is written to all outputs.
constexpr std::size_t kCopyBlock = 16384;
// Parts smaller than this are first put together, so that each output is written in longer runs.
constexpr std::size_t kSmallPart = 2048;

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

// To write an order takes as long as to add a few hundred elements in it. A group mostly calls with the same algorithm.
void set_orders(GroupState& state) {
  constexpr std::size_t kMostSteps = 4096;
  Movement& movement = state.movement;
  KnownOrders& known = movement.known;
  const ReduceOptions& options = state.call(0).options;
  const std::size_t chunks = chunk_count(options.algorithm, state.size(), movement.nodes);
  const bool hierarchical = options.algorithm == Algorithm::hierarchical;
  if (!known.orders.empty() && known.algorithm == options.algorithm &&
      (!hierarchical || known.gpus_per_node == options.gpus_per_node)) {
    return;
  }
  known.algorithm = options.algorithm;
  known.gpus_per_node = options.gpus_per_node;
  known.orders.resize(chunks * state.members.size() <= kMostSteps ? chunks : 0);
  for (std::size_t chunk = 0; chunk < known.orders.size(); ++chunk) {
    known.orders[chunk].clear();
    append_order(options.algorithm, state.size(), movement.nodes, chunk, known.orders[chunk]);
  }
}

Reducer reducer(const GroupState& state, const Chunks& chunks, std::span<const std::size_t> receiver_bounds = {}) {
  const Movement& movement = state.movement;
  const Call& call = state.call(0);
  return {.type = call.type,
          .options = &call.options,
          .ranks = state.size(),
          .inputs = movement.inputs.data(),
          .chunks = chunks,
          .receivers = {movement.outputs, receiver_bounds},
          .mode = movement.mode};
}

void move_all_reduce(GroupState& state, Range range) {
  const Movement& movement = state.movement;
  const Algorithm algorithm = state.call(0).options.algorithm;
  const Reducer reduce = reducer(state, {.algorithm = algorithm,
                                         .nodes = movement.nodes,
                                         .count = chunk_count(algorithm, state.size(), movement.nodes),
                                         .elements = movement.elements,
                                         .orders = movement.known.orders});
  reduce_range(reduce, range.begin, range.end);
}

// The root receives the sum in rank order, or down a chain that ends at the root: the ring's chunk of that number.
void move_reduce(GroupState& state, Range range) {
  const Call& call = state.call(0);
  const Reducer reduce = reducer(
      state, {.algorithm = call.options.algorithm, .elements = state.movement.elements, .first = index(call.root)});
  reduce_range(reduce, range.begin, range.end);
}

// Rank order is the same for all parts; on the ring each has its own.
void move_reduce_scatter(GroupState& state, Range range) {
  const Movement& movement = state.movement;
  Chunks chunks{
      .algorithm = state.call(0).options.algorithm, .elements = movement.elements, .orders = movement.known.orders};
  if (chunks.algorithm == Algorithm::ring) {
    chunks.count = state.members.size();
    chunks.bounds = movement.offsets;
  }
  reduce_range(reducer(state, chunks, movement.offsets), range.begin, range.end);
}

// Writes `bytes` bytes to every output, `at` bytes from its begin.
void write_to_all(const Movement& movement, std::size_t at, const void* from, std::size_t bytes) {
  for (void* const out : movement.outputs) {
    copy_bytes(static_cast<std::byte*>(out) + at, from, bytes, movement.mode);
  }
}

void move_all_gather(GroupState& state, Range range) {
  const Movement& movement = state.movement;
  const std::size_t width = size_of(state.call(0).type);
  const auto& offsets = movement.offsets;
  const auto part = [&](std::size_t from, std::size_t at) {
    return static_cast<const std::byte*>(movement.inputs[from]) + (at - offsets[from]) * width;
  };
  alignas(64) std::array<std::byte, 2 * kSmallPart> together;
  std::size_t held = 0;
  auto from = static_cast<std::size_t>(std::upper_bound(offsets.begin(), offsets.end(), range.begin) - offsets.begin());
  --from;
  for (std::size_t at = range.begin; at < range.end; ++from) {
    const std::size_t end = std::min(offsets[from + 1], range.end);
    if (end <= at) continue;
    const std::size_t bytes = (end - at) * width;
    if (held != 0 && (bytes >= kSmallPart || held + bytes > together.size())) {
      write_to_all(movement, at * width - held, together.data(), held);
      held = 0;
    }
    if (bytes < kSmallPart) {
      std::memcpy(together.data() + held, part(from, at), bytes);
      held += bytes;
      at = end;
      continue;
    }
    for (; at < end; at += std::min(kCopyBlock / width, end - at)) {
      write_to_all(movement, at * width, part(from, at), std::min(kCopyBlock, (end - at) * width));
    }
  }
  if (held != 0) write_to_all(movement, range.end * width - held, together.data(), held);
}

void move_broadcast(GroupState& state, Range range) {
  const Movement& movement = state.movement;
  const std::size_t width = size_of(state.call(0).type);
  const std::byte* in = static_cast<const std::byte*>(movement.inputs[index(state.call(0).root)]);
  for (std::size_t at = range.begin * width; at < range.end * width; at += kCopyBlock) {
    write_to_all(movement, at, in + at, std::min(kCopyBlock, range.end * width - at));
  }
}

// Pieces are ranges of receiving ranks.
void move_all_to_all(GroupState& state, Range receivers) {
  const Movement& movement = state.movement;
  const std::size_t ranks = state.members.size();
  const std::size_t width = size_of(state.call(0).type);
  const std::size_t each = state.call(0).in_count / ranks * width;
  for (std::size_t to = receivers.begin; to < receivers.end; ++to) {
    std::byte* out = static_cast<std::byte*>(movement.outputs[to]);
    for (std::size_t from = 0; from < ranks; ++from) {
      copy_bytes(out + from * each, static_cast<const std::byte*>(movement.inputs[from]) + to * each, each,
                 movement.mode);
    }
  }
}

void move_all_to_all_v(GroupState& state, Range receivers) {
  const Movement& movement = state.movement;
  const std::size_t ranks = state.members.size();
  const std::size_t width = size_of(state.call(0).type);
  // sent[i]: elements of rank i's input that lie before the part for the current receiver.
  std::vector<std::size_t> sent(ranks, 0);
  for (std::size_t from = 0; from < ranks; ++from) {
    const auto& counts = state.call(from).counts;
    sent[from] =
        std::accumulate(counts.begin(), counts.begin() + static_cast<std::ptrdiff_t>(receivers.begin), std::size_t{0});
  }
  for (std::size_t to = receivers.begin; to < receivers.end; ++to) {
    std::byte* out = static_cast<std::byte*>(movement.outputs[to]);
    for (std::size_t from = 0; from < ranks; ++from) {
      const std::size_t elements = state.call(from).counts[to];
      copy_bytes(out, static_cast<const std::byte*>(movement.inputs[from]) + sent[from] * width, elements * width,
                 movement.mode);
      out += elements * width;
      sent[from] += elements;
    }
  }
}

struct Bytes {
  std::size_t read = 0;
  std::size_t written = 0;
};

// Of all ranks together.
Bytes prepare_operation(GroupState& state) {
  Movement& movement = state.movement;
  const Call& first = state.call(0);
  const std::size_t ranks = state.members.size();
  const std::size_t width = size_of(first.type);
  movement.elements = 0;
  if (first.operation == Operation::barrier) return {};
  set_inputs(state);
  if (first.operation != Operation::reduce) set_outputs(state);
  switch (first.operation) {
    case Operation::all_reduce:
      set_nodes(state);
      set_orders(state);
      movement.elements = first.in_count;
      return {ranks * first.in_count * width, ranks * first.in_count * width};
    case Operation::reduce:
      set_orders(state);
      movement.outputs.assign(1, state.call(index(first.root)).out);
      movement.elements = first.in_count;
      return {ranks * first.in_count * width, first.in_count * width};
    case Operation::reduce_scatter:
      set_orders(state);
      set_offsets(movement, first, ranks, first.out_count);
      movement.elements = first.in_count;
      return {ranks * first.in_count * width, first.in_count * width};
    case Operation::all_gather:
      set_offsets(movement, first, ranks, first.in_count);
      movement.elements = first.out_count;
      return {first.out_count * width, ranks * first.out_count * width};
    case Operation::broadcast:
      movement.elements = first.in_count;
      return {first.in_count * width, ranks * first.in_count * width};
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
      return {elements * width, elements * width};
    }
    default:
      return {};
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
    case Operation::all_to_all: {
      const Range receivers{chunk_begin(movement.elements, movement.pieces, piece),
                            chunk_begin(movement.elements, movement.pieces, piece + 1)};
      return state.call(0).counts_given ? move_all_to_all_v(state, receivers) : move_all_to_all(state, receivers);
    }
    default:
      return;
  }
}

}  // namespace

std::size_t prepare_movement(GroupState& state) {
  const Bytes bytes = prepare_operation(state);
  state.movement.mode = copy_mode(bytes.read, bytes.written);
  return bytes.read + bytes.written;
}

void move_piece(GroupState& state, std::size_t piece) {
  move_range(state, piece);
  if (state.movement.mode == CopyMode::streamed) finish_streaming();
}

}  // namespace shardproof::internal
