#include "emu/verify/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "collectives/default_executor.h"
#include "collectives/errors.h"
#include "collectives/seeded_executor.h"
#include "emu/plan/validate.h"
#include "emu/run/cluster.h"
#include "emu/run/fault.h"
#include "emu/run/transformer.h"
#include "emu/verify/judge.h"
#include "emu/verify/reference.h"

namespace shardproof {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// One call of the user's callback at a time.
class ProgressReporter {
 public:
  ProgressReporter(const VerifyOptions& options, const ModelConfig& model)
      : callback_(options.progress), layers_(static_cast<int>(model.num_layers)) {}

  /// Reports a layer when its last tap is complete.
  void tap_complete(const char* run, const std::string& name) {
    if (!callback_ || !name.ends_with(".moe.residual")) return;
    const int layer = std::stoi(name.substr(name.find('.') + 1));
    const std::lock_guard lock(mutex_);
    callback_({run, layer, layers_});
  }

 private:
  const std::function<void(const Progress&)>& callback_;
  int layers_;
  std::mutex mutex_;
};

std::unique_ptr<Executor> make_executor(const VerifyOptions& options) {
  if (options.schedule) return std::make_unique<SeededExecutor>(*options.schedule);
  return options.threads > 0 ? std::make_unique<DefaultExecutor>(options.threads) : std::make_unique<DefaultExecutor>();
}

ExpectedTaps run_reference(const Plan& plan, const Batch& batch, const WeightSource& weights, ops::Format format,
                           ProgressReporter& progress) {
  std::unordered_map<std::string, WeightSpec> specs;
  for (WeightSpec& spec : registry::all(plan.model)) {
    std::string name = spec.name;
    specs.emplace(std::move(name), std::move(spec));
  }
  const auto read = [&](const std::string& name) {
    const WeightSpec& spec = specs.at(name);
    std::vector<double> values(static_cast<std::size_t>(spec.rows * spec.cols));
    weights.read(spec, {0, spec.rows}, {0, spec.cols}, {values.data(), spec.rows, spec.cols});
    store_weight(values, format);
    return values;
  };
  ExpectedTaps expected;
  const auto keep = [&](const std::string& name, std::int64_t rows, std::int64_t cols, std::vector<double>&& values) {
    progress.tap_complete("reference", name);
    expected.add(name, rows, cols, std::move(values), name.ends_with(".router_choice"));
  };
  reference::forward(plan.model, batch.tokens(), batch.lengths(), read, {.exact = format == ops::Format::exact}, keep);
  return expected;
}

RoutingReplay reference_choices(const ExpectedTaps& expected) {
  RoutingReplay replay;
  for (const ExpectedTap& tap : expected.all()) {
    if (!tap.ids) continue;
    ops::Matrix<std::int32_t>& ids = replay.emplace_back(tap.rows, tap.cols);
    std::ranges::transform(tap.values, ids.span().begin(), [](double id) { return static_cast<std::int32_t>(id); });
  }
  return replay;
}

/// A run of the program and what came of it.
struct RunResult {
  std::vector<TapOutcome> outcomes;
  std::vector<std::string> unexpected;
  std::vector<CollectiveReport> collectives;
};

std::vector<CollectiveReport> sum_collectives(const Cluster& cluster) {
  struct Sum {
    double calls = 0;
    std::int64_t bytes = 0;
  };
  std::map<std::pair<std::string, std::string>, Sum> sums;
  for (int rank = 0; rank < cluster.size(); ++rank) {
    for (const CollectiveRecord& record : cluster.world().records(GlobalRank{rank})) {
      Sum& sum = sums[{std::string(record.axis), std::string(to_string(record.operation))}];
      // Every member of a group records its call; send and recv are each their own.
      sum.calls += is_point_to_point(record.operation) ? 1 : 1.0 / record.group_size;
      sum.bytes += static_cast<std::int64_t>(record.bytes);
    }
  }
  std::vector<CollectiveReport> reports;
  for (const auto& [key, sum] : sums) {
    reports.push_back(
        {.operation = key.second, .group = key.first, .calls = std::llround(sum.calls), .bytes = sum.bytes});
  }
  return reports;
}

template <class T>
RunResult run_program(const Plan& plan, const Parallel& parallel, const Batch& batch, const WeightSource& weights,
                      const VerifyOptions& options, const ExpectedTaps& expected, const RoutingReplay* replay,
                      FaultInjector* fault, const char* run, ProgressReporter& progress) {
  WeightStore<T> store(weights, options.format);
  Cluster cluster(parallel);
  TransformerProgram<T> program{.model = plan.model,
                                .batch = batch,
                                .weights = store,
                                .format = options.format,
                                .layouts = make_layouts(plan.model, cluster.mesh()),
                                .replay = replay,
                                .fault = fault};
  if (fault != nullptr) fault->edit_layouts(program.layouts);
  TapCollector collector(expected, cluster.size(), options.format == ops::Format::exact,
                         [&](const std::string& name) { progress.tap_complete(run, name); });
  const std::unique_ptr<Executor> executor = make_executor(options);
  cluster.run(
      *executor, [&](Rank& rank) { return run_transformer<T>(rank, program); }, &collector, fault);
  return {collector.finish(), collector.unexpected(), sum_collectives(cluster)};
}

std::vector<std::vector<std::int64_t>> count_tokens(const Plan& plan, const ExpectedTaps& expected,
                                                    const std::vector<TapOutcome>& outcomes) {
  std::vector<std::vector<std::int64_t>> counts;
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    if (!expected.all()[i].ids) continue;
    std::vector<std::int64_t>& layer = counts.emplace_back(static_cast<std::size_t>(plan.model.num_experts), 0);
    for (const std::int32_t id : outcomes[i].ids) {
      if (id >= 0 && id < plan.model.num_experts) ++layer[static_cast<std::size_t>(id)];
    }
  }
  return counts;
}

/// With one expert chosen and its weight renormalised, every weight is one: nothing else can be expected.
bool constant_by_nature(const ModelConfig& model, const std::string& tap) {
  return tap.ends_with(".router_weights") && (model.top_k == 1 || model.num_experts == 1) && model.norm_topk_prob;
}

std::vector<Problem> vacuous_taps(const Plan& plan, const ExpectedTaps& expected) {
  std::vector<Problem> problems;
  for (const ExpectedTap& tap : expected.all()) {
    if (tap.vacuous.empty() || (tap.vacuous == "constant" && constant_by_nature(plan.model, tap.name))) continue;
    problems.push_back({tap.name, fmt::format("the reference's values are {}: agreement would prove nothing; choose "
                                              "another seed or a larger scale",
                                              tap.vacuous)});
  }
  return problems;
}

template <class T>
void run_and_judge(const Plan& plan, const VerifyOptions& options, VerifyReport& report) {
  const GeneratedWeights generated(plan.workload.seed);
  const WeightSource& weights = options.weights != nullptr ? *options.weights : generated;
  const Batch batch(plan.workload, plan.model.vocab_size);
  ProgressReporter progress(options, plan.model);

  const Clock::time_point reference_start = Clock::now();
  const ExpectedTaps expected = run_reference(plan, batch, weights, options.format, progress);
  report.reference_seconds = seconds_since(reference_start);

  const RoutingReplay choices = reference_choices(expected);
  const Batch whole({batch.lengths().begin(), batch.lengths().end()}, {batch.tokens().begin(), batch.tokens().end()},
                    1);
  const auto unsharded = [&](const RoutingReplay* replay) {
    return run_program<T>(plan, Parallel{}, whole, weights, options, expected, replay, nullptr, "unsharded", progress);
  };
  const auto sharded = [&](const RoutingReplay* replay) {
    const Clock::time_point start = Clock::now();
    RunResult result =
        run_program<T>(plan, plan.parallel, batch, weights, options, expected, replay, options.fault, "sharded", progress);
    report.sharded_seconds += seconds_since(start);
    return result;
  };

  RunResult base = unsharded(nullptr);
  RunResult result = sharded(nullptr);
  const bool exact = options.format == ops::Format::exact;
  const bool differs = any_choice_differs(expected, base.outcomes) || any_choice_differs(expected, result.outcomes);
  if (differs && !exact) {
    base = unsharded(&choices);
    result = sharded(&choices);
    report.routing.replayed = true;
  }

  report.tokens_per_expert = count_tokens(plan, expected, result.outcomes);
  report.collectives = std::move(result.collectives);
  report.taps = report_taps(expected, base.outcomes, result.outcomes, options.format);
  if (exact) {
    report.routing.tokens = plan.workload.tokens() * plan.model.num_layers;
  } else {
    const bool replayed = report.routing.replayed;
    report.routing = judge_routing(expected, report.taps, result.outcomes);
    report.routing.replayed = replayed;
    report.taps = report_taps(expected, base.outcomes, result.outcomes, options.format);
  }
  for (const ExpectedTap& tap : expected.all()) report.elements += std::ssize(tap.values);
  report.first_divergence = first_divergence(report.taps, result.outcomes);
  for (const std::string& name : result.unexpected) {
    report.problems.push_back({name, "a rank tapped it, but the reference has no such tap"});
  }
  for (Problem& problem : vacuous_taps(plan, expected)) report.problems.push_back(std::move(problem));
  report.verdict = report.first_divergence    ? Verdict::mismatch
                   : !report.problems.empty() ? Verdict::inconclusive
                                              : Verdict::pass;
}

}  // namespace

VerifyReport verify(const Plan& plan, const VerifyOptions& options) {
  VerifyReport report{.plan = plan, .format = options.format, .schedule = options.schedule};
  report.threads = options.schedule ? 1 : make_executor(options)->threads();
  report.problems = validate(plan);
  if (plan.parallel.cp > 1) {
    report.problems.push_back(
        {"parallel.cp", fmt::format("cp = {}: context parallelism is not executed yet; verify runs "
                                    "plans with cp = 1",
                                    plan.parallel.cp)});
  }
  if (!report.problems.empty()) return report;
  try {
    if (ops::computes_in_double(options.format)) {
      run_and_judge<double>(plan, options, report);
    } else {
      run_and_judge<float>(plan, options, report);
    }
  } catch (const CollectiveError& error) {
    report.verdict = Verdict::deadlock;
    report.deadlock = error.what();
  }
  return report;
}

VerifyReport prove(const Plan& plan, const VerifyOptions& options) {
  if (options.format == ops::Format::exact) return verify(plan, options);
  VerifyOptions exact_options = options;
  exact_options.format = ops::Format::exact;
  VerifyReport exact = verify(plan, exact_options);
  if (exact.verdict != Verdict::pass) return exact;
  VerifyReport report = verify(plan, options);
  report.algebra = AlgebraReport{.verdict = exact.verdict,
                                 .first_divergence = exact.first_divergence,
                                 .taps = std::ssize(exact.taps),
                                 .elements = exact.elements,
                                 .seconds = exact.reference_seconds + exact.sharded_seconds};
  return report;
}

}  // namespace shardproof
