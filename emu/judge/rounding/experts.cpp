#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "emu/judge/rounding/internal/rule.h"

namespace shardproof::rounding {

using reference::Tensor;

namespace {

/// Of a sigmoid: the exponential, a sum, a quotient.
constexpr double kScoreUnits = kExpUnits + 2;

double score_error(const Profile& profile, double score) {
  return gamma(kScoreUnits, profile.compute.relative) * score + kExpFlush + profile.compute.underflow;
}

/// How good the groups are: the sum of the two best scores is one operation of the scalar.
std::vector<double> group_scores(const double* scores, const FeedForwardSpec& spec, bool in_double) {
  const std::int64_t size = spec.num_experts / spec.groups;
  std::vector<double> best;
  for (std::int64_t group = 0; group < spec.groups; ++group) {
    std::vector<double> sorted(scores + group * size, scores + (group + 1) * size);
    std::ranges::sort(sorted, std::greater<>());
    const bool two = spec.scoring == Scoring::sigmoid && size > 1;
    const double sum = two ? sorted[0] + sorted[1] : sorted[0];
    best.push_back(in_double ? sum : static_cast<double>(static_cast<float>(sum)));
  }
  return best;
}

/// The experts that scores choose, [tokens, top_k]: ties to the lower one.
Tensor chosen_by(const Tensor& scores, const FeedForwardSpec& spec, bool in_double) {
  Tensor choice(scores.rows, spec.top_k);
  const std::int64_t size = spec.num_experts / std::max<std::int64_t>(spec.groups, 1);
  for (std::int64_t t = 0; t < scores.rows; ++t) {
    std::vector<std::int64_t> order(static_cast<std::size_t>(scores.cols));
    std::iota(order.begin(), order.end(), std::int64_t{0});
    if (spec.groups > 1) {
      const std::vector<double> best = group_scores(scores.row(t), spec, in_double);
      std::vector<std::int64_t> groups(best.size());
      std::iota(groups.begin(), groups.end(), std::int64_t{0});
      std::ranges::stable_sort(groups, std::greater<>(),
                               [&](std::int64_t g) { return best[static_cast<std::size_t>(g)]; });
      groups.resize(static_cast<std::size_t>(spec.top_groups));
      std::erase_if(order, [&](std::int64_t e) { return std::ranges::find(groups, e / size) == groups.end(); });
    }
    std::ranges::stable_sort(order, std::greater<>(), [&](std::int64_t e) { return scores.row(t)[e]; });
    for (std::int64_t slot = 0; slot < spec.top_k; ++slot) {
      choice.row(t)[slot] = static_cast<double>(order[static_cast<std::size_t>(slot)]);
    }
  }
  return choice;
}

/// (u + 1) g / (1 + exp(-1.702 g)): the factor and its product with g move the exponent by 2 units of it; then the
/// exponential, two sums, a quotient, a product.
Judged judge_clamped_activation(const Rule& rule, const Tensor& gate, const Tensor& up, double limit) {
  const Profile& profile = rule.rules().profile;
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < gate.rows; ++t) {
    for (std::int64_t i = 0; i < gate.cols; ++i) {
      const double g = std::min(gate.row(t)[i], limit), u = std::clamp(up.row(t)[i], -limit, limit);
      const double value = (u + 1) * (g / (1 + std::exp(-1.702 * g)));
      const double exponent = std::expm1(gamma(2, profile.compute.relative) * std::abs(1.702 * g));
      const double relative = (1 + gamma(kExpUnits + 4, profile.compute.relative)) * (1 + exponent) - 1;
      const double error = relative * std::abs(value) + std::abs(g * (u + 1)) * kExpFlush +
                           (2 + std::abs(u)) * profile.compute.underflow;
      comparison.element(t, i, value, stored_error(profile, value, error));
    }
  }
  return std::move(comparison).finish();
}

}  // namespace

/// The choice must be that of the run's own logits, in their order.
Judged judge_choice(const Rule& rule) {
  const FeedForwardSpec& spec = rule.layer().feed_forward;
  const bool sigmoids = spec.scoring == Scoring::sigmoid;
  const Tensor logits = rule.input(sigmoids ? TapKind::router_scores : TapKind::router_logits);
  const Tensor choice = chosen_by(logits, spec, rule.rules().format == ops::Format::fp64);
  Judged judged{.done = true};
  const double infinite = std::numeric_limits<double>::infinity();
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    const auto finite = [](double value) { return std::isfinite(value); };
    if (!std::all_of(logits.row(t), logits.row(t) + logits.cols, finite)) {
      if (judged.not_finite.empty()) judged.not_finite = "the router's logits are not finite";
      continue;
    }
    for (std::int64_t slot = 0; slot < spec.top_k; ++slot) {
      const double expected = choice.row(t)[slot], got = rule.got().ids(t, slot);
      if (expected == got) continue;
      const WorstElement element{infinite, 0, infinite, t, slot, expected, got};
      if (judged.wrong.empty()) judged.worst = element;
      judged.wrong.emplace(std::pair{t, std::int64_t{0}}, element);
    }
  }
  return judged;
}

/// 1 / (1 + exp(-l)): the exponential, a sum, a quotient; with the bias one sum more. Not stored.
Judged judge_router_scores(const Rule& rule) {
  const Profile& profile = rule.rules().profile;
  const Tensor logits = rule.input(TapKind::router_logits);
  const std::vector<double> bias = vector_of(rule, Weight::router_selection_bias);
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    for (std::int64_t e = 0; e < logits.cols; ++e) {
      const double score = 1 / (1 + std::exp(-logits.row(t)[e]));
      const double error = score_error(profile, score);
      const double value = bias.empty() ? score : score + bias[static_cast<std::size_t>(e)];
      const double sum = bias.empty() ? 0 : profile.compute.relative * (std::abs(value) + error);
      comparison.element(t, e, value, error + sum);
    }
  }
  return std::move(comparison).finish();
}

/// w = scale s / (sum of the chosen s + 1e-20): scores, all positive, k sums, a quotient; the scale and its product.
Judged judge_sigmoid_weights(const Rule& rule) {
  const Profile& profile = rule.rules().profile;
  const FeedForwardSpec& spec = rule.layer().feed_forward;
  const Tensor logits = rule.input(TapKind::router_logits);
  const double operations =
      kScoreUnits + 2 + (spec.norm_topk_prob ? kScoreUnits + static_cast<double>(spec.top_k) + 3 : 0);
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    const auto score = [&](std::int64_t slot) { return 1 / (1 + std::exp(-logits.row(t)[rule.choice()(t, slot)])); };
    double sum = spec.norm_topk_prob ? 1e-20 : 1;
    for (std::int64_t slot = 0; spec.norm_topk_prob && slot < spec.top_k; ++slot) sum += score(slot);
    for (std::int64_t slot = 0; slot < spec.top_k; ++slot) {
      const double value = spec.routed_scaling_factor * score(slot) / sum;
      const double flushed = spec.routed_scaling_factor * kExpFlush * static_cast<double>(spec.top_k + 1) / sum;
      const double error = gamma(operations, profile.compute.relative) * value + flushed + profile.compute.underflow;
      comparison.element(t, slot, value, stored_error(profile, value, error));
    }
  }
  return std::move(comparison).finish();
}

/// w_i = e_i / sum e, e_i = exp(l_i - largest): the difference is rounded, then the exponential; the terms of the sum
/// are positive, so that it is off by their relative errors, each as far as it counts.
Judged judge_router_weights(const Rule& rule) {
  if (rule.layer().feed_forward.scoring == Scoring::sigmoid) return judge_sigmoid_weights(rule);
  const Profile& profile = rule.rules().profile;
  const FeedForwardSpec& spec = rule.layer().feed_forward;
  const Tensor logits = rule.input(TapKind::router_logits);
  const double u = profile.compute.relative;
  const auto summed = static_cast<double>(spec.norm_topk_prob ? spec.top_k : spec.num_experts);
  const auto error_of = [&](double difference) { return std::expm1(u * (kExpUnits - difference)); };
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    const double* logit = logits.row(t);
    const double largest = *std::max_element(logit, logit + logits.cols);
    double sum = 0, sum_error = 0;
    const auto add = [&](double value) {
      sum += std::exp(value - largest);
      sum_error += std::exp(value - largest) * error_of(value - largest);
    };
    if (spec.norm_topk_prob) {
      for (const std::int32_t expert : rule.choice().row(t)) add(logit[expert]);
    } else {
      for (std::int64_t expert = 0; expert < logits.cols; ++expert) add(logit[expert]);
    }
    for (std::int64_t slot = 0; slot < spec.top_k; ++slot) {
      const double difference = logit[rule.choice()(t, slot)] - largest;
      const double scale = spec.routed_scaling_factor, value = scale * std::exp(difference) / sum;
      // The scale, where there is one, is rounded itself.
      const double relative = (1 + error_of(difference)) * (1 + gamma(summed + (scale != 1 ? 3 : 1), u)) /
                                  std::max(0.5, 1 - sum_error / sum) -
                              1;
      const double error = relative * value + (summed + 1) * scale * kExpFlush + profile.compute.underflow;
      comparison.element(t, slot, value, stored_error(profile, value, error));
    }
  }
  return std::move(comparison).finish();
}

/// g / (1 + exp(-g)) * u: the exponential, a sum, a quotient, a product.
Judged judge_activation(const Rule& rule, const Tensor& gate, const Tensor& up, double limit) {
  if (limit > 0) return judge_clamped_activation(rule, gate, up, limit);
  const Profile& profile = rule.rules().profile;
  const double relative = gamma(kExpUnits + 3, profile.compute.relative);
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < gate.rows; ++t) {
    for (std::int64_t i = 0; i < gate.cols; ++i) {
      const double g = gate.row(t)[i], u = up.row(t)[i];
      const double value = g / (1 + std::exp(-g)) * u;
      const double error =
          relative * std::abs(value) + std::abs(g * u) * kExpFlush + (1 + std::abs(u)) * profile.compute.underflow;
      comparison.element(t, i, value, stored_error(profile, value, error));
    }
  }
  return std::move(comparison).finish();
}

Judged judge_gated(const Rule& rule, const Tensor& x, const Tensor& logits) {
  const Profile& profile = rule.rules().profile;
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const double open = 1 / (1 + std::exp(-logits.row(t)[0]));
    for (std::int64_t i = 0; i < x.cols; ++i) {
      const double value = x.row(t)[i] * open;
      // Of the factor, and of its product.
      const double of_gate = std::abs(x.row(t)[i]) * score_error(profile, open);
      const double error = of_gate + profile.compute.relative * (std::abs(value) + of_gate) + profile.compute.underflow;
      comparison.element(t, i, value, stored_error(profile, value, error));
    }
  }
  return std::move(comparison).finish();
}

}  // namespace shardproof::rounding
