#include "tests/timeline/rank_by_rank.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace shardproof::testing {
namespace {

double wire_of(const OpRecord& call) {
  const double width = call.width;
  const auto in = static_cast<double>(call.elements), out = static_cast<double>(call.received);
  const auto kept = static_cast<double>(call.kept);
  if (call.operation == Operation::all_reduce) return 2 * in * width * (call.group_size - 1) / call.group_size;
  if (call.operation == Operation::all_gather) return (out - in) * width;
  if (call.operation == Operation::reduce_scatter) return (in - kept) * width;
  if (call.operation == Operation::all_to_all) return std::max(in - kept, out - kept) * width;
  return in * width;
}

struct Walker {
  const std::vector<OpRecord>* ops = nullptr;
  std::size_t at = 0;
  double now = 0;
  std::vector<double> sent = {};     // when its messages over cp went
  const OpRecord* coming = nullptr;  // one that it computes beside
  std::size_t come = 0;              // so many
  bool done() const { return at == ops->size(); }
  const OpRecord& op() const { return (*ops)[at]; }
};

bool in_ring(const OpRecord& call) {
  return call.axis == Axis::cp && is_point_to_point(call.operation);
}

/// Up to the next call that others have to come to, or the end of a ring's computation.
void compute(Walker& walker, const ClockOptions& options) {
  while (!walker.done() && (!walker.op().call || in_ring(walker.op()))) {
    // The message that came beside the computation before has to be here.
    if (walker.coming != nullptr && walker.at > 0 && (*walker.ops)[walker.at - 1].op == Op::attention_ring_part) return;
    const OpRecord& first = walker.op();
    if (first.call) {
      if (first.operation == Operation::send) walker.sent.push_back(walker.now);
      if (first.operation == Operation::recv) walker.coming = &first;
      ++walker.at;
      continue;
    }
    KernelWork work = work_of(first, options.rules);
    ++walker.at;
    while (first.op == Op::moe_expert && !walker.done() && walker.op().op == Op::moe_expert &&
           walker.op().layer == first.layer && walker.op().microbatch == first.microbatch) {
      const KernelWork more = work_of(walker.op(), options.rules);
      work.flops += more.flops;
      work.bytes += more.bytes;
      ++walker.at;
    }
    walker.now += seconds_of(work, options.hardware);
  }
}

/// The ranks that have to be at the call that the rank is at.
std::vector<int> company(const Mesh& mesh, int rank, const OpRecord& call) {
  const std::vector<int> group = mesh.group(call.axis, rank);
  if (!is_point_to_point(call.operation)) return group;
  return {rank, group[static_cast<std::size_t>(call.peer)]};
}

}  // namespace

std::vector<double> rank_ends(const DryTraces& traces, const Mesh& mesh, const ClockOptions& options) {
  std::vector<Walker> walkers;
  for (const auto& trace : traces.ranks) walkers.push_back({&trace->ops, 0, options.hardware.overhead_seconds});
  const auto walker = [&](int rank) -> Walker& { return walkers[static_cast<std::size_t>(rank)]; };
  for (bool moved = true; moved;) {
    moved = false;
    for (int rank = 0; rank < mesh.world(); ++rank) {
      Walker& one = walker(rank);
      compute(one, options);
      if (one.coming == nullptr) continue;
      const std::vector<int> group = mesh.group(Axis::cp, rank);
      const Walker& sender = walker(group[static_cast<std::size_t>(one.coming->peer)]);
      if (sender.sent.size() == one.come) continue;
      const double seconds = collective_time(options.hardware, shape_of(group, options.gpus_per_node), Operation::recv,
                                             wire_of(*one.coming))
                                 .seconds();
      one.now = std::max(one.now, sender.sent[one.come++] + seconds);
      one.coming = nullptr;
      moved = true;
    }
    for (int rank = 0; rank < mesh.world(); ++rank) {
      if (walker(rank).done() || walker(rank).coming != nullptr || !walker(rank).op().call) continue;
      const OpRecord call = walker(rank).op();
      const std::vector<int> group = mesh.group(call.axis, rank);
      const std::vector<int> together = company(mesh, rank, call);
      double begin = 0, wire = 0;
      bool all = true;
      for (const int other : together) {
        if (walker(other).done() || !walker(other).op().call || walker(other).op().axis != call.axis ||
            is_point_to_point(walker(other).op().operation) != is_point_to_point(call.operation) ||
            !std::ranges::count(company(mesh, other, walker(other).op()), rank)) {
          all = false;
          break;
        }
        begin = std::max(begin, walker(other).now);
        wire = std::max(wire, wire_of(walker(other).op()));
      }
      if (!all) continue;
      const double seconds =
          rides_along(call.op)
              ? 0
              : collective_time(options.hardware, shape_of(group, options.gpus_per_node), call.operation, wire)
                    .seconds();
      for (const int other : together) {
        walker(other).now = begin + seconds;
        ++walker(other).at;
      }
      moved = true;
    }
  }
  std::vector<double> ends;
  for (const Walker& one : walkers) {
    EXPECT_TRUE(one.done());
    ends.push_back(one.now);
  }
  return ends;
}

}  // namespace shardproof::testing
