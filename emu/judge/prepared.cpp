#include "emu/judge/prepared.h"

#include <chrono>
#include <unordered_map>
#include <utility>

#include "emu/reference/reference.h"

namespace shardproof {

PreparedReference prepare_reference(const Plan& plan, ops::Format format, const WeightSource* weights,
                                    const std::function<void(const std::string&)>& completed) {
  const auto start = std::chrono::steady_clock::now();
  PreparedReference prepared{
      .batch = Batch(plan.workload, plan.model.vocab_size), .format = format, .weights = weights};
  if (weights == nullptr) {
    prepared.owned = std::make_unique<GeneratedWeights>(plan.workload.seed);
    prepared.weights = prepared.owned.get();
  }
  prepared.slices = std::make_unique<WeightStore<double>>(*prepared.weights, format, kWeightBytesKept);
  prepared.float_slices = std::make_unique<WeightStore<float>>(*prepared.weights, format, kWeightBytesKept);

  std::unordered_map<std::string, WeightSpec> specs;
  for_each_weight(plan.model, [&](const WeightSpec& spec) { specs.emplace(spec.name, spec); });
  const auto read = [&](const std::string& name, std::vector<double>& values) {
    const WeightSpec& spec = specs.at(name);
    values.resize(static_cast<std::size_t>(spec.rows * spec.cols));
    prepared.weights->read_stored(spec, {0, spec.rows}, {0, spec.cols}, format,
                                  ops::MatrixView<double>{values.data(), spec.rows, spec.cols});
  };
  const auto keep = [&](const std::string& name, std::int64_t rows, std::int64_t cols, std::vector<double>&& values) {
    if (completed) completed(name);
    const FeedForwardSpec& spec = plan.model.layers[0].feed_forward;
    const bool one_expert = spec.top_k == 1 || spec.num_experts == 1;
    prepared.expected.add(
        name, rows, cols, std::move(values),
        {.ids = name.ends_with(".router_choice"),
         // One expert, its weight renormalised, weighs one.
         .constant_by_nature = name.ends_with(".router_weights") && one_expert && spec.norm_topk_prob});
  };
  const auto count_bits = [&](const std::string& tap, std::string_view sum, int bits) {
    add_sum(prepared.sums, tap, sum, bits);
  };
  reference::forward(plan.model, prepared.batch.tokens(), prepared.batch.lengths(), read,
                     {.exact = format == ops::Format::exact, .on_sum = count_bits}, keep);
  prepared.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return prepared;
}

}  // namespace shardproof
