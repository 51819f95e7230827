#include "tools/verify_text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <vector>

#include "emu/judge/generate.h"
#include "emu/judge/judge.h"
#include "emu/paper/rank_table.h"
#include "emu/plan/schedule.h"
#include "tools/terminal.h"

namespace shardproof::tools {
namespace {

constexpr int kFullRankTable = 32;

std::string rank_table(const Plan& plan) {
  std::vector<std::vector<std::string>> rows{{"rank", "tp", "dp", "pp", "|", "etp", "ep", "edp", "|", "layers", "heads",
                                              "kv", "experts", "width", "sequences"}};
  // Most plans have no context parallelism.
  const bool cp = plan.parallel.cp > 1;
  if (cp) rows.front().insert(rows.front().begin() + 2, "cp");
  const auto add = [&](int rank) {
    const RankCells cells = rank_cells(plan, rank);
    const Coordinates& at = cells.at;
    rows.push_back({fmt::format("{}", rank), fmt::format("{}", at.tp), fmt::format("{}", at.dp),
                    fmt::format("{}", at.pp), "|", fmt::format("{}", at.etp), fmt::format("{}", at.ep),
                    fmt::format("{}", at.edp), "|", cells.layers, cells.heads, cells.kv_heads, cells.experts,
                    cells.intermediate_size, cells.sequences});
    if (cp) rows.back().insert(rows.back().begin() + 2, fmt::format("{}", at.cp));
  };
  const int world = plan.world();
  const int shown = world <= kFullRankTable ? world : 4;
  for (int rank = 0; rank < shown; ++rank) add(rank);
  if (shown < world) {
    rows.push_back({"..."});
    add(world - 1);
  }
  return table(rows, 1);
}

std::string error_text(double value) {
  return value == 0 ? "0" : fmt::format("{:.2e}", value);
}

std::string share_text(double share) {
  if (share == 0) return "0";
  return share < 0.0095 ? fmt::format("{:.0e}", share) : fmt::format("{:.2f}", share);
}

struct TapLine {
  std::string name;
  int count = 0;
  const TapReport* worst = nullptr;
  bool replicas_equal = true;
};

/// Of its bound, how much the worst element's error is.
double share_of_bound(const TapReport& tap) {
  return tap.bound > 0 || tap.max_error == 0 ? tap.max_error / std::max(tap.bound, DBL_MIN) : INFINITY;
}

std::vector<TapLine> lines_of(const std::vector<TapReport>& taps, TapLines wanted) {
  std::vector<TapLine> lines;
  for (const TapReport& tap : taps) {
    if (tap.verdict == TapVerdict::not_judged) continue;
    const std::string name = wanted == TapLines::all ? tap.name : tap.kind;
    auto line = std::ranges::find(lines, name, &TapLine::name);
    if (line == lines.end()) line = lines.insert(lines.end(), TapLine{.name = name});
    ++line->count;
    line->replicas_equal = line->replicas_equal && tap.replicas_equal;
    if (line->worst == nullptr || share_of_bound(tap) > share_of_bound(*line->worst)) line->worst = &tap;
  }
  return lines;
}

std::string tap_table(const VerifyReport& report, TapLines wanted) {
  std::vector<std::vector<std::string>> rows{
      {"tap", "tensors", "worst error", "its bound", "error / bound", "replicas", "worst in"}};
  for (const TapLine& line : lines_of(report.taps, wanted)) {
    const TapReport& worst = *line.worst;
    const bool missing = worst.verdict == TapVerdict::missing;
    const std::string replicas = !line.replicas_equal ? "DIFFER" : missing ? "-" : "equal";
    rows.push_back({line.name, fmt::format("{}", line.count), missing ? "missing" : error_text(worst.max_error),
                    error_text(worst.bound), missing ? "-" : share_text(share_of_bound(worst)), replicas,
                    line.count > 1 ? worst.name : ""});
  }
  return table(rows, 1);
}

std::string collective_table(const VerifyReport& report) {
  std::vector<std::vector<std::string>> rows{{"collective", "over", "calls", "bytes sent"}};
  for (const CollectiveReport& entry : report.collectives) {
    rows.push_back({entry.operation, entry.group, with_thousands(entry.calls), with_thousands(entry.bytes)});
  }
  return rows.size() > 1 ? table(rows, 2) : "";
}

std::string expert_load(const VerifyReport& report) {
  std::int64_t least = INT64_MAX;
  std::int64_t most = 0;
  std::int64_t idle = 0;
  std::int64_t experts = 0;
  for (const auto& layer : report.tokens_per_expert) {
    for (const std::int64_t tokens : layer) {
      least = std::min(least, tokens);
      most = std::max(most, tokens);
      idle += tokens == 0 ? 1 : 0;
      ++experts;
    }
  }
  if (experts == 0) return {};
  return fmt::format("  routing: {} choices, {} to {} tokens an expert, {} of {} experts without a token\n",
                     with_thousands(report.router_choices), least, most, with_thousands(idle), with_thousands(experts));
}

std::string verdict_word(Verdict verdict) {
  return toned(to_string(verdict), verdict == Verdict::pass           ? Tone::good
                                   : verdict == Verdict::inconclusive ? Tone::warning
                                                                      : Tone::bad);
}

/// The tap whose error is the largest part of its bound.
const TapReport* worst_tap(const VerifyReport& report) {
  const TapReport* worst = nullptr;
  for (const TapReport& tap : report.taps) {
    if (worst == nullptr || share_of_bound(tap) > share_of_bound(*worst)) worst = &tap;
  }
  return worst;
}

std::string rounding_text(const VerifyReport& report) {
  const TapReport* worst = worst_tap(report);
  if (worst == nullptr) return {};
  const std::int64_t judged = report.dump ? report.dump->judged : std::ssize(report.taps);
  return fmt::format(": {} taps ({} values), each within the bound of its op; the worst error is {:.2f} of it, at {}",
                     with_thousands(judged), with_thousands(report.elements), share_of_bound(*worst), worst->name);
}

std::string amplification_text(const AmplificationReport& report) {
  if (!report.error.empty()) return fmt::format("  amplification: {}\n", report.error);
  const AmplifiedTap* worst = report.worst();
  if (worst == nullptr) return {};
  std::vector<std::vector<std::string>> rows{
      {"from end to end", "unsharded error", "sharded error", "amplification", "worst in"}};
  for (const AmplifiedTap& kind : report.kinds) {
    rows.push_back({kind.kind, error_text(kind.unsharded), error_text(kind.sharded),
                    fmt::format("{:.2f}", kind.amplification), kind.tap});
  }
  std::string text = table(rows, 1) + "\n";
  if (report.differing > 0) {
    text += fmt::format(
        "  {} of {} router choices differ from the reference's, by {:.3g} between logits at most; "
        "measured with the reference's choices\n",
        with_thousands(report.differing), with_thousands(report.choices), report.widest_margin);
  }
  text += fmt::format("amplification   worst {:.2f} at {}", worst->amplification, worst->tap);
  if (report.limit) {
    text += fmt::format(", limit {:.3g}: {}", *report.limit,
                        report.beyond_limit() ? toned("exceeded", Tone::bad) : toned("kept", Tone::good));
  }
  return text + "\n";
}

std::string ranks_text(const std::vector<int>& ranks) {
  constexpr std::size_t kShown = 16;
  if (ranks.size() <= kShown) return fmt::format("{}", fmt::join(ranks, ", "));
  return fmt::format("{}, ... ({} ranks)", fmt::join(ranks.begin(), ranks.begin() + kShown, ", "), ranks.size());
}

std::string cause_text(const std::optional<Cause>& cause) {
  return cause ? fmt::format("  cause: {}: {}\n", toned(cause->name, Tone::bold), cause->evidence) : "";
}

std::string divergence_text(const Divergence& divergence) {
  return fmt::format("  first divergence: {} on ranks {}\n  {}\n", toned(divergence.tap, Tone::bold),
                     ranks_text(divergence.ranks), divergence.message) +
         cause_text(divergence.cause);
}

/// What the algebra's verdict rests on: the widest sum, how much of the grid is in use, and where too little of it.
std::string exact_use_text(const std::optional<ExactUse>& use) {
  if (!use || !use->widest || use->grid.empty()) return {};
  const GridUse& sparsest = *std::ranges::min_element(use->grid, {}, &GridUse::least_nonzero);
  const GridUse& poorest = *std::ranges::min_element(use->grid, {}, &GridUse::distinct);
  const SumBits& widest = *use->widest;
  std::string text = fmt::format(
      "          widest sum {} of {} bits ({} of {}); in each tensor at least {:.1f} % of the values are not zero "
      "({}), "
      "{} differ ({})\n",
      widest.finite() ? fmt::format("{}", widest.bits) : "over", kSumBudget, widest.sum, widest.tap,
      100 * sparsest.least_nonzero, sparsest.tap, with_thousands(poorest.distinct), poorest.tap);
  for (const Problem& weak : use->weak) {
    text += fmt::format("  {}: {}: {}\n", toned("warning", Tone::warning), weak.field, weak.message);
  }
  return text;
}

/// A report's verdict, and what it rests on.
std::string verdict_text(const VerifyReport& report) {
  const bool exact = report.format == ops::Format::exact;
  if (exact && report.verdict == Verdict::pass) {
    return fmt::format(
               "algebra   {}  {} taps ({} values) on {} ranks equal the unsharded float64 reference bit for bit  "
               "({:.2f} s)\n",
               verdict_word(Verdict::pass), with_thousands(std::ssize(report.taps)), with_thousands(report.elements),
               report.plan.world(), report.seconds()) +
           exact_use_text(report.exact_use);
  }
  const std::string profile = report.dump ? fmt::format(" ({})", report.dump->profile) : "";
  return fmt::format("{}   {}  {}{}{}  ({:.2f} s)\n", exact ? "algebra " : "rounding", verdict_word(report.verdict),
                     ops::to_string(report.format), profile,
                     report.verdict == Verdict::pass ? rounding_text(report) : "", report.seconds());
}

std::string tables_text(const VerifyReport& report, TapLines lines) {
  if (report.taps.empty()) return {};
  return tap_table(report, lines) + "\n" + collective_table(report) + "\n" + expert_load(report) + "\n";
}

std::string serving_text(const Plan& plan) {
  const Serving& serving = *plan.workload.serving;
  std::int64_t blocks = 0, mapped = 0;
  for (const ReplicaSchedule& replica : make_schedule(plan.parallel, plan.workload)) {
    blocks = std::max(blocks, kv_blocks_of(serving, replica, plan.parallel.dcp));
    for (const std::vector<Chunk>& step : replica) {
      for (const Chunk& chunk : step) mapped += chunk.prefix_of < 0 ? 0 : chunk.begin;
    }
  }
  const Parallel& p = plan.parallel;
  const std::string shared = p.dcp > 1 ? fmt::format(", shared out over dcp{}, {} token{} in a row", p.dcp,
                                                     p.dcp_interleave, p.dcp_interleave == 1 ? "" : "s")
                                       : "";
  const std::string prefixes = serving.prefix_sharing
                                   ? fmt::format("; {} of {} tokens are not run, but in blocks that requests share",
                                                 with_thousands(mapped), with_thousands(plan.workload.tokens()))
                                   : "";
  return fmt::format("  serving: {} steps, a cache of {} blocks of {} tokens on each rank{}{}\n",
                     count_steps(p, plan.workload), blocks, serving.kv_block_size, shared, prefixes);
}

}  // namespace

namespace {

std::string dispatch_text(const Parallel& p) {
  std::string text;
  if (p.dispatch != DispatchComm::all_to_all) text += fmt::format(" by {}", to_string(p.dispatch));
  if (p.overlap != Overlap::none) text += fmt::format(" overlap {}", to_string(p.overlap));
  return text;
}

}  // namespace

std::string plan_text(const RunnablePlan& run, const Plan& original, const std::string& scale) {
  const Plan& plan = run.plan();
  const Parallel& p = plan.parallel;
  const ModelConfig& m = plan.model;
  const AttentionSpec& attention = m.layers[0].attention;
  const FeedForwardSpec& experts = m.experts();
  std::string text = toned(plan.name.empty() ? "plan" : one_line(plan.name), Tone::bold);
  text += fmt::format(": {} virtual GPU ranks, attention tp{} cp{}{} dp{} pp{}{}, experts etp{} ep{} edp{} pp{}{}\n",
                      plan.world(), p.tp, p.cp, p.cp > 1 ? fmt::format(" by {}", to_string(p.cp_comm)) : "", p.dp, p.pp,
                      p.sp ? " sp" : "", p.etp, p.ep, p.edp, p.pp, dispatch_text(p));
  for (const std::string& taken : plan.defaults) text += fmt::format("  {}\n", taken);
  if (plan.hardware && plan.hardware->gpus > plan.world()) {
    text += fmt::format("  {} of {} GPUs idle\n", plan.hardware->gpus - plan.world(), plan.hardware->gpus);
  }
  text += fmt::format(
      "  model: {} layers, {} heads ({} kv) x {}, {} experts top-{}, hidden {}, intermediate size {}, vocabulary {}\n",
      m.layers.size(), attention.heads, attention.kv_heads, attention.head_dim, experts.num_experts, experts.top_k,
      m.hidden_size, experts.intermediate_size, m.vocab_size);
  for (const std::string& note : original.model_notes) text += fmt::format("  {}\n", one_line(note));
  const auto [shortest, longest] = std::ranges::minmax(plan.workload.lengths);
  text +=
      fmt::format("  workload: {} sequences of {} tokens, {} microbatch{} a replica, seed {}\n", plan.workload.batch(),
                  shortest == longest ? fmt::format("{}", longest) : fmt::format("{} to {}", shortest, longest),
                  plan.workload.microbatches, plan.workload.microbatches == 1 ? "" : "es", plan.workload.seed);
  if (plan.workload.serving) text += serving_text(plan);
  if (m != original.model || plan.workload.lengths != original.workload.lengths) {
    text += fmt::format("  scale {}: from hidden {}, head {}, intermediate size {}, vocabulary {}, {} tokens\n", scale,
                        original.model.hidden_size, original.model.layers[0].attention.head_dim,
                        original.model.experts().intermediate_size, original.model.vocab_size,
                        with_thousands(original.workload.tokens()));
  }
  return text + "\n" + rank_table(plan) + "\n";
}

std::string generation_text(const Generation& generation) {
  std::string text, close;
  for (std::size_t i = 0; i < generation.outputs.size(); ++i) {
    std::vector<std::int32_t> ids;
    for (const GeneratedToken& token : generation.outputs[i]) {
      if (token.close() || token.differs) {
        close += fmt::format("  close: request {} token {}: {} or {}, {:.3g} apart; logits are off by {:.3g}\n", i,
                             ids.size(), token.id, token.second, token.margin, token.error);
      }
      ids.push_back(token.id);
    }
    text += fmt::format("  generated: request {}: {}\n", i, fmt::join(ids, " "));
  }
  return text + close + "\n";
}

std::string proof_text(const Proof& proof, TapLines lines) {
  const VerifyReport& report = proof.last();
  std::string text = tables_text(report, lines);
  if (const std::optional<ReplicaReport>& replicas = proof.algebra.replicas) {
    text += fmt::format(
        "  replicas: the busiest of {} expert-parallel ranks serves {:.2f} times the mean; with every expert "
        "once, in order, {:.2f} times\n\n",
        report.plan.parallel.ep, replicas->imbalance_with, replicas->imbalance_without);
  }
  if (proof.rounding) text += verdict_text(proof.algebra);
  text += verdict_text(report);
  if (report.first_divergence) text += divergence_text(*report.first_divergence);
  if (report.stall) text += report.stall->text + "\n" + cause_text(report.stall->cause);
  if (proof.amplification) text += amplification_text(*proof.amplification);
  for (const std::string& note : report.notes) text += fmt::format("  {}\n", note);
  for (const Problem& problem : report.problems) text += fmt::format("  {}: {}\n", problem.field, problem.message);
  return text;
}

std::string dump_text(const VerifyReport& report, TapLines lines) {
  constexpr std::size_t kShown = 8;
  std::string text = tap_table(report, lines) + "\n" + verdict_text(report);
  if (report.first_divergence) text += divergence_text(*report.first_divergence);
  const DumpCoverage& dump = report.dump.value();
  if (!dump.computed.empty()) {
    text += fmt::format("  {} taps are not in the dump and were computed, within bounds, to judge others: {}{}\n",
                        with_thousands(std::ssize(dump.computed)),
                        fmt::join(dump.computed.begin(),
                                  dump.computed.begin() + std::min(std::ssize(dump.computed), std::ptrdiff_t{4}), ", "),
                        dump.computed.size() > 4 ? ", ..." : "");
  }
  for (std::size_t i = 0; i < dump.not_judged.size(); ++i) {
    if (i == kShown) {
      text += fmt::format("  ... {} taps in all were not judged\n", dump.not_judged.size());
      break;
    }
    text += fmt::format("  not judged: {}: {}\n", dump.not_judged[i].field, dump.not_judged[i].message);
  }
  for (const Problem& problem : report.problems) text += fmt::format("  {}: {}\n", problem.field, problem.message);
  return text;
}

std::string orders_text(const std::vector<OrderReport>& orders) {
  std::vector<std::vector<std::string>> rows{
      {"all-reduce", "algebra", "rounding", "format", "amplification", "worst tap"}};
  for (const OrderReport& order : orders) {
    const VerifyReport& report = order.proof.last();
    const bool exact = report.format == ops::Format::exact;
    const AmplifiedTap* worst = order.proof.amplification ? order.proof.amplification->worst() : nullptr;
    rows.push_back({std::string(to_string(order.algorithm)), to_string(order.proof.algebra.verdict),
                    exact ? "-" : to_string(report.verdict), std::string(ops::to_string(report.format)),
                    worst == nullptr ? "-" : fmt::format("{:.3f}", worst->amplification),
                    worst == nullptr ? "" : worst->tap});
  }
  return table(rows, 4);
}

std::string baseline_text(const std::optional<BaselineChange>& change) {
  if (!change) return fmt::format("baseline  {}  every tap is as it was recorded\n", toned("pass", Tone::good));
  return fmt::format("baseline  {}  {}{}{}\n", toned("changed", Tone::bold), change->tap,
                     change->tap.empty() ? "" : ": ", change->message);
}

}  // namespace shardproof::tools
