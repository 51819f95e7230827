#include "emu/search/axes.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "emu/plan/neighbours.h"

namespace shardproof {
namespace {

using Values = std::vector<std::int64_t>;

/// Of what is left of the GPUs.
Values divisors(std::int64_t count) {
  Values all;
  for (std::int64_t d = 1; d <= count; ++d) {
    if (count % d == 0) all.push_back(d);
  }
  return all;
}

/// Those that fit the model, on ranks that make them up.
Values that_fit(const ModelConfig& model, Values values, int Parallel::*degree) {
  std::erase_if(values, [&](std::int64_t value) {
    Parallel alone;
    alone.*degree = static_cast<int>(value);
    if (alone.tp > 1) alone.edp = alone.tp;
    if (alone.ep * alone.etp > 1) alone.dp = alone.ep * alone.etp;
    return !fits_model(alone, model);
  });
  return values;
}

std::int64_t longest(const Plan& plan) {
  return *std::ranges::max_element(plan.workload.lengths);
}

Values batches(const SearchSpace& space, const Plan& chosen) {
  return space.batches.empty() ? Values{chosen.workload.batch()} : space.batches;
}

void set_batch(Plan& plan, std::int64_t batch) {
  Workload& workload = plan.workload;
  if (batch == workload.batch()) return;
  const auto count = static_cast<std::size_t>(batch);
  if (workload.serving) {
    workload.serving->requests.assign(count, Request(workload.serving->requests.front()));
    set_lengths(workload);
  } else {
    workload.lengths.assign(count, std::int64_t{workload.lengths.front()});
  }
}

Values tensor_parallel(const SearchSpace& space, const Plan& chosen) {
  return that_fit(chosen.model, divisors(space.gpus), &Parallel::tp);
}

Values stages(const SearchSpace& space, const Plan& chosen) {
  return that_fit(chosen.model, divisors(space.gpus / chosen.parallel.tp), &Parallel::pp);
}

/// Of a rank's two pieces of the longest sequence: shorter ones have their keys sooner by any other axis.
constexpr std::int64_t kFewestTokensOfPiece = 512;

/// Requests are served without it.
Values context_parallel(const SearchSpace& space, const Plan& chosen) {
  if (chosen.workload.serving) return {1};
  Values values = divisors(space.gpus / (chosen.parallel.tp * chosen.parallel.pp));
  std::erase_if(values, [&](std::int64_t cp) { return cp > 1 && longest(chosen) / (2 * cp) < kFewestTokensOfPiece; });
  return values;
}

/// Follows from the rest; a replica without a sequence is of no use.
Values data_parallel(const SearchSpace& space, const Plan& chosen) {
  const std::int64_t dp = space.gpus / (chosen.parallel.tp * chosen.parallel.pp * chosen.parallel.cp);
  return dp <= chosen.workload.batch() ? Values{dp} : Values{};
}

Values expert_parallel(const SearchSpace& /*space*/, const Plan& chosen) {
  const Parallel& p = chosen.parallel;
  return that_fit(chosen.model, divisors(std::int64_t{p.tp} * p.cp * p.dp), &Parallel::ep);
}

Values expert_tensor_parallel(const SearchSpace& /*space*/, const Plan& chosen) {
  const Parallel& p = chosen.parallel;
  if (chosen.model.dense()) return {1};
  return that_fit(chosen.model, divisors(std::int64_t{p.tp} * p.cp * p.dp / p.ep), &Parallel::etp);
}

/// Copies only help where some experts have more to do than others.
Values redundant_experts(const SearchSpace& /*space*/, const Plan& chosen) {
  Values values{0};
  if (chosen.workload.routing.is_even() || chosen.parallel.ep == 1) return values;
  for (const std::int64_t copies : {1, 2}) {
    if (copies * chosen.parallel.ep <= chosen.model.experts().num_experts)
      values.push_back(copies * chosen.parallel.ep);
  }
  return values;
}

void set_redundant(Plan& plan, std::int64_t redundant) {
  plan.parallel.experts.redundant = redundant;
  const bool counted = redundant > 0 && !plan.workload.routing.counts.empty();
  plan.parallel.experts.map = counted ? ExpertPlacement::Map::balanced : ExpertPlacement::Map::linear;
}

/// An all-to-all sends a row to at most as many ranks as experts are chosen for it, a gather to every other rank of ep.
/// Inside tp, whose ranks have the same tokens, nothing need be sent.
Values dispatches(const SearchSpace& /*space*/, const Plan& chosen) {
  const Parallel& p = chosen.parallel;
  Values values{static_cast<std::int64_t>(DispatchComm::all_to_all)};
  if (chosen.model.dense() || p.ep == 1) return values;
  if (p.ep - 1 <= chosen.model.experts().top_k) values.push_back(static_cast<std::int64_t>(DispatchComm::all_gather));
  const bool replicas = p.experts.redundant > 0;
  if (p.tp % (p.ep * p.etp) == 0 && !replicas) values.push_back(static_cast<std::int64_t>(DispatchComm::all_reduce));
  return values;
}

std::int64_t sequences_of_replica(const Plan& plan) {
  return std::max<std::int64_t>(1, plan.workload.batch() / plan.parallel.dp);
}

/// Of rows that are under way over ep.
Values overlaps(const SearchSpace& /*space*/, const Plan& chosen) {
  const Parallel& p = chosen.parallel;
  Values values{static_cast<std::int64_t>(Overlap::none)};
  if (chosen.model.dense() || p.ep == 1 || p.dispatch != DispatchComm::all_to_all) return values;
  if (chosen.model.experts().shared_intermediate_size > 0) {
    values.push_back(static_cast<std::int64_t>(Overlap::shared_expert));
  }
  if (sequences_of_replica(chosen) > 1) values.push_back(static_cast<std::int64_t>(Overlap::two_batch));
  return values;
}

/// Who serves requests has a cache, and of key-value heads fewer than tp ranks every rank would hold the whole of one:
/// all of these ranks share it out, or none.
Values decode_context_parallel(const SearchSpace& /*space*/, const Plan& chosen) {
  const Parallel& p = chosen.parallel;
  Values values{1};
  if (!chosen.workload.serving || p.cp > 1) return values;
  std::int64_t same = p.tp;
  for (const LayerSpec& kind : chosen.model.layers.kinds()) {
    const AttentionSpec& attention = kind.attention;
    same = std::gcd(same, attention.latent() ? p.tp : std::max<std::int64_t>(1, p.tp / attention.kv_heads));
  }
  if (same > 1) values.push_back(same);
  return values;
}

Values cp_comms(const SearchSpace& /*space*/, const Plan& chosen) {
  return chosen.parallel.cp > 1 ? Values{0, 1, 2} : Values{0};
}

Values sequence_parallel(const SearchSpace& /*space*/, const Plan& chosen) {
  return chosen.parallel.tp > 1 && !chosen.parallel.routes_alike() ? Values{0, 1} : Values{0};
}

/// On one stage, as few as fit, of two half batches a pair. A pipeline is filled by as many as it has stages; four
/// times as many leave it idle for less than a fifth of a prefill.
Values microbatches(const SearchSpace& /*space*/, const Plan& chosen) {
  const std::int64_t sequences = sequences_of_replica(chosen), stages = chosen.parallel.pp;
  const bool pairs = chosen.parallel.overlap == Overlap::two_batch;
  Values values;
  for (const std::int64_t m : {stages, 2 * stages, 4 * stages, 8 * stages}) {
    if (m > sequences || (m > 4 * stages && stages > 1)) continue;
    if (!pairs || m % 2 == 0) values.push_back(m);
  }
  if (!values.empty()) return values;
  return pairs ? Values{sequences / 2 * 2} : Values{sequences};
}

void set_edp(Parallel& p) {
  p.edp = p.tp * p.cp * p.dp / (p.ep * p.etp);
}

template <int Parallel::*degree>
void set_degree(Plan& plan, std::int64_t value) {
  plan.parallel.*degree = static_cast<int>(value);
  set_edp(plan.parallel);
}

template <int Parallel::*degree>
std::int64_t get_degree(const Plan& plan) {
  return plan.parallel.*degree;
}

constexpr SearchAxis kAxes[] = {
    {"batch", batches, set_batch, [](const Plan& plan) { return plan.workload.batch(); }},
    {"tp", tensor_parallel, set_degree<&Parallel::tp>, get_degree<&Parallel::tp>},
    {"pp", stages, set_degree<&Parallel::pp>, get_degree<&Parallel::pp>},
    {"cp", context_parallel, set_degree<&Parallel::cp>, get_degree<&Parallel::cp>},
    {"dp", data_parallel, set_degree<&Parallel::dp>, get_degree<&Parallel::dp>},
    {"ep", expert_parallel, set_degree<&Parallel::ep>, get_degree<&Parallel::ep>},
    {"etp", expert_tensor_parallel, set_degree<&Parallel::etp>, get_degree<&Parallel::etp>},
    {"redundant", redundant_experts, set_redundant, [](const Plan& plan) { return plan.parallel.experts.redundant; },
     nullptr, true},
    {"dispatch", dispatches,
     [](Plan& plan, std::int64_t value) { plan.parallel.dispatch = static_cast<DispatchComm>(value); },
     [](const Plan& plan) { return static_cast<std::int64_t>(plan.parallel.dispatch); },
     [](std::int64_t value) -> std::string_view { return to_string(static_cast<DispatchComm>(value)); }, false, false,
     true},
    {"overlap", overlaps, [](Plan& plan, std::int64_t value) { plan.parallel.overlap = static_cast<Overlap>(value); },
     [](const Plan& plan) { return static_cast<std::int64_t>(plan.parallel.overlap); },
     [](std::int64_t value) -> std::string_view { return to_string(static_cast<Overlap>(value)); }, false, false, true},
    {"cp_comm", cp_comms, [](Plan& plan, std::int64_t value) { plan.parallel.cp_comm = static_cast<CpComm>(value); },
     [](const Plan& plan) { return static_cast<std::int64_t>(plan.parallel.cp_comm); },
     [](std::int64_t value) -> std::string_view { return to_string(static_cast<CpComm>(value)); }},
    {"dcp", decode_context_parallel,
     [](Plan& plan, std::int64_t value) { plan.parallel.dcp = static_cast<int>(value); },
     [](const Plan& plan) { return std::int64_t{plan.parallel.dcp}; }, nullptr, false, false, true},
    {"sp", sequence_parallel, [](Plan& plan, std::int64_t value) { plan.parallel.sp = value != 0; },
     [](const Plan& plan) { return std::int64_t{plan.parallel.sp}; },
     [](std::int64_t value) -> std::string_view { return value != 0 ? "yes" : "no"; }},
    {"microbatches", microbatches, [](Plan& plan, std::int64_t value) { plan.workload.microbatches = value; },
     [](const Plan& plan) { return plan.workload.microbatches; }, nullptr, false, true},
};

}  // namespace

std::span<const SearchAxis> search_axes() {
  return kAxes;
}

Plan plan_of(const SearchSpace& space, const Choice& choice) {
  Plan plan = space.base;
  for (std::size_t i = 0; i < choice.size(); ++i) kAxes[i].set(plan, choice[i]);
  return plan;
}

Choice choice_of(const Plan& plan) {
  Choice choice;
  for (const SearchAxis& axis : kAxes) choice.push_back(axis.get(plan));
  return choice;
}

std::string describe(const Choice& choice) {
  const Choice neutral = choice_of(Plan{});
  std::string text;
  for (std::size_t i = 0; i < choice.size(); ++i) {
    if (choice[i] == neutral[i]) continue;
    if (!text.empty()) text += ", ";
    text += fmt::format("{} ", kAxes[i].name);
    text += kAxes[i].word == nullptr ? fmt::format("{}", choice[i]) : std::string(kAxes[i].word(choice[i]));
  }
  return text;
}

}  // namespace shardproof
