#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <set>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "emu/paper/figures.h"
#include "emu/plan/layout.h"
#include "emu/plan/mesh.h"
#include "emu/plan/schedule.h"
#include "emu/plan/token_map.h"
#include "emu/report/timeline_trace.h"

namespace shardproof {
namespace {

constexpr int kComputing = 0;
constexpr int kCommunicating = 1;
/// Of an axis: what is under way over it while its rank does something else.
constexpr int kHidden = 2;

std::string_view name_of(DryPass pass) {
  return pass == DryPass::prefill ? "prefill" : "decode";
}

class TraceWriter {
 public:
  TraceWriter(const Projection& projection, const Plan& plan)
      : projection_(projection), plan_(plan), mesh_(plan.parallel), tokens_(plan.parallel, plan.workload.prompts()) {
    for (int rank = 0; rank < mesh_.world(); ++rank) layouts_.push_back(make_layout(plan.model, mesh_, rank));
  }

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
    const std::string_view name = name_of(pass.pass);
    std::vector<std::vector<Transfer>> transfers(pass.replay.items.size());
    for (const Transfer& transfer : pass.replay.transfers) {
      transfers[static_cast<std::size_t>(transfer.of_class)].push_back(transfer);
    }
    for (int rank = 0; rank < mesh_.world(); ++rank) {
      const auto of_class = static_cast<std::size_t>(pass.replay.class_of_rank[static_cast<std::size_t>(rank)]);
      if (pass.replay.overhead > 0) {
        event(R"({{"ph": "X", "name": "engine", "cat": "{}", "pid": {}, "tid": {}, "ts": {:.3f}, "dur": {:.3f}}})",
              name, rank, kComputing, us(from), us(pass.replay.overhead));
      }
      begin_memory(rank, pass, from);
      for (const ClockItem& item : pass.replay.of_rank(rank)) {
        if (item.pass > 0) break;
        const ClockStep& step = pass.replay.program(static_cast<int>(of_class))[static_cast<std::size_t>(item.step)];
        if (step.kind == ClockStep::Kind::compute) {
          add_kernel(pass, rank, step, item, from);
        } else if (step.kind == ClockStep::Kind::call) {
          add_call(pass, rank, step, item, from);
        }
      }
      for (const Transfer& transfer : transfers[of_class]) add_hidden(pass, rank, transfer, from);
    }
  }

  void add_kernel(const PassTiming& pass, int rank, const ClockStep& step, const ClockItem& item, double from) {
    event(R"({{"ph": "X", "name": "{}", "cat": "{}", "pid": {}, "tid": {}, "ts": {:.3f}, "dur": {:.3f}, "args": )"
          R"({{"layer": {}, "microbatch": {}, "flops": {:.6g}, "bytes": {:.6g}}}}})",
          to_string(step.op), name_of(pass.pass), rank, kComputing, us(from + item.begin), us(item.end - item.begin),
          step.layer, step.microbatch, step.work.flops, step.work.bytes);
    if (step.op == Op::moe_expert) add_experts(pass, rank, step, item, from);
    if (step.op == Op::attention_output) add_to_cache(pass, rank, step, from + item.end);
  }

  /// What they work on, and then nothing.
  void add_experts(const PassTiming& pass, int rank, const ClockStep& step, const ClockItem& item, double from) {
    const LayerLayout& held = layouts_[static_cast<std::size_t>(rank)].layer(plan_.model, step.layer);
    const auto program =
        pass.replay
            .program_of_class[static_cast<std::size_t>(pass.replay.class_of_rank[static_cast<std::size_t>(rank)])];
    const auto experts =
        std::span(pass.replay.expert_rows[static_cast<std::size_t>(program)])
            .subspan(static_cast<std::size_t>(step.experts_at), static_cast<std::size_t>(step.records));
    for (const bool working : {true, false}) {
      std::string rows;
      for (const ExpertRows& of : experts) {
        fmt::format_to(std::back_inserter(rows), R"({}"expert {}": {})", rows.empty() ? "" : ", ",
                       held.experts.begin + of.expert, working ? of.rows : 0);
      }
      event(R"({{"ph": "C", "name": "rows of experts", "pid": {}, "ts": {:.3f}, "args": {{{}}}}})", rank,
            us(from + (working ? item.begin : item.end)), rows);
    }
  }

  void begin_memory(int rank, const PassTiming& pass, double from) {
    const Layout& layout = layouts_[static_cast<std::size_t>(rank)];
    weights_ = static_cast<double>(held_parameters(layout, plan_.model).total()) * dtype_bytes(plan_.model);
    cache_ = 0;
    if (pass.pass == DryPass::decode) {
      double tokens = 0;
      const Range sequences = sequences_of_replica(plan_.parallel, plan_.workload.batch(), layout.at.dp);
      for (std::int64_t s = sequences.begin; s < sequences.end(); ++s) {
        tokens += static_cast<double>(plan_.workload.lengths[static_cast<std::size_t>(s)]);
      }
      for (std::int64_t layer = layout.layers.begin; layer < layout.layers.end(); ++layer) {
        cache_ += tokens * cached_bytes_of_token(layout, layer);
      }
    }
    add_memory(rank, from);
  }

  void add_to_cache(const PassTiming& pass, int rank, const ClockStep& step, double at) {
    const Layout& layout = layouts_[static_cast<std::size_t>(rank)];
    double tokens = 0;
    for (const Chunk& chunk : tokens_.chunks(layout.at.dp, step.microbatch)) {
      tokens += pass.pass == DryPass::prefill ? static_cast<double>(chunk.count) : 1;
    }
    cache_ += tokens * cached_bytes_of_token(layout, step.layer);
    add_memory(rank, at);
  }

  void add_memory(int rank, double at) {
    event(R"({{"ph": "C", "name": "memory", "pid": {}, "ts": {:.3f}, "args": {{"weights": {:.0f}, "cache": {:.0f}}}}})",
          rank, us(at), weights_, cache_);
  }

  double cached_bytes_of_token(const Layout& layout, std::int64_t layer) const {
    const std::int64_t elements =
        cached_elements(plan_.model.layers[layer].attention, layout.layer(plan_.model, layer).kv_heads.count);
    const double ranks = plan_.parallel.cp * plan_.parallel.dcp;
    return static_cast<double>(elements * dtype_bytes(plan_.model)) / ranks;
  }

  /// The part of a call for which its rank did something else, over a track of its axis.
  void add_hidden(const PassTiming& pass, int rank, const Transfer& transfer, double from) {
    const ClockItem& item = pass.replay.of_rank(rank)[static_cast<std::size_t>(transfer.item)];
    const ClockStep& step = pass.replay.program(transfer.of_class)[static_cast<std::size_t>(item.step)];
    if (item.hidden <= 0) return;
    const int track = kHidden + static_cast<int>(step.axis);
    if (hidden_tracks_.insert({rank, track}).second) {
      event(R"({{"ph": "M", "name": "thread_name", "pid": {}, "tid": {}, "args": {{"name": "hidden, {}"}}}})", rank,
            track, to_string(step.axis));
    }
    event(R"({{"ph": "X", "name": "{}", "cat": "hidden", "pid": {}, "tid": {}, "ts": {:.3f}, "dur": {:.3f}, "args": )"
          R"({{"operation": "{}", "axis": "{}", "layer": {}, "microbatch": {}}}}})",
          to_string(step.op), rank, track, us(from + transfer.begin), us(item.hidden), to_string(step.operation),
          to_string(step.axis), step.layer, step.microbatch);
  }

  void add_call(const PassTiming& pass, int rank, const ClockStep& step, const ClockItem& item, double from) {
    if (item.begin > item.ready) {
      event(R"({{"ph": "X", "name": "wait for {}", "cat": "wait", "pid": {}, "tid": {}, "ts": {:.3f}, "dur": {:.3f}}})",
            to_string(step.op), rank, kCommunicating, us(from + item.ready), us(item.begin - item.ready));
    }
    event(
        R"({{"ph": "X", "name": "{}", "cat": "{}", "pid": {}, "tid": {}, "ts": {:.3f}, "dur": {:.3f}, "args": )"
        R"({{"operation": "{}", "axis": "{}", "layer": {}, "microbatch": {}, "wire_bytes": {:.6g}, "hidden_us": {:.3f}}}}})",
        to_string(step.op), name_of(pass.pass), rank, kCommunicating, us(from + item.begin), us(item.end - item.begin),
        to_string(step.operation), to_string(step.axis), step.layer, step.microbatch, step.wire, us(item.hidden));
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
  const Plan& plan_;
  Mesh mesh_;
  TokenMap tokens_;
  std::vector<Layout> layouts_;     // by rank
  double weights_ = 0, cache_ = 0;  // bytes of the rank that is written
  std::set<std::pair<int, int>> hidden_tracks_;
  std::string text_;
  bool first_ = true;
  std::int64_t flows_ = 0;
};

}  // namespace

std::string chrome_trace(const Projection& projection, const Plan& plan) {
  return TraceWriter(projection, plan).write();
}

}  // namespace shardproof
