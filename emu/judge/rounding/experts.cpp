#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "emu/judge/rounding/internal/rule.h"

namespace shardproof::rounding {

using reference::Tensor;

namespace {

/// The slope of a sigmoid is a quarter at most, that of x times the sigmoid of x less than this, whatever factor its
/// argument has.
constexpr double kSwishSlope = 1.1;

/// Of a sigmoid: the exponential, a sum, a quotient.
double score_units(const Profile& profile) {
  return profile.exp_units + 2;
}

double score_error(const Profile& profile, double score) {
  const double error = gamma(score_units(profile), profile.compute.relative) * score + kExpFlush;
  return step_error(profile, 1, score, error + profile.compute.underflow);
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
/// Of elementary ops, the argument, the sigmoid, its product with g, and u + 1 are stored.
Judged judge_clamped_activation(const Rule& rule, const Input& gate, const Input& up, double limit) {
  const Profile& profile = rule.rules().profile;
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < gate.rows; ++t) {
    for (std::int64_t i = 0; i < gate.cols; ++i) {
      const double g = std::min(gate.row(t)[i], limit), u = std::clamp(up.row(t)[i], -limit, limit);
      const double value = (u + 1) * (g / (1 + std::exp(-1.702 * g)));
      const double of_gate = gate.error(t, i), of_up = up.error(t, i), opened = std::abs(u + 1) + of_up;
      const double inherited = kSwishSlope * of_gate * opened + std::abs(g / (1 + std::exp(-1.702 * g))) * of_up;
      const double argument = gamma(1, 2 * profile.compute.relative + profile.step.relative);
      const double exponent = std::expm1(argument * (std::abs(1.702 * g) + 1.702 * of_gate) + profile.step.underflow);
      const double relative = (1 + gamma(profile.exp_units + 4, profile.compute.relative)) * (1 + exponent) - 1;
      const double error = inherited + relative * (std::abs(value) + inherited) + std::abs(g * (u + 1)) * kExpFlush +
                           (2 + std::abs(u)) * profile.compute.underflow;
      const double underflow = profile.step.underflow * (1 + std::abs(g)) * opened;
      comparison.element(t, i, value, stored_error(profile, value, step_error(profile, 3, value, error) + underflow));
    }
  }
  return std::move(comparison).finish();
}

}  // namespace

namespace {

/// What the experts are chosen by, and how far apart the scores of two of a row have to be for it to matter: what
/// nobody saw of them, and the rounding of what others make of logits before they choose.
struct Scores {
  Input values;
  std::vector<double> tie;  ///< by row
};

Scores scores_of(const Rule& rule) {
  const bool sigmoids = rule.layer().feed_forward.scoring == Scoring::sigmoid;
  const Profile& profile = rule.rules().profile;
  Scores scores{rule.input(sigmoids ? TapKind::router_scores : TapKind::router_logits), {}};
  for (std::int64_t t = 0; t < scores.values.rows; ++t) {
    double error = 0, largest = 0;
    for (std::int64_t e = 0; e < scores.values.cols; ++e) {
      error = std::max(error, scores.values.error(t, e));
      largest = std::max(largest, std::abs(scores.values.row(t)[e]));
    }
    // exp(l - max) / sum, in the scalar: the same of both, but for the difference and the exponential.
    const double softmax = profile.kind == RoundingProfile::ours || sigmoids
                               ? 0
                               : 2 * profile.compute.relative * (2 * largest + profile.exp_units + 2);
    scores.tie.push_back(2 * error + softmax);
  }
  return scores;
}

std::vector<std::int64_t> sorted_row(const double* row, std::int64_t count) {
  std::vector<std::int64_t> sorted;
  for (std::int64_t i = 0; i < count; ++i) sorted.push_back(static_cast<std::int64_t>(row[i]));
  std::ranges::sort(sorted);
  return sorted;
}

/// How clear the choice of a row is: the least difference of scores that decided it.
double margin_of(const double* scores, const double* chosen, const FeedForwardSpec& spec) {
  const auto is_chosen = [&](std::int64_t e) {
    return std::find(chosen, chosen + spec.top_k, static_cast<double>(e)) != chosen + spec.top_k;
  };
  double margin = std::numeric_limits<double>::infinity();
  std::vector<bool> open(static_cast<std::size_t>(spec.num_experts), true);
  if (spec.groups > 1) {
    const std::int64_t size = spec.num_experts / spec.groups;
    const std::vector<double> best = group_scores(scores, spec, true);
    std::vector<double> sorted = best;
    std::ranges::sort(sorted, std::greater<>());
    const auto kept = static_cast<std::size_t>(spec.top_groups);
    if (kept < sorted.size()) margin = (sorted[kept - 1] - sorted[kept]) / 2;
    for (std::int64_t e = 0; e < spec.num_experts; ++e) {
      open[static_cast<std::size_t>(e)] = best[static_cast<std::size_t>(e / size)] >= sorted[kept - 1];
    }
  }
  for (std::int64_t e = 0; e < spec.num_experts; ++e) {
    if (is_chosen(e) || !open[static_cast<std::size_t>(e)]) continue;
    for (std::int64_t slot = 0; slot < spec.top_k; ++slot) {
      margin = std::min(margin, scores[static_cast<std::int64_t>(chosen[slot])] - scores[e]);
    }
  }
  return margin;
}

}  // namespace

std::optional<ops::Matrix<std::int32_t>> clear_choice(const Rule& rule) {
  const FeedForwardSpec& spec = rule.layer().feed_forward;
  const Scores scores = scores_of(rule);
  const Tensor choice = chosen_by(scores.values, spec, true);
  ops::Matrix<std::int32_t> ids(choice.rows, choice.cols);
  for (std::int64_t t = 0; t < choice.rows; ++t) {
    const double* row = scores.values.row(t);
    if (!std::all_of(row, row + scores.values.cols, [](double score) { return std::isfinite(score); })) return {};
    if (!(margin_of(row, choice.row(t), spec) > scores.tie[static_cast<std::size_t>(t)])) return {};
    for (std::int64_t slot = 0; slot < spec.top_k; ++slot) {
      ids(t, slot) = static_cast<std::int32_t>(choice.row(t)[slot]);
    }
  }
  return ids;
}

/// The choice must be that of the run's own logits, in their order. Of other people's programs it may be in any order,
/// and any where the scores are too close to call.
Judged judge_choice(const Rule& rule) {
  const FeedForwardSpec& spec = rule.layer().feed_forward;
  const bool ours = rule.rules().profile.kind == RoundingProfile::ours;
  const Scores scores = scores_of(rule);
  const Tensor& logits = scores.values;
  const Tensor choice = chosen_by(logits, spec, rule.rules().format == ops::Format::fp64);
  Judged judged{.done = true};
  const double infinite = std::numeric_limits<double>::infinity();
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    const auto finite = [](double value) { return std::isfinite(value); };
    if (!std::all_of(logits.row(t), logits.row(t) + logits.cols, finite)) {
      if (judged.not_finite.empty()) judged.not_finite = "the router's logits are not finite";
      continue;
    }
    std::vector<double> chosen;
    for (const std::int32_t id : rule.got().ids.row(t)) chosen.push_back(id);
    if (!ours) {
      const bool same_set = sorted_row(chosen.data(), spec.top_k) == sorted_row(choice.row(t), spec.top_k);
      if (same_set || margin_of(logits.row(t), choice.row(t), spec) <= scores.tie[static_cast<std::size_t>(t)])
        continue;
    }
    for (std::int64_t slot = 0; slot < spec.top_k; ++slot) {
      const double expected = choice.row(t)[slot], got = chosen[static_cast<std::size_t>(slot)];
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
  const Input logits = rule.input(TapKind::router_logits);
  // Others keep it in float whatever the format.
  const bool in_float = profile.kind != RoundingProfile::ours && ops::bytes_per_element(rule.rules().format) < 4;
  const std::vector<double> bias =
      vector_in(rule, Weight::router_selection_bias, -1, in_float ? ops::Format::fp32 : rule.rules().format);
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    for (std::int64_t e = 0; e < logits.cols; ++e) {
      const double score = 1 / (1 + std::exp(-logits.row(t)[e]));
      const double error = score_error(profile, score);
      const double value = bias.empty() ? score : score + bias[static_cast<std::size_t>(e)];
      const double sum = bias.empty() ? 0 : profile.compute.relative * (std::abs(value) + error);
      comparison.element(t, e, value, step_error(profile, bias.empty() ? 0 : 1, value, error + sum));
    }
  }
  return std::move(comparison).finish();
}

/// w = scale s / (sum of the chosen s + 1e-20): scores, all positive, k sums, a quotient; the scale and its product. Of
/// elementary ops, the scores, their sum and the quotient are stored.
Judged judge_sigmoid_weights(const Rule& rule) {
  const Profile& profile = rule.rules().profile;
  const FeedForwardSpec& spec = rule.layer().feed_forward;
  const Tensor logits = rule.input(TapKind::router_logits);
  const double operations =
      score_units(profile) + 2 + (spec.norm_topk_prob ? score_units(profile) + static_cast<double>(spec.top_k) + 3 : 0);
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    const auto score = [&](std::int64_t slot) { return 1 / (1 + std::exp(-logits.row(t)[rule.choice()(t, slot)])); };
    double sum = spec.norm_topk_prob ? 1e-20 : 1;
    for (std::int64_t slot = 0; spec.norm_topk_prob && slot < spec.top_k; ++slot) sum += score(slot);
    for (std::int64_t slot = 0; slot < spec.top_k; ++slot) {
      const double value = spec.routed_scaling_factor * score(slot) / sum;
      const double flushed = spec.routed_scaling_factor * kExpFlush * static_cast<double>(spec.top_k + 1) / sum;
      const double error = gamma(operations, profile.compute.relative) * value + flushed + profile.compute.underflow;
      comparison.element(t, slot, value, stored_error(profile, value, step_error(profile, 4, value, error)));
    }
  }
  return std::move(comparison).finish();
}

/// w_i = e_i / sum e, e_i = exp(l_i - largest): the difference is rounded, then the exponential; the terms of the sum
/// are positive, so that it is off by their relative errors, each as far as it counts. Of elementary ops, the terms,
/// their sum and the quotient are stored.
Judged judge_router_weights(const Rule& rule) {
  if (rule.layer().feed_forward.scoring == Scoring::sigmoid) return judge_sigmoid_weights(rule);
  if (rule.layer().feed_forward.scoring == Scoring::sparsemixer) return judge_sparsemixer_weights(rule);
  const Profile& profile = rule.rules().profile;
  const FeedForwardSpec& spec = rule.layer().feed_forward;
  const Tensor logits = rule.input(TapKind::router_logits);
  const double u = profile.compute.relative;
  const auto summed = static_cast<double>(spec.norm_topk_prob ? spec.top_k : spec.num_experts);
  const auto error_of = [&](double difference) { return std::expm1(u * (profile.exp_units - difference)); };
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
      comparison.element(t, slot, value, stored_error(profile, value, step_error(profile, 3, value, error)));
    }
  }
  return std::move(comparison).finish();
}

/// g / (1 + exp(-g)) * u: the exponential, a sum, a quotient, a product. Of elementary ops, the first factor is stored.
Judged judge_activation(const Rule& rule, const Input& gate, const Input& up, double limit) {
  if (limit > 0) return judge_clamped_activation(rule, gate, up, limit);
  const Profile& profile = rule.rules().profile;
  const double relative = gamma(profile.exp_units + 3, profile.compute.relative);
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < gate.rows; ++t) {
    for (std::int64_t i = 0; i < gate.cols; ++i) {
      const double g = gate.row(t)[i], u = up.row(t)[i];
      const double value = g / (1 + std::exp(-g)) * u;
      const double of_gate = gate.error(t, i), of_up = up.error(t, i), whole_up = std::abs(u) + of_up;
      const double inherited = kSwishSlope * of_gate * whole_up + std::abs(g / (1 + std::exp(-g))) * of_up;
      const double error = inherited + relative * (std::abs(value) + inherited) +
                           (std::abs(g) + of_gate) * whole_up * kExpFlush + (1 + whole_up) * profile.compute.underflow;
      const double stepped = step_error(profile, 1, value, error) + profile.step.underflow * whole_up;
      comparison.element(t, i, value, stored_error(profile, value, stepped));
    }
  }
  return std::move(comparison).finish();
}

Judged judge_gated(const Rule& rule, const Input& x, const Input& logits) {
  const Profile& profile = rule.rules().profile;
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const double open = 1 / (1 + std::exp(-logits.row(t)[0]));
    for (std::int64_t i = 0; i < x.cols; ++i) {
      const double value = x.row(t)[i] * open;
      // Of the factor, and of its product.
      const double inherited = open * x.error(t, i) + (std::abs(x.row(t)[i]) + x.error(t, i)) * logits.error(t, 0) / 4;
      const double of_gate = inherited + (std::abs(x.row(t)[i]) + x.error(t, i)) * score_error(profile, open);
      const double error = of_gate + profile.compute.relative * (std::abs(value) + of_gate) + profile.compute.underflow;
      comparison.element(t, i, value, stored_error(profile, value, error));
    }
  }
  return std::move(comparison).finish();
}

}  // namespace shardproof::rounding
