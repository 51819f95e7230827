#include "emu/plan/internal/validate_context_parallel.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace shardproof {

std::string divisors_near(std::int64_t count, std::int64_t value) {
  std::int64_t below = 1;
  std::int64_t above = count;
  for (std::int64_t d = 1; d <= count / d; ++d) {
    if (count % d != 0) continue;
    for (const std::int64_t divisor : {d, count / d}) {
      if (divisor <= value) below = std::max(below, divisor);
      if (divisor >= value) above = std::min(above, divisor);
    }
  }
  if (value > count || below == above) return fmt::format("{} would do", below);
  return fmt::format("{} or {} would do", below, above);
}

namespace {

/// What each way of bringing queries and keys together can do.
void validate_prompts(const Plan& plan, const ReportProblem& problem) {
  const Parallel& p = plan.parallel;
  const auto refuse = [&](const std::string& why) { problem("parallel.cp_comm", why); };
  const std::string name = to_string(p.cp_comm);
  if (p.cp_comm == CpComm::a2a_p2p && (p.cp_a2a < 2 || p.cp % p.cp_a2a != 0 || p.cp == p.cp_a2a)) {
    refuse(
        fmt::format("{}: all-to-alls among {} of cp {} ranks; of at least 2, whose number divides cp and is less, are "
                    "needed",
                    name, p.cp_a2a, p.cp));
  }
  for (const LayerSpec& layer : plan.model.layers.kinds()) {
    const AttentionSpec& attention = layer.attention;
    if (p.in_ring() && attention.sliding_window > 0) {
      refuse(
          fmt::format("{}: the parts of a ring are not cut to a window, and layers have one of {} tokens; "
                      "\"all_gather\" or \"a2a\" is needed",
                      name, attention.sliding_window));
    }
    if (p.in_ring() && attention.sinks) {
      refuse(
          fmt::format("{}: the parts of a ring are merged without sinks, and layers have them; \"all_gather\" or "
                      "\"a2a\" is needed",
                      name));
    }
    const int dealt = p.heads_dealt();
    if (dealt < 2 || attention.heads % p.tp != 0) continue;
    const std::string among = p.cp_comm == CpComm::a2a ? "cp" : "cp_sizes[0]";
    const std::int64_t heads = attention.heads / p.tp;
    const std::int64_t kv_heads = std::max<std::int64_t>(1, attention.kv_heads / p.tp);
    for (const auto& [count, what] : {std::pair{heads, "query"}, std::pair{kv_heads, "key-value"}}) {
      if (count % dealt == 0) continue;
      refuse(fmt::format(
          "{}: {} {} head{} a rank of tp {} / {} {} = {} remainder {}; \"p2p\" or \"all_gather\", or a "
          "{} that divides them, is needed",
          name, count, what, count == 1 ? "" : "s", p.tp, among, dealt, count / dealt, count % dealt, among));
    }
  }
}

/// The ranks of a dcp group hold the same key-value head, each other tokens of it.
void validate_caches(const Plan& plan, const ReportProblem& problem) {
  const Parallel& p = plan.parallel;
  for (const LayerSpec& layer : plan.model.layers.kinds()) {
    const AttentionSpec& attention = layer.attention;
    const std::int64_t kv_heads = attention.latent() ? 1 : attention.kv_heads;
    const std::int64_t same = p.tp % kv_heads == 0 ? p.tp / kv_heads : 1;
    if (same % p.dcp != 0) {
      problem("parallel.dcp",
              fmt::format("{} ranks share out what is cached of a key-value head, and tp {} / {} = {} rank{} hold{} "
                          "the same one; {}",
                          p.dcp, p.tp, attention.latent() ? "1 latent" : fmt::format("{} heads", kv_heads), same,
                          same == 1 ? "" : "s", same == 1 ? "s" : "", divisors_near(same, p.dcp)));
    }
    if (attention.sliding_window > 0 || attention.sinks) {
      problem("parallel.dcp",
              fmt::format("{}: the parts of ranks of dcp are merged without {}, and layers have {}; 1 is needed", p.dcp,
                          attention.sinks ? "sinks" : "a window", attention.sinks ? "them" : "one"));
    }
  }
  if (p.cp > 1) {
    problem("parallel.dcp", fmt::format("{} beside cp {}: a sequence is shared out over one of them; dcp 1, or cp 1, "
                                        "is needed",
                                        p.dcp, p.cp));
  }
  if (!plan.workload.serving || plan.workload.serving->kv_block_size % p.dcp_interleave == 0) return;
  const std::int64_t size = plan.workload.serving->kv_block_size;
  problem("parallel.dcp_interleave",
          fmt::format("kv_block_size {} / dcp_interleave {} = {} remainder {}; {}", size, p.dcp_interleave,
                      size / p.dcp_interleave, size % p.dcp_interleave, divisors_near(size, p.dcp_interleave)));
}

}  // namespace

void validate_context_parallel(const Plan& plan, const ReportProblem& problem) {
  if (plan.parallel.cp > 1) validate_prompts(plan, problem);
  if (plan.parallel.dcp > 1) validate_caches(plan, problem);
}

}  // namespace shardproof
