#include "emu/search/axes.h"

#include <fmt/format.h>

#include <algorithm>

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

Values cp_comms(const SearchSpace& /*space*/, const Plan& chosen) {
  return chosen.parallel.cp > 1 ? Values{0, 1, 2} : Values{0};
}

Values sequence_parallel(const SearchSpace& /*space*/, const Plan& chosen) {
  return chosen.parallel.tp > 1 ? Values{0, 1} : Values{0};
}

/// On one stage, as few as fit. A pipeline is filled by as many as it has stages; four times as many leave it idle for
/// less than a fifth of a prefill.
Values microbatches(const SearchSpace& /*space*/, const Plan& chosen) {
  const std::int64_t sequences = std::max<std::int64_t>(1, chosen.workload.batch() / chosen.parallel.dp);
  const std::int64_t stages = chosen.parallel.pp;
  Values values;
  for (const std::int64_t m : {stages, 2 * stages, 4 * stages, 8 * stages}) {
    if (m <= sequences && (m <= 4 * stages || stages == 1)) values.push_back(m);
  }
  return values.empty() ? Values{sequences} : values;
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
    {"cp_comm", cp_comms, [](Plan& plan, std::int64_t value) { plan.parallel.cp_comm = static_cast<CpComm>(value); },
     [](const Plan& plan) { return static_cast<std::int64_t>(plan.parallel.cp_comm); },
     [](std::int64_t value) -> std::string_view { return to_string(static_cast<CpComm>(value)); }},
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
