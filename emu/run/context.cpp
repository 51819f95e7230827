#include "emu/run/context.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "emu/run/dry_run.h"
#include "emu/run/fault.h"
#include "emu/run/reduction.h"
#include "emu/run/transformer.h"

namespace shardproof {
namespace {

constexpr int kCountBytes = 8, kChoiceBytes = 4;

/// Elements of every rank's rows.
std::vector<std::size_t> elements_of(const std::vector<std::int64_t>& rows_of, std::int64_t width) {
  std::vector<std::size_t> counts;
  for (const std::int64_t rows : rows_of) counts.push_back(static_cast<std::size_t>(rows * width));
  return counts;
}

std::int64_t rows_in(const std::vector<Chunk>& pieces) {
  std::int64_t rows = 0;
  for (const Chunk& piece : pieces) rows += piece.count;
  return rows;
}

}  // namespace

template <class T>
Communicator Context<T>::communicator([[maybe_unused]] Axis axis, [[maybe_unused]] Op op,
                                      [[maybe_unused]] int layer) const {
  if constexpr (kDry) {
    return {};
  } else {
    return ground_.rank.on(axis).tagged(
        {.op = static_cast<std::int32_t>(op), .layer = layer, .microbatch = microbatch_});
  }
}

template <class T>
void Context<T>::record_call(Op op, int layer, const CallShape& shape) const {
  if (trace_ == nullptr) return;
  trace_->ops.push_back({.op = op,
                         .call = true,
                         .layer = layer,
                         .microbatch = microbatch_,
                         .rows = shape.rows,
                         .cols = shape.cols,
                         .phase = shape.phase,
                         .axis = shape.axis,
                         .operation = shape.operation,
                         .group_size = Mesh(layout_.parallel).degree(shape.axis),
                         .peer = shape.peer,
                         .width = shape.width > 0 ? shape.width : element_bytes(),
                         .elements = shape.elements,
                         .received = shape.received,
                         .kept = shape.kept});
}

/// `in` went, `out` came; the record has the shape of what came.
template <class T>
typename Context<T>::CallShape Context<T>::moved(Axis axis, Operation operation, const Tensor& in, const Tensor& out,
                                                 std::int64_t kept, int peer) {
  return {.axis = axis,
          .operation = operation,
          .elements = in.size(),
          .received = out.size(),
          .kept = kept,
          .rows = out.rows(),
          .cols = out.cols(),
          .peer = peer};
}

template <class T>
std::vector<std::size_t> Context<T>::own_elements(std::int64_t width) const {
  return elements_of(tokens_.own_counts, width);
}

template <class T>
Task<> Context<T>::all_reduce(Op op, int layer, Tensor& partial, SourceLocation where) {
  return sum_over(Axis::tp, op, layer, partial, where);
}

template <class T>
Task<> Context<T>::sum_over(Axis axis, Op op, int layer, Tensor& partial, [[maybe_unused]] SourceLocation where) {
  if (Mesh(layout_.parallel).degree(axis) > 1) {
    if constexpr (!kDry) {
      co_await communicator(axis, op, layer).all_reduce(partial.span(), ground_.program.reduction, where);
    }
    record_call(op, layer, moved(axis, Operation::all_reduce, partial, partial));
  }
  this->round(partial);
  co_return;
}

template <class T>
Task<> Context<T>::all_reduce_scalars(Op op, int layer, Tensor& partial, [[maybe_unused]] SourceLocation where) {
  if (layout_.parallel.tp == 1) co_return;
  if constexpr (!kDry) {
    const ReduceOptions options = scalar_reduction(ground_.program.reduction);
    co_await communicator(Axis::tp, op, layer).all_reduce(partial.span(), options, where);
  }
  CallShape shape = moved(Axis::tp, Operation::all_reduce, partial, partial);
  shape.width = ops::scalar_bytes(format_);
  record_call(op, layer, shape);
}

template <class T>
Task<typename Context<T>::Tensor> Context<T>::scatter_rows(Op op, int layer, Tensor partial,
                                                           [[maybe_unused]] SourceLocation where) {
  Tensor shard(this->own_rows().count, partial.cols());
  if constexpr (!kDry) {
    const std::vector<std::size_t> counts = own_elements(partial.cols());
    co_await communicator(Axis::tp, op, layer)
        .reduce_scatter_v(std::as_const(partial).span(), shard.span(), std::span<const std::size_t>(counts),
                          reduce_scatter_options(ground_.program.reduction), where);
  }
  record_call(op, layer, moved(Axis::tp, Operation::reduce_scatter, partial, shard, shard.size()));
  this->round(shard);
  co_return shard;
}

template <class T>
Task<typename Context<T>::Tensor> Context<T>::gather_rows_over_tp(Op op, int layer, Tensor own,
                                                                  [[maybe_unused]] SourceLocation where) {
  Tensor full(this->rows(), own.cols());
  if constexpr (!kDry) {
    const std::vector<std::size_t> counts = own_elements(own.cols());
    co_await communicator(Axis::tp, op, layer)
        .all_gather_v(std::as_const(own).span(), full.span(), std::span<const std::size_t>(counts), kMoveDirectly,
                      where);
  }
  record_call(op, layer, moved(Axis::tp, Operation::all_gather, own, full));
  co_return full;
}

template <class T>
Task<typename Context<T>::Tensor> Context<T>::gather_over_cp(Op op, int layer, const Tensor& own,
                                                             [[maybe_unused]] SourceLocation where) {
  Tensor full(rows_in(tokens_.chunks), own.cols());
  if constexpr (!kDry) {
    Counts rows_of;
    for (const std::vector<Chunk>& share : tokens_.shares) rows_of.push_back(rows_in(share));
    const std::vector<std::size_t> counts = elements_of(rows_of, own.cols());
    co_await communicator(Axis::cp, op, layer)
        .all_gather_v(own.span(), full.span(), std::span<const std::size_t>(counts), kMoveDirectly, where);
  }
  record_call(op, layer, moved(Axis::cp, Operation::all_gather, own, full));
  co_return full;
}

template <class T>
typename Context<T>::Counts Context<T>::rows_of_dealt() const {
  const int ranks = layout_.parallel.heads_dealt(), first = layout_.at.cp / ranks * ranks;
  Counts rows;
  for (int rank = first; rank < first + ranks; ++rank) {
    rows.push_back(rows_in(tokens_.shares[static_cast<std::size_t>(rank)]));
  }
  return rows;
}

template <class T>
Task<typename Context<T>::Tensor> Context<T>::to_heads_over_cp(Op op, int layer, const Tensor& split,
                                                               [[maybe_unused]] SourceLocation where) {
  const Counts rows_of = rows_of_dealt();
  Tensor all(sum_of(rows_of), split.cols());
  const std::int64_t own = split.size() / std::ssize(rows_of);
  if constexpr (!kDry) {
    const std::vector<std::size_t> sent(rows_of.size(), static_cast<std::size_t>(own));
    const std::vector<std::size_t> received = elements_of(rows_of, split.cols());
    co_await communicator(dealt_axis(), op, layer)
        .all_to_all_v(split.span(), std::span<const std::size_t>(sent), all.span(),
                      std::span<const std::size_t>(received), kMoveDirectly, where);
  }
  record_call(op, layer, moved(dealt_axis(), Operation::all_to_all, split, all, own));
  co_return all;
}

template <class T>
Task<typename Context<T>::Tensor> Context<T>::to_rows_over_cp(Op op, int layer, const Tensor& all,
                                                              [[maybe_unused]] SourceLocation where) {
  const Counts rows_of = rows_of_dealt();
  Tensor split(this->rows() * std::ssize(rows_of), all.cols());
  const std::int64_t own = split.size() / std::ssize(rows_of);
  if constexpr (!kDry) {
    const std::vector<std::size_t> sent = elements_of(rows_of, all.cols());
    const std::vector<std::size_t> received(rows_of.size(), static_cast<std::size_t>(own));
    co_await communicator(dealt_axis(), op, layer)
        .all_to_all_v(all.span(), std::span<const std::size_t>(sent), split.span(),
                      std::span<const std::size_t>(received), kMoveDirectly, where);
  }
  record_call(op, layer, moved(dealt_axis(), Operation::all_to_all, all, split, own));
  co_return split;
}

template <class T>
Task<typename Context<T>::Tensor> Context<T>::gather_over_dcp(Op op, int layer, const Tensor& own,
                                                              [[maybe_unused]] SourceLocation where) {
  Tensor all(own.rows() * layout_.parallel.dcp, own.cols());
  if constexpr (!kDry) {
    co_await communicator(Axis::dcp, op, layer).all_gather(own.span(), all.span(), kMoveDirectly, where);
  }
  record_call(op, layer, moved(Axis::dcp, Operation::all_gather, own, all));
  co_return all;
}

template <class T>
Task<typename Context<T>::Tensor> Context<T>::largest_over_dcp(Op op, int layer, Tensor own, SourceLocation where) {
  const Tensor all = co_await gather_over_dcp(op, layer, own, where);
  if constexpr (!kDry) {
    for (std::int64_t i = 0; i < all.size(); ++i) {
      T& largest = own.span()[static_cast<std::size_t>(i % own.size())];
      largest = std::max(largest, all.span()[static_cast<std::size_t>(i)]);
    }
  }
  co_return own;
}

template <class T>
Task<typename Context<T>::Tensor> Context<T>::exchange_over_dcp(Op op, int layer, const Tensor& parts,
                                                                [[maybe_unused]] SourceLocation where) {
  Tensor received(parts.rows(), parts.cols());
  if constexpr (!kDry) {
    co_await communicator(Axis::dcp, op, layer).all_to_all(parts.span(), received.span(), kMoveDirectly, where);
  }
  record_call(op, layer, moved(Axis::dcp, Operation::all_to_all, parts, received, parts.size() / layout_.parallel.dcp));
  co_return received;
}

template <class T>
Task<typename Context<T>::Tensor> Context<T>::exchange_sums_over_dcp(Op op, int layer, const Tensor& sums,
                                                                     [[maybe_unused]] SourceLocation where) {
  Tensor received(sums.rows(), sums.cols());
  if constexpr (!kDry) {
    co_await communicator(Axis::dcp, op, layer).all_to_all(sums.span(), received.span(), kMoveDirectly, where);
  }
  CallShape shape = moved(Axis::dcp, Operation::all_to_all, sums, received, sums.size() / layout_.parallel.dcp);
  shape.width = ops::scalar_bytes(format_);
  record_call(op, layer, shape);
  co_return received;
}

template <class T>
typename Context<T>::RingStep Context<T>::begin_ring_step(int layer, [[maybe_unused]] const Tensor& held,
                                                          [[maybe_unused]] Tensor& next,
                                                          [[maybe_unused]] SourceLocation where) {
  const int ranks = layout_.parallel.ring(), me = layout_.at.cp / layout_.parallel.heads_dealt();
  const int behind = (me + 1) % ranks, before = (me + ranks - 1) % ranks;
  RingStep step;
  if constexpr (!kDry) {
    step.send = communicator(ring_axis(), Op::attention_ring_send, layer).isend(held.span(), GroupRank{behind}, where);
    step.receive =
        communicator(ring_axis(), Op::attention_ring_receive, layer).irecv(next.span(), GroupRank{before}, where);
  }
  record_call(Op::attention_ring_send, layer, moved(ring_axis(), Operation::send, held, held, 0, behind));
  record_call(Op::attention_ring_receive, layer, moved(ring_axis(), Operation::recv, next, next, 0, before));
  return step;
}

template <class T>
Task<> Context<T>::end_ring_step([[maybe_unused]] RingStep& step) {
  if constexpr (!kDry) {
    co_await step.send;
    co_await step.receive;
  }
  co_return;
}

template <class T>
Task<typename Context<T>::Counts> Context<T>::exchange_counts(Op op, int layer, const Permutation& permutation,
                                                              [[maybe_unused]] SourceLocation where) {
  Counts arriving;
  if constexpr (kDry) {
    arriving = ground_.run.arriving(layer, microbatch_, layout_.at);
  } else {
    arriving.resize(permutation.counts.size());
    co_await communicator(Axis::ep, op, layer)
        .all_to_all(std::span<const std::int64_t>(permutation.counts), std::span<std::int64_t>(arriving), kMoveDirectly,
                    where);
  }
  record_call(op, layer,
              {.axis = Axis::ep,
               .operation = Operation::all_to_all,
               .elements = std::ssize(permutation.counts),
               .received = std::ssize(arriving),
               .kept = std::ssize(permutation.counts) / layout_.parallel.ep,
               .width = kCountBytes});
  co_return arriving;
}

template <class T>
typename Context<T>::CallShape Context<T>::all_to_all_shape(const Tensor& in, const Tensor& out,
                                                            const std::vector<std::size_t>& sent) const {
  return moved(Axis::ep, Operation::all_to_all, in, out,
               static_cast<std::int64_t>(sent[static_cast<std::size_t>(layout_.at.ep)]));
}

template <class T>
CallHandle Context<T>::begin_all_to_all(Op op, int layer, const Tensor& in, const Counts& sent, Tensor& out,
                                        const Counts& received, [[maybe_unused]] SourceLocation where) {
  const std::int64_t experts = this->held(layer).most_experts;
  const std::vector<std::size_t> send_counts = element_counts(sent, experts, in.cols());
  CallHandle under_way;
  if constexpr (!kDry) {
    under_way = communicator(Axis::ep, op, layer)
                    .iall_to_all_v(in.span(), send_counts, out.span(), element_counts(received, experts, in.cols()),
                                   kMoveDirectly, where);
  }
  CallShape shape = all_to_all_shape(in, out, send_counts);
  shape.phase = CallPhase::issued;
  record_call(op, layer, shape);
  return under_way;
}

template <class T>
Task<> Context<T>::end_all_to_all(Op op, int layer, [[maybe_unused]] CallHandle& under_way) {
  if constexpr (!kDry) co_await under_way;
  record_call(op, layer, {.axis = Axis::ep, .operation = Operation::all_to_all, .phase = CallPhase::awaited});
  co_return;
}

template <class T>
bool Context<T>::awaits_in_time([[maybe_unused]] Op op, [[maybe_unused]] int layer) const {
  if constexpr (!kDry) {
    FaultInjector* const fault = ground_.program.fault;
    return fault == nullptr || fault->awaits_in_time(ground_.rank, op, {.layer = layer, .microbatch = microbatch_});
  }
  return true;
}

template <class T>
Task<typename Context<T>::Tensor> Context<T>::all_to_all(Op op, int layer, const Tensor& in, const Counts& sent,
                                                         Tensor out, const Counts& received,
                                                         [[maybe_unused]] SourceLocation where) {
  const std::int64_t experts = this->held(layer).most_experts;
  const std::vector<std::size_t> send_counts = element_counts(sent, experts, in.cols());
  const std::vector<std::size_t> receive_counts = element_counts(received, experts, in.cols());
  if constexpr (!kDry) {
    co_await communicator(Axis::ep, op, layer)
        .all_to_all_v(in.span(), std::span<const std::size_t>(send_counts), out.span(),
                      std::span<const std::size_t>(receive_counts), kMoveDirectly, where);
  }
  record_call(op, layer, all_to_all_shape(in, out, send_counts));
  co_return out;
}

template <class T>
Task<typename Context<T>::Tensor> Context<T>::gather_over_ep(Op op, int layer, View own, const Counts& rows_of,
                                                             [[maybe_unused]] SourceLocation where) {
  Tensor sent;
  if constexpr (kDry) {
    sent = own;
  } else {
    sent = Tensor(own.rows, own.cols);
    std::ranges::copy(own.span(), sent.span().begin());
  }
  Tensor all(sum_of(rows_of), sent.cols());
  if constexpr (!kDry) {
    const std::vector<std::size_t> counts = elements_of(rows_of, sent.cols());
    co_await communicator(Axis::ep, op, layer)
        .all_gather_v(std::as_const(sent).span(), all.span(), std::span<const std::size_t>(counts), kMoveDirectly,
                      where);
  }
  record_call(op, layer, moved(Axis::ep, Operation::all_gather, sent, all));
  co_return all;
}

template <class T>
Task<typename Context<T>::Ids> Context<T>::gather_choices(Op op, int layer, const Ids& own, const Counts& rows_of,
                                                          [[maybe_unused]] SourceLocation where) {
  Ids all(sum_of(rows_of), own.cols());
  if constexpr (!kDry) {
    const std::vector<std::size_t> counts = elements_of(rows_of, own.cols());
    co_await communicator(Axis::ep, op, layer)
        .all_gather_v(own.span(), all.span(), std::span<const std::size_t>(counts), kMoveDirectly, where);
  }
  record_call(op, layer,
              {.axis = Axis::ep,
               .operation = Operation::all_gather,
               .elements = own.size(),
               .received = all.size(),
               .rows = all.rows(),
               .cols = all.cols(),
               .width = kChoiceBytes});
  co_return all;
}

template <class T>
Task<typename Context<T>::Tensor> Context<T>::scatter_over_ep(Op op, int layer, Tensor partial, const Counts& rows_of,
                                                              [[maybe_unused]] SourceLocation where) {
  Tensor own(rows_of[static_cast<std::size_t>(layout_.at.ep)], partial.cols());
  if constexpr (!kDry) {
    const std::vector<std::size_t> counts = elements_of(rows_of, partial.cols());
    co_await communicator(Axis::ep, op, layer)
        .reduce_scatter_v(std::as_const(partial).span(), own.span(), std::span<const std::size_t>(counts),
                          reduce_scatter_options(ground_.program.reduction), where);
  }
  record_call(op, layer, moved(Axis::ep, Operation::reduce_scatter, partial, own, own.size()));
  this->round(own);
  co_return own;
}

template <class T>
Task<typename Context<T>::Counts> Context<T>::gather_counts(Op op, int layer, const Counts& counts,
                                                            [[maybe_unused]] SourceLocation where) {
  Counts all;
  if constexpr (kDry) {
    all = ground_.run.arriving_over_etp(layer, microbatch_, layout_.at);
  } else {
    all.resize(counts.size() * static_cast<std::size_t>(layout_.parallel.etp));
    co_await communicator(Axis::etp, op, layer)
        .all_gather(std::span<const std::int64_t>(counts), std::span<std::int64_t>(all), kMoveDirectly, where);
  }
  record_call(op, layer,
              {.axis = Axis::etp,
               .operation = Operation::all_gather,
               .elements = std::ssize(counts),
               .received = std::ssize(all),
               .width = kCountBytes});
  co_return all;
}

template <class T>
Task<typename Context<T>::Tensor> Context<T>::gather_over_etp(Op op, int layer, const Tensor& own,
                                                              const Counts& all_counts,
                                                              [[maybe_unused]] SourceLocation where) {
  Tensor all(sum_of(all_counts), own.cols());
  if constexpr (!kDry) {
    const std::int64_t buckets = std::ssize(all_counts) / layout_.parallel.etp;
    const std::vector<std::size_t> counts = element_counts(all_counts, buckets, own.cols());
    co_await communicator(Axis::etp, op, layer)
        .all_gather_v(own.span(), all.span(), std::span<const std::size_t>(counts), kMoveDirectly, where);
  }
  record_call(op, layer, moved(Axis::etp, Operation::all_gather, own, all));
  co_return all;
}

template <class T>
Task<typename Context<T>::Tensor> Context<T>::reduce_over_etp(Op op, int layer, Tensor partial, std::int64_t own_rows,
                                                              [[maybe_unused]] const Counts& all_counts,
                                                              [[maybe_unused]] SourceLocation where) {
  Tensor own(own_rows, partial.cols());
  if constexpr (!kDry) {
    const std::int64_t buckets = std::ssize(all_counts) / layout_.parallel.etp;
    const std::vector<std::size_t> counts = element_counts(all_counts, buckets, partial.cols());
    co_await communicator(Axis::etp, op, layer)
        .reduce_scatter_v(std::as_const(partial).span(), own.span(), std::span<const std::size_t>(counts),
                          reduce_scatter_options(ground_.program.reduction), where);
  }
  record_call(op, layer, moved(Axis::etp, Operation::reduce_scatter, partial, own, own.size()));
  co_return own;
}

template <class T>
Task<> Context<T>::send_to_next_stage(Op op, const Tensor& stream, [[maybe_unused]] SourceLocation where) {
  const int next = layout_.at.pp + 1;
  if constexpr (!kDry) co_await communicator(Axis::pp, op, -1).send(stream.span(), GroupRank{next}, where);
  record_call(op, -1, moved(Axis::pp, Operation::send, stream, stream, 0, next));
  co_return;
}

template <class T>
Task<typename Context<T>::Tensor> Context<T>::receive_from_stage_before(Op op, [[maybe_unused]] SourceLocation where) {
  const int before = layout_.at.pp - 1;
  Tensor stream(this->stream_rows().count, model_.hidden_size);
  if constexpr (!kDry) co_await communicator(Axis::pp, op, -1).recv(stream.span(), GroupRank{before}, where);
  record_call(op, -1, moved(Axis::pp, Operation::recv, stream, stream, 0, before));
  co_return stream;
}

template class Context<float>;
template class Context<double>;
template class Context<ShapeOnly>;

}  // namespace shardproof
