#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "emu/plan/mesh.h"
#include "emu/report/timeline_trace.h"

namespace shardproof {
namespace {

constexpr int kComputing = 0;
constexpr int kCommunicating = 1;

class TraceWriter {
 public:
  TraceWriter(const Projection& projection, const Plan& plan) : projection_(projection), mesh_(plan.parallel) {}

  std::string write() {
    text_ = R"({"displayTimeUnit": "ns", "traceEvents": [)";
    for (int rank = 0; rank < mesh_.world(); ++rank) add_names(rank);
    add_pass(projection_.prefill, 0);
    add_pass(projection_.decode, projection_.prefill.seconds);
    text_ += "\n]}\n";
    return std::move(text_);
  }

 private:
  template <class... Args>
  void event(fmt::format_string<Args...> format, Args&&... args) {
    text_ += first_ ? "\n" : ",\n";
    first_ = false;
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
  }

  static double us(double seconds) { return seconds * 1e6; }

  void add_names(int rank) {
    const Coordinates at = mesh_.coordinates(rank);
    const std::string name = fmt::format("rank {} (tp{} cp{} dp{} pp{}, etp{} ep{} edp{})", rank, at.tp, at.cp, at.dp,
                                         at.pp, at.etp, at.ep, at.edp);
    event(R"({{"ph": "M", "name": "process_name", "pid": {}, "args": {{"name": "{}"}}}})", rank, name);
    event(R"({{"ph": "M", "name": "process_sort_index", "pid": {}, "args": {{"sort_index": {}}}}})", rank, rank);
    for (const auto& [track, track_name] :
         {std::pair{kComputing, "computing"}, std::pair{kCommunicating, "communicating"}}) {
      event(R"({{"ph": "M", "name": "thread_name", "pid": {}, "tid": {}, "args": {{"name": "{}"}}}})", rank, track,
            track_name);
    }
  }

  void add_pass(const PassTiming& pass, double from) {
    for (int rank = 0; rank < mesh_.world(); ++rank) {
      const int of_class = pass.replay.class_of_rank[static_cast<std::size_t>(rank)];
      const char* name = pass.pass == DryPass::prefill ? "prefill" : "decode";
      if (pass.replay.overhead > 0) {
        event(R"({{"ph": "X", "name": "engine", "cat": "{}", "pid": {}, "tid": {}, "ts": {:.3f}, "dur": {:.3f}}})",
              name, rank, kComputing, us(from), us(pass.replay.overhead));
      }
      for (const ClockItem& item : pass.replay.of_rank(rank)) {
        if (item.pass > 0) break;
        const ClockStep& step = pass.replay.program(of_class)[static_cast<std::size_t>(item.step)];
        if (step.kind == ClockStep::Kind::compute) {
          add_kernel(rank, step, item, from, name);
        } else if (step.kind == ClockStep::Kind::call) {
          add_call(pass, rank, step, item, from, name);
        }
      }
    }
  }

  void add_kernel(int rank, const ClockStep& step, const ClockItem& item, double from, const char* pass) {
    event(R"({{"ph": "X", "name": "{}", "cat": "{}", "pid": {}, "tid": {}, "ts": {:.3f}, "dur": {:.3f}, "args": )"
          R"({{"layer": {}, "microbatch": {}, "flops": {:.6g}, "bytes": {:.6g}}}}})",
          to_string(step.op), pass, rank, kComputing, us(from + item.begin), us(item.end - item.begin), step.layer,
          step.microbatch, step.work.flops, step.work.bytes);
    if (step.op != Op::moe_expert) return;
    event(R"({{"ph": "C", "name": "rows of experts", "pid": {}, "ts": {:.3f}, "args": {{"rows": {}}}}})", rank,
          us(from + item.begin), step.rows);
    event(R"({{"ph": "C", "name": "rows of experts", "pid": {}, "ts": {:.3f}, "args": {{"rows": 0}}}})", rank,
          us(from + item.end));
  }

  void add_call(const PassTiming& pass, int rank, const ClockStep& step, const ClockItem& item, double from,
                const char* name) {
    if (item.begin > item.ready) {
      event(R"({{"ph": "X", "name": "wait for {}", "cat": "wait", "pid": {}, "tid": {}, "ts": {:.3f}, "dur": {:.3f}}})",
            to_string(step.op), rank, kCommunicating, us(from + item.ready), us(item.begin - item.ready));
    }
    event(R"({{"ph": "X", "name": "{}", "cat": "{}", "pid": {}, "tid": {}, "ts": {:.3f}, "dur": {:.3f}, "args": )"
          R"({{"operation": "{}", "axis": "{}", "layer": {}, "microbatch": {}, "wire_bytes": {:.6g}}}}})",
          to_string(step.op), name, rank, kCommunicating, us(from + item.begin), us(item.end - item.begin),
          to_string(step.operation), to_string(step.axis), step.layer, step.microbatch, step.wire);
    const int source = came_last(pass, rank, step, item);
    if (source < 0) return;
    ++flows_;
    event(R"({{"ph": "s", "name": "flow", "cat": "flow", "id": {}, "pid": {}, "tid": {}, "ts": {:.3f}}})", flows_,
          source, kCommunicating, us(from + item.begin));
    event(R"({{"ph": "f", "bp": "e", "name": "flow", "cat": "flow", "id": {}, "pid": {}, "tid": {}, "ts": {:.3f}}})",
          flows_, rank, kCommunicating, us(from + item.begin));
  }

  /// The rank that this one waited for, or that sent to it; -1: none.
  int came_last(const PassTiming& pass, int rank, const ClockStep& step, const ClockItem& item) const {
    if (is_point_to_point(step.operation)) {
      return step.operation == Operation::recv ? mesh_.group(step.axis, rank)[static_cast<std::size_t>(step.peer)] : -1;
    }
    if (item.last < 0 || item.begin <= item.ready) return -1;
    for (const int other : mesh_.group(step.axis, rank)) {
      if (pass.replay.class_of_rank[static_cast<std::size_t>(other)] == item.last) return other;
    }
    return -1;
  }

  const Projection& projection_;
  Mesh mesh_;
  std::string text_;
  bool first_ = true;
  std::int64_t flows_ = 0;
};

}  // namespace

std::string chrome_trace(const Projection& projection, const Plan& plan) {
  return TraceWriter(projection, plan).write();
}

}  // namespace shardproof
