#include "tests/timeline/rank_by_rank.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <span>
#include <vector>

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
  struct Issued {
    double at = 0, wire = 0;
  };
  std::map<Axis, std::vector<Issued>> issued = {};  // calls under way, from the first on
  std::map<Axis, std::size_t> awaited = {};         // so many of them
  bool done() const { return at == ops->size(); }
  const OpRecord& op() const { return (*ops)[at]; }
  bool meets() const { return !done() && op().call && op().phase == CallPhase::whole; }
  bool awaits() const { return !done() && op().call && op().phase == CallPhase::awaited; }
};

bool in_ring(const OpRecord& call) {
  return (call.axis == Axis::cp || call.axis == Axis::cp_p2p) && is_point_to_point(call.operation);
}

/// Up to the next call that others have to come to, or the end of a ring's computation.
void compute(Walker& walker, const ClockOptions& options) {
  while (!walker.done() && !walker.awaits() && (!walker.meets() || in_ring(walker.op()))) {
    // The message that came beside the computation before has to be here.
    if (walker.coming != nullptr && walker.at > 0 && (*walker.ops)[walker.at - 1].op == Op::attention_ring_part) return;
    const OpRecord& first = walker.op();
    if (first.phase == CallPhase::issued) {
      walker.issued[first.axis].push_back({walker.now, wire_of(first)});
      ++walker.at;
      continue;
    }
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

/// When the `count`-th call under way of a group is over: one goes after the other, each once all have issued it. None
/// while somebody has not.
std::optional<double> end_of_issued(std::span<const Walker> walkers, const std::vector<int>& group,
                                    const OpRecord& call, std::size_t count, const ClockOptions& options) {
  double end = 0;
  for (std::size_t i = 0; i <= count; ++i) {
    double wire = 0;
    for (const int member : group) {
      const Walker& one = walkers[static_cast<std::size_t>(member)];
      const auto issued = one.issued.find(call.axis);
      if (issued == one.issued.end() || issued->second.size() <= i) return std::nullopt;
      end = std::max(end, issued->second[i].at);
      wire = std::max(wire, issued->second[i].wire);
    }
    end += collective_time(options.hardware, shape_of(group, options.gpus_per_node), call.operation, wire).seconds();
  }
  return end;
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
      if (one.awaits()) {
        const std::vector<int> group = mesh.group(one.op().axis, rank);
        std::size_t& awaited = one.awaited[one.op().axis];
        const std::optional<double> end = end_of_issued(walkers, group, one.op(), awaited, options);
        if (!end) continue;
        one.now = std::max(one.now, *end);
        ++awaited;
        ++one.at;
        moved = true;
      }
      if (one.coming == nullptr) continue;
      const std::vector<int> group = mesh.group(one.coming->axis, rank);
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
      if (walker(rank).coming != nullptr || !walker(rank).meets()) continue;
      const OpRecord call = walker(rank).op();
      const std::vector<int> group = mesh.group(call.axis, rank);
      const std::vector<int> together = company(mesh, rank, call);
      double begin = 0, wire = 0;
      bool all = true;
      for (const int other : together) {
        if (!walker(other).meets() || walker(other).op().axis != call.axis ||
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
