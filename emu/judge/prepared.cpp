#include "emu/judge/prepared.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <unordered_map>
#include <utility>

#include "emu/reference/reference.h"

namespace shardproof {
namespace {

TapTraits traits_of(const ModelConfig& model, const Batch& batch, const TapId& id, const std::vector<bool>& absorbed) {
  TapTraits traits{.ids = tap_row(id.kind).ids};
  if (tap_row(id.kind).absorbed) traits.due = absorbed;
  // Where every token is the same one, so is what comes of it at any position, and one column has one value.
  const auto tokens = batch.tokens();
  const bool one_token = std::ranges::adjacent_find(tokens, std::ranges::not_equal_to{}) == tokens.end();
  traits.constant_by_nature = one_token && tap_width(model, id) == 1;
  if (id.kind != TapKind::router_weights || traits.constant_by_nature) return traits;
  // One expert of one, or one whose weight is renormalised, weighs one.
  const FeedForwardSpec& spec = model.layers[id.layer].feed_forward;
  traits.constant_by_nature = spec.num_experts == 1 || (spec.top_k == 1 && spec.norm_topk_prob);
  return traits;
}

/// Tokens and weights.
PreparedReference prepare_inputs(const Plan& plan, ops::Format format, const WeightSource* weights) {
  PreparedReference prepared{
      .batch = Batch(plan.workload, plan.model.vocab_size), .format = format, .weights = weights};
  if (weights == nullptr) {
    prepared.owned = std::make_unique<GeneratedWeights>(plan.workload.seed);
    prepared.weights = prepared.owned.get();
  }
  prepared.slices = std::make_unique<WeightStore<double>>(*prepared.weights, format, kWeightBytesKept);
  prepared.float_slices = std::make_unique<WeightStore<float>>(*prepared.weights, format, kWeightBytesKept);
  return prepared;
}

}  // namespace

PreparedReference prepare_reference(const Plan& plan, ops::Format format, const WeightSource* weights,
                                    const std::function<void(const TapId&)>& completed) {
  if (held_to(format) == HeldTo::whole_model) return prepare_whole_model(plan, format, weights, completed);
  PreparedReference prepared = prepare_inputs(plan, format, weights);
  prepared.held_to = HeldTo::own_inputs;
  const std::vector<bool> absorbed = absorbed_rows(plan);
  for (const TapId& id : all_taps(plan.model, tap_parts(plan))) {
    prepared.expected.add_shape(id, tap_rows(plan.model, id, plan.workload.tokens()), tap_width(plan.model, id),
                                traits_of(plan.model, prepared.batch, id, absorbed));
  }
  return prepared;
}

PreparedReference prepare_whole_model(const Plan& plan, ops::Format format, const WeightSource* weights,
                                      const std::function<void(const TapId&)>& completed) {
  const auto start = std::chrono::steady_clock::now();
  PreparedReference prepared = prepare_inputs(plan, format, weights);
  std::unordered_map<std::string, WeightSpec> specs;
  for_each_weight(plan.model, [&](const WeightSpec& spec) { specs.emplace(spec.name, spec); });
  const auto read = [&](const std::string& name, std::int64_t begin, std::int64_t count, std::vector<double>& values) {
    const WeightSpec& spec = specs.at(name);
    values.resize(static_cast<std::size_t>(count * spec.cols));
    prepared.weights->read_stored(spec, {begin, count}, {0, spec.cols}, format,
                                  ops::MatrixView<double>{values.data(), count, spec.cols});
  };
  const auto id_of = [](const reference::TapName& name) {
    return TapId{.layer = name.layer, .kind = find_tap_kind(name.name).value()};
  };
  const auto keep = [&](const reference::TapName& name, std::int64_t rows, std::int64_t cols,
                        std::vector<double>&& values) {
    const TapId id = id_of(name);
    if (completed) completed(id);
    prepared.expected.add(id, rows, cols, std::move(values), traits_of(plan.model, prepared.batch, id, {}));
  };
  const auto count_bits = [&](const reference::TapName& name, std::string_view sum, int bits) {
    add_sum(prepared.sums, id_of(name), sum, bits);
  };
  using reference::Arithmetic;
  const Arithmetic arithmetic = format == ops::Format::exact ? Arithmetic::exact : Arithmetic::float64;
  reference::forward(plan.model, prepared.batch.tokens(), prepared.batch.lengths(), read,
                     {.arithmetic = arithmetic, .on_sum = count_bits, .absorbed = absorbed_rows(plan)}, keep);
  prepared.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return prepared;
}

}  // namespace shardproof
