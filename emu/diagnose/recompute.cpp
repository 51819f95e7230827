#include "emu/diagnose/recompute.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "emu/diagnose/internal/one_row.h"
#include "emu/plan/latent_form.h"
#include "ops/attention.h"
#include "ops/attention_parts.h"
#include "ops/elementwise.h"
#include "ops/expert.h"
#include "ops/latent.h"
#include "ops/linear.h"
#include "ops/norm.h"

namespace shardproof {
Recompute::Recompute(const Plan& plan, const PreparedReference& reference)
    : plan_(plan),
      mesh_(plan.parallel),
      stages_(plan.model, plan.parallel),
      reference_(reference),
      tokens_(plan.parallel, plan.workload),
      absorbed_(absorbed_rows(plan)) {
  for (int tp = 0; tp < plan.parallel.tp; ++tp) {
    layouts_by_tp_.push_back(make_layout(plan.model, mesh_, mesh_.rank_at({.tp = tp})));
  }
}

int Recompute::routing_rank(int layer, std::int64_t row) const {
  Coordinates at = tokens_.home(row).at;
  at.pp = stages_.stage_of(layer);
  return mesh_.rank_at(at);
}

TokenRows Recompute::rows_beside(std::int64_t row) const {
  const RowHome home = tokens_.home(row);
  return tokens_.rows(home.at, home.microbatch);
}

const ExpectedTap& Recompute::tap(int layer, TapKind kind) const {
  const int index = reference_.expected.find(TapId{.layer = layer, .kind = kind});
  return reference_.expected.all().at(static_cast<std::size_t>(index));
}

std::span<const double> Recompute::row(const ExpectedTap& tap, std::int64_t row) const {
  if (row < 0) {
    zeros_.resize(std::max(zeros_.size(), static_cast<std::size_t>(tap.cols)));
    return std::span(zeros_).first(static_cast<std::size_t>(tap.cols));
  }
  return std::span(tap.values).subspan(static_cast<std::size_t>(row * tap.cols), static_cast<std::size_t>(tap.cols));
}

const ExpectedTap& Recompute::norm_input(int layer, TapKind norm) const {
  if (norm == TapKind::moe_norm) return tap(layer, TapKind::attention_residual);
  const int before = norm == TapKind::final_norm ? static_cast<int>(plan_.model.layers.size()) - 1 : layer - 1;
  if (before >= 0) return tap(before, TapKind::moe_residual);
  return tap(-1, plan_.model.embedding_multiplier != 1 ? TapKind::embedding_scaled : TapKind::embedding);
}

namespace {

/// What is added to the product with a weight, where a layer has it.
std::optional<Weight> bias_of(Weight weight) {
  switch (weight) {
    case Weight::attention_q:
      return Weight::attention_q_bias;
    case Weight::attention_q_latent:
      return Weight::attention_q_latent_bias;
    case Weight::attention_kv_latent:
      return Weight::attention_kv_latent_bias;
    case Weight::attention_k:
      return Weight::attention_k_bias;
    case Weight::attention_v:
      return Weight::attention_v_bias;
    case Weight::router:
      return Weight::router_bias;
    case Weight::head:
      return Weight::head_bias;
    default:
      return std::nullopt;
  }
}

}  // namespace

LoadedWeight<double> Recompute::slice(const WeightSpec& spec, Range rows, Range cols) {
  return reference_.slices->get(spec, rows, cols);
}

namespace {

std::optional<Weight> bias_of_norm(Weight norm) {
  switch (norm) {
    case Weight::attention_norm:
      return Weight::attention_norm_bias;
    case Weight::moe_norm:
      return Weight::moe_norm_bias;
    case Weight::final_norm:
      return Weight::final_norm_bias;
    default:
      return std::nullopt;
  }
}

}  // namespace

Recompute::Row Recompute::norm(std::span<const double> x, const WeightSpec& weight, const WeightSpec* biased) {
  Row y(x.size());
  const WeightSpec& own = biased != nullptr ? *biased : weight;
  if (const auto bias = bias_of_norm(own.weight); bias && has_weight(plan_.model, *bias, own.layer)) {
    ops::layer_norm<double>(one_row(x), whole(weight).view().span(),
                            vector(weight_spec(plan_.model, *bias, own.layer), {0, own.cols}), plan_.model.rms_norm_eps,
                            format(), one_row(y));
    return y;
  }
  ops::rms_norm<double>(one_row(x), whole(weight).view().span(), plan_.model.rms_norm_eps, format(), one_row(y));
  return y;
}

Recompute::Row Recompute::project(std::span<const double> x, const WeightSpec& weight, Range rows, int bias_layer,
                                  std::int64_t bias_shift) {
  Row y(static_cast<std::size_t>(rows.count));
  const WeightSlice<double> held{reference_.slices.get(), weight, rows, {0, weight.cols}};
  held.for_each_block([&](Range outputs, const LoadedWeight<double>& loaded) {
    ops::linear<double>(one_row(x), loaded, one_row(y).col_range(outputs.begin, outputs.count));
  });
  const int from = bias_layer >= 0 ? bias_layer : weight.layer;
  if (const auto bias = bias_of(weight.weight); bias && has_weight(plan_.model, *bias, from)) {
    const WeightSpec spec = weight_spec(plan_.model, *bias, from);
    const Row values = vector(spec, {(rows.begin + bias_shift) % spec.cols, rows.count});
    for (std::size_t i = 0; i < y.size(); ++i) y[i] += values[i];
  }
  finish(y);
  if (weight.weight == Weight::head && plan_.model.logits_scaling != 1) {
    ops::divide<double>(one_row(y), plan_.model.logits_scaling, format());
  }
  return y;
}

Recompute::Row Recompute::branch(const ExpectedTap& tap, std::int64_t index) const {
  const std::span<const double> values = row(tap, index);
  Row y(values.begin(), values.end());
  if (plan_.model.residual_multiplier != 1) ops::scale<double>(one_row(y), plan_.model.residual_multiplier, format());
  return y;
}

Recompute::Row Recompute::vector(const WeightSpec& spec, Range cols) {
  const LoadedWeight<double> loaded = slice(spec, {0, 1}, cols);
  const std::span<const double> values = loaded.view().row(0);
  return {values.begin(), values.end()};
}

Recompute::Row Recompute::attend(int layer, std::int64_t query, Range keys, const HeadPair& heads) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(keys.count));
  std::iota(rows.begin(), rows.end(), keys.begin);
  return attend(layer, query, rows, heads);
}

Recompute::Row Recompute::attend(int layer, std::int64_t query, std::span<const std::int64_t> keys,
                                 const HeadPair& heads) {
  const AttentionSpec& attention = plan_.model.layers[layer].attention;
  if (is_absorbed(layer, query)) {
    return attend_absorbed(layer, query, keys, heads.query,
                           {heads.key_value, heads.key_value, attention.score_scale()});
  }
  Row out(static_cast<std::size_t>(attention.value_dim()));
  ops::AttentionOptions<double> options{
      .head_dim = attention.head_dim,
      .value_dim = attention.value_dim(),
      .scale = attention.score_scale(),
      .window = attention.sliding_window > 0 ? attention.sliding_window + heads.wider : 0};
  Row sink;
  if (attention.sinks) {
    sink = vector(weight_spec(plan_.model, Weight::attention_sinks, heads.sinks_of >= 0 ? heads.sinks_of : layer),
                  {heads.sink >= 0 ? heads.sink : heads.query, 1});
    options.sinks = sink;
  }
  const ops::AttentionSpan span{.rows = 1, .past = std::ssize(keys) - 1};
  ops::attention<double>(head_of({layer, TapKind::attention_q, heads.query}, {&query, 1}),
                         head_of({layer, TapKind::attention_k, heads.key_value}, keys),
                         head_of({layer, TapKind::attention_v, heads.key_value}, keys), {&span, 1}, 0, options,
                         format(), one_row(out));
  return out;
}

ops::Matrix<double> Recompute::head_of(const Head& of, std::span<const std::int64_t> rows) const {
  const AttentionSpec& attention = plan_.model.layers[of.layer].attention;
  const std::int64_t dim = of.kind == TapKind::attention_v ? attention.value_dim() : attention.head_dim;
  const ExpectedTap& source = tap(of.layer, of.kind);
  ops::Matrix<double> values(std::ssize(rows), dim);
  for (std::int64_t i = 0; i < values.rows(); ++i) {
    const auto from = row(source, rows[static_cast<std::size_t>(i)]).subspan(static_cast<std::size_t>(of.head * dim));
    std::ranges::copy_n(from.begin(), dim, values.row(i).begin());
  }
  return values;
}

Recompute::KeyPart Recompute::attend_to_part(int layer, std::int64_t query, std::span<const std::int64_t> keys,
                                             Range seen, const HeadPair& heads) {
  const AttentionSpec& attention = plan_.model.layers[layer].attention;
  const ops::AttentionOptions<double> options{
      .head_dim = attention.head_dim, .value_dim = attention.value_dim(), .scale = attention.score_scale()};
  const Head of_keys{layer, TapKind::attention_k, heads.key_value};
  const ops::Matrix<double> q = head_of({layer, TapKind::attention_q, heads.query}, {&query, 1});
  const ops::Matrix<double> k = head_of(of_keys, keys);
  const ops::Matrix<double> v = head_of({layer, TapKind::attention_v, heads.key_value}, keys);
  const ops::PartSpan span{.rows = 1, .keys = k.rows()};
  KeyPart part{.context = Row(static_cast<std::size_t>(attention.value_dim()), 0)};
  const ops::MatrixView<double> sum(&part.sum, 1, 1);
  if (format() != ops::Format::exact) {
    ops::attend_to_part<double>(q, k, v, {&span, 1}, options, format(), one_row(part.context), sum);
    return part;
  }
  std::vector<std::int64_t> all(static_cast<std::size_t>(seen.count));
  std::iota(all.begin(), all.end(), seen.begin);
  ops::Matrix<double> largest(1, 1);
  largest(0, 0) = -std::numeric_limits<double>::infinity();
  const ops::PartSpan of_all{.rows = 1, .keys = seen.count};
  ops::raise_maximum(q, head_of(of_keys, all), {&of_all, 1}, options, largest);
  ops::add_part(q, k, v, {&span, 1}, options, largest, one_row(part.context), sum);
  return part;
}

bool Recompute::is_absorbed(int layer, std::int64_t row) const {
  return !absorbed_.empty() && plan_.model.layers[layer].attention.latent() && absorbed_[static_cast<std::size_t>(row)];
}

namespace {

ops::LatentHead latent_head_of(const AttentionSpec& spec) {
  return {.still = spec.head_dim - spec.rope.dim, .turned = spec.rope.dim, .value_dim = spec.value_dim()};
}

}  // namespace

LoadedWeight<double> Recompute::weight_of_latent_head(int layer, std::int64_t head) {
  const AttentionSpec& spec = plan_.model.layers[layer].attention;
  const std::int64_t both = spec.head_dim - spec.rope.dim + spec.value_dim();
  return slice(weight_spec(plan_.model, Weight::attention_kv, layer), {head * both, both}, {0, spec.kv_lora_rank});
}

Recompute::Row Recompute::absorbed_query(int layer, std::int64_t query, std::int64_t head, std::int64_t keys_of) {
  const AttentionSpec& spec = plan_.model.layers[layer].attention;
  Row absorbed(static_cast<std::size_t>(spec.kv_lora_rank + spec.rope.dim));
  ops::absorb_queries<double>(head_of({layer, TapKind::attention_q, head}, {&query, 1}),
                              weight_of_latent_head(layer, keys_of), latent_head_of(spec), one_row(absorbed));
  finish(absorbed);
  return absorbed;
}

ops::Matrix<double> Recompute::latents_of(int layer, std::span<const std::int64_t> keys) const {
  const AttentionSpec& spec = plan_.model.layers[layer].attention;
  const std::int64_t still = spec.head_dim - spec.rope.dim;
  ops::Matrix<double> cached(std::ssize(keys), spec.kv_lora_rank + spec.rope.dim);
  for (std::int64_t i = 0; i < cached.rows(); ++i) {
    const std::int64_t key = keys[static_cast<std::size_t>(i)];
    const auto end =
        std::ranges::copy(row(tap(layer, TapKind::attention_kv_latent_norm), key), cached.row(i).begin()).out;
    const auto shared = row(tap(layer, TapKind::attention_k), key).subspan(static_cast<std::size_t>(still));
    std::copy_n(shared.begin(), spec.rope.dim, end);
  }
  return cached;
}

Recompute::Row Recompute::expanded(int layer, const Row& latents, std::int64_t values_of) {
  const AttentionSpec& spec = plan_.model.layers[layer].attention;
  Row context(static_cast<std::size_t>(spec.value_dim()));
  ops::expand_context<double>(one_row(std::span<const double>(latents)), weight_of_latent_head(layer, values_of),
                              latent_head_of(spec), one_row(context));
  finish(context);
  return context;
}

Recompute::Row Recompute::attend_absorbed(int layer, std::int64_t query, std::span<const std::int64_t> keys,
                                          std::int64_t head, const AbsorbedWith& with) {
  const AttentionSpec& spec = plan_.model.layers[layer].attention;
  const Row absorbed = absorbed_query(layer, query, head, with.keys_of);
  Row latents(static_cast<std::size_t>(spec.kv_lora_rank));
  const ops::AttentionSpan span{.rows = 1, .past = std::ssize(keys) - 1};
  ops::attend_to_latents<double>(one_row(std::span<const double>(absorbed)), latents_of(layer, keys), {&span, 1}, 0,
                                 latent_head_of(spec), with.scale, format(), one_row(latents));
  return expanded(layer, latents, with.values_of);
}

Recompute::Row Recompute::attend_absorbed_parts(int layer, std::int64_t query,
                                                std::span<const std::vector<std::int64_t>> parts, std::int64_t head,
                                                std::span<const double> scales) {
  const AttentionSpec& spec = plan_.model.layers[layer].attention;
  const std::int64_t rank = spec.kv_lora_rank;
  const Row absorbed = absorbed_query(layer, query, head, head);
  const ops::MatrixView<const double> q = one_row(std::span<const double>(absorbed));
  std::vector<ops::Matrix<double>> kept;
  for (const std::vector<std::int64_t>& keys : parts) kept.push_back(latents_of(layer, keys));
  const auto of_part = [&](std::size_t part, const auto& use) {
    const ops::PartSpan span{.rows = 1, .keys = kept[part].rows()};
    const ops::MatrixView<const double> k = kept[part];
    use(k, k.col_range(0, rank), std::span(&span, 1),
        ops::latent_options<double>(latent_head_of(spec), rank, scales[part]));
  };
  Row latents(static_cast<std::size_t>(rank));
  if (format() == ops::Format::exact) {
    ops::Matrix<double> largest(1, 1), denominator = ops::Matrix<double>::zeros(1, 1);
    largest(0, 0) = -std::numeric_limits<double>::infinity();
    Row numerator(latents.size(), 0);
    for (std::size_t part = 0; part < kept.size(); ++part) {
      of_part(part, [&](auto k, auto, auto spans, auto options) { ops::raise_maximum(q, k, spans, options, largest); });
    }
    for (std::size_t part = 0; part < kept.size(); ++part) {
      of_part(part, [&](auto k, auto v, auto spans, auto options) {
        ops::add_part(q, k, v, spans, options, largest, one_row(numerator), denominator);
      });
    }
    ops::divide_parts(one_row(std::span<const double>(numerator)), denominator, one_row(latents));
  } else {
    std::vector<ops::Matrix<double>> context, lse;
    for (std::size_t part = 0; part < kept.size(); ++part) {
      context.emplace_back(1, rank);
      lse.emplace_back(1, 1);
      of_part(part, [&](auto k, auto v, auto spans, auto options) {
        ops::attend_to_part<double>(q, k, v, spans, options, format(), context.back(), lse.back());
      });
    }
    std::vector<ops::AttentionPart<double>> merged;
    for (std::size_t part = 0; part < kept.size(); ++part) {
      merged.push_back({std::as_const(context[part]).view(), std::as_const(lse[part]).view()});
    }
    ops::merge_parts<double>(merged, format(), one_row(latents));
  }
  return expanded(layer, latents, head);
}

Recompute::Row Recompute::attend_to_parts(int layer, std::int64_t row_index,
                                          std::span<const std::vector<std::int64_t>> parts, const HeadPair& heads,
                                          bool weighed, std::span<const std::int64_t> beside) {
  const AttentionSpec& attention = plan_.model.layers[layer].attention;
  if (is_absorbed(layer, row_index) && weighed && beside.empty()) {
    std::vector<std::int64_t> keys;
    for (const std::vector<std::int64_t>& part : parts) keys.insert(keys.end(), part.begin(), part.end());
    if (keys.empty()) return Row(static_cast<std::size_t>(attention.value_dim()), 0);
    return attend(layer, row_index, keys, heads);
  }
  const std::span<const double> q = row(tap(layer, TapKind::attention_q), row_index)
                                        .subspan(static_cast<std::size_t>(heads.query * attention.head_dim),
                                                 static_cast<std::size_t>(attention.head_dim));
  const bool exact = format() == ops::Format::exact;
  std::vector<std::vector<double>> scores;
  double largest = -std::numeric_limits<double>::infinity();
  if (attention.sinks) {
    largest = vector(weight_spec(plan_.model, Weight::attention_sinks, layer), {heads.query, 1}).front();
  }
  const double sink = largest;
  const auto score_of = [&](std::int64_t key) {
    const double* k = row(tap(layer, TapKind::attention_k), key).data() + heads.key_value * attention.head_dim;
    double dot = 0;
    for (std::size_t i = 0; i < q.size(); ++i) dot += q[i] * k[i];
    double score = dot * attention.score_scale();
    if (exact) score = std::nearbyint(score / ops::kActivationStep) * ops::kActivationStep;
    largest = std::max(largest, score);
    return score;
  };
  for (const std::vector<std::int64_t>& keys : parts) {
    std::vector<double>& of_part = scores.emplace_back();
    for (const std::int64_t key : keys) of_part.push_back(score_of(key));
  }
  for (const std::int64_t key : beside) score_of(key);
  const auto term = [&](double score) {
    const double value = std::exp(score - largest);
    return exact ? std::nearbyint(value / ops::kExpStep) * ops::kExpStep : value;
  };
  Row context(static_cast<std::size_t>(attention.value_dim()), 0);
  double denominator = attention.sinks ? term(sink) : 0;
  for (std::size_t part = 0; part < parts.size(); ++part) {
    Row numerator(context.size(), 0);
    double sum = 0;
    for (std::size_t j = 0; j < parts[part].size(); ++j) {
      const double p = term(scores[part][j]);
      const double* v =
          row(tap(layer, TapKind::attention_v), parts[part][j]).data() + heads.key_value * attention.value_dim();
      for (std::size_t i = 0; i < context.size(); ++i) numerator[i] += p * v[i];
      sum += p;
    }
    if (sum == 0) continue;
    for (std::size_t i = 0; i < context.size(); ++i) context[i] += weighed ? numerator[i] : numerator[i] / sum;
    denominator += weighed ? sum : 1;
  }
  for (double& value : context) value = denominator == 0 ? 0 : value / denominator;
  finish(context);
  return context;
}

Recompute::Row Recompute::attention_partial_sum(int layer, std::int64_t row_index, int tp, const WeightsFrom& from) {
  const std::int64_t dim = plan_.model.layers[layer].attention.value_dim();
  const Range heads = layouts_by_tp_[static_cast<std::size_t>(tp)].layer(plan_.model, layer).heads;
  const Range held = layouts_by_tp_[static_cast<std::size_t>(from.tp)].layer(plan_.model, layer).heads;
  const WeightSpec spec = weight_spec(plan_.model, Weight::attention_output, from.layer);
  const LoadedWeight<double> w = slice(spec, {0, spec.rows}, {held.begin * dim, held.count * dim});
  const std::span<const double> context = row(tap(layer, TapKind::attention_context), row_index);
  Row y(static_cast<std::size_t>(plan_.model.hidden_size));
  ops::linear<double>(one_row(context.subspan(static_cast<std::size_t>(heads.begin * dim),
                                              static_cast<std::size_t>(heads.count * dim))),
                      w, one_row(y));
  if (tp == 0 && has_weight(plan_.model, Weight::attention_output_bias, layer)) {
    const Row bias = vector(weight_spec(plan_.model, Weight::attention_output_bias, from.bias >= 0 ? from.bias : layer),
                            {0, std::ssize(y)});
    for (std::size_t i = 0; i < y.size(); ++i) y[i] += bias[i];
  }
  return y;
}

namespace {

/// A weight's slice, or what is loaded in its place.
struct Loaded {
  WeightSpec spec;
  Range rows;
  Range cols;
};
Loaded loaded(WeightSpec spec, Range rows, Range cols, const SliceEdit& loads) {
  if (loads) loads(spec, rows, cols);
  return {std::move(spec), rows, cols};
}

}  // namespace

Recompute::Row Recompute::mlp_partial_sum(int layer, std::int64_t row_index, int tp, const SliceEdit& loads) {
  const Range part = layouts_by_tp_[static_cast<std::size_t>(tp)].layer(plan_.model, layer).mlp_size;
  const Range hidden{0, plan_.model.hidden_size};
  const auto weight = [&](Weight which, Range rows, Range cols) {
    const Loaded from = loaded(weight_spec(plan_.model, which, layer), rows, cols, loads);
    return slice(from.spec, from.rows, from.cols);
  };
  const std::span<const double> x = row(tap(layer, TapKind::moe_norm), row_index);
  Row y(static_cast<std::size_t>(hidden.count));
  ops::expert<double>(one_row(x), weight(Weight::mlp_gate, part, hidden), weight(Weight::mlp_up, part, hidden),
                      weight(Weight::mlp_down, hidden, part), format(), one_row(y));
  return y;
}

Recompute::Row Recompute::embedding_partial_sum(std::int64_t row_index, int tp) {
  const Range held = layouts_by_tp_[static_cast<std::size_t>(tp)].vocabulary;
  const std::int32_t id = batch().tokens()[static_cast<std::size_t>(row_index)];
  if (id < held.begin || id >= held.end()) return Row(static_cast<std::size_t>(plan_.model.hidden_size), 0.0);
  const LoadedWeight<double> row =
      slice(weight_spec(plan_.model, Weight::embedding), {id, 1}, {0, plan_.model.hidden_size});
  const std::span<const double> values = row.view().row(0);
  return {values.begin(), values.end()};
}

void Recompute::run_expert(int layer, ops::MatrixView<const double> x, const ExpertFrom& from, const ExpertSlice& part,
                           const SliceEdit& loads, ops::MatrixView<double> y) {
  const ModelConfig& model = plan_.model;
  const FeedForwardSpec& feed_forward = model.layers[layer].feed_forward;
  const Range hidden{0, model.hidden_size};
  const auto weight = [&](Weight which, Range rows, Range cols) {
    const Loaded held = loaded(weight_spec(model, which, from.layer, static_cast<int>(from.expert)), rows, cols, loads);
    return slice(held.spec, held.rows, held.cols);
  };
  const auto bias = [&](Weight which, Range cols) {
    const LoadedWeight<double> values = weight(which, {0, 1}, cols);
    return Row(values.view().row(0).begin(), values.view().row(0).end());
  };
  ops::ExpertOptions<double> options{.swiglu_limit = feed_forward.swiglu_limit};
  Row gate_bias, up_bias, down_bias;
  if (feed_forward.expert_bias) {
    options.gate_bias = gate_bias = bias(Weight::expert_gate_bias, part.gate_up);
    options.up_bias = up_bias = bias(Weight::expert_up_bias, part.gate_up);
    if (part.adds_bias) options.down_bias = down_bias = bias(Weight::expert_down_bias, hidden);
  }
  ops::expert<double>(x, weight(Weight::expert_gate, part.gate_up, hidden),
                      weight(Weight::expert_up, part.gate_up, hidden), weight(Weight::expert_down, hidden, part.down),
                      format(), y, {}, options);
}

std::span<const double> Recompute::expert_partial_sum(int layer, std::int64_t row_index, const ExpertFrom& from,
                                                      const EtpSlices& slices) {
  const int on = slices.on >= 0 ? slices.on : slices.down;
  ops::Matrix<double>& y = experts_[{layer, from.layer, from.expert, slices.gate_up, slices.down, on}];
  if (y.rows() == 0) {
    const std::int64_t width = plan_.model.layers[layer].feed_forward.intermediate_size;
    const ExpertSlice part{.gate_up = partition(width, plan_.parallel.etp, slices.gate_up),
                           .down = partition(width, plan_.parallel.etp, slices.down),
                           .adds_bias = on == 0};
    const ExpectedTap& x = tap(layer, TapKind::moe_norm);
    y = ops::Matrix<double>(x.rows, x.cols);
    run_expert(layer, {x.values.data(), x.rows, x.cols}, from, part, {}, y);
  }
  return std::as_const(y).row(row_index);
}

Recompute::Row Recompute::expert_partial_sum(int layer, std::int64_t row_index, std::int64_t expert, int etp,
                                             const SliceEdit& loads) {
  const Range part = partition(plan_.model.layers[layer].feed_forward.intermediate_size, plan_.parallel.etp, etp);
  Row y(static_cast<std::size_t>(plan_.model.hidden_size));
  run_expert(layer, one_row(row(tap(layer, TapKind::moe_norm), row_index)), {layer, expert},
             {.gate_up = part, .down = part, .adds_bias = etp == 0}, loads, one_row(y));
  return y;
}

Recompute::Row Recompute::expert_output(int layer, std::int64_t row_index, const ExpertFrom& from) {
  Row sum(static_cast<std::size_t>(plan_.model.hidden_size), 0.0);
  for (int t = 0; t < plan_.parallel.etp; ++t) {
    const std::span<const double> partial = expert_partial_sum(layer, row_index, from, {.gate_up = t, .down = t});
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += partial[i];
  }
  finish(sum);
  return sum;
}

void Recompute::clip(Row& values, double limit) const {
  if (limit == 0) return;
  Row most{limit};
  finish(most);
  for (double& value : values) value = std::clamp(value, -most[0], most[0]);
}

void Recompute::finish(Row& values) const {
  ops::round_to<double>(values, format());
}

}  // namespace shardproof
