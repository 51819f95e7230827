// The weights of Phi-3.5-MoE's router.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "emu/judge/rounding/internal/rule.h"

namespace shardproof::rounding {
namespace {

/// The sum of exp(l - m) over the logits near m: of those that are near for certain, and of those that a rounding of
/// (m - l) / max(|l|, m), or of what nobody saw of l, may put on either side.
struct NearSum {
  double certain = 0;
  double doubtful = 0;
  double error = 0;  ///< of the exponentials
  double nominal = 0;
};

/// A difference and a quotient of the scalar, and twice the jitter as it holds it; of elementary ops, each is stored.
double share_units(const Profile& profile) {
  return 3 * profile.compute.relative + 3 * profile.step.relative;
}

class Row {
 public:
  Row(const Rule& rule, const Input& logits, std::int64_t t) : rule_(rule), logits_(logits), t_(t) {
    for (std::int64_t e = 0; e < logits.cols; ++e) left_.push_back(e);
  }

  NearSum near(double largest, double of_largest) const {
    const Profile& profile = rule_.rules().profile;
    const double band = 2 * rule_.layer().feed_forward.router_jitter;
    NearSum sum;
    for (const std::int64_t e : left_) {
      const double logit = logits_.row(t_)[e], inherited = logits_.error(t_, e) + of_largest;
      const double over = std::max(std::abs(logit), largest);
      const double share = (largest - logit) / over;
      const double term = std::exp(logit - largest);
      const double doubt = over > inherited ? share_units(profile) * (std::abs(share) + band) +
                                                  (1 + std::abs(share)) * inherited / (over - inherited)
                                            : std::numeric_limits<double>::infinity();
      // 0 / 0 is not above anything, on any side.
      const bool is_near = !(share > band);
      const bool sure = logit == largest || std::abs(share - band) > doubt;
      if (is_near) sum.nominal += term;
      if (sure && is_near) sum.certain += term;
      if (!sure) sum.doubtful += term;
      if (is_near || !sure) sum.error += term * term_error(logit - largest, inherited);
    }
    return sum;
  }
  double largest() const {
    double most = -std::numeric_limits<double>::infinity();
    for (const std::int64_t e : left_) most = std::max(most, logits_.row(t_)[e]);
    return most;
  }
  double largest_error() const {
    double most = 0;
    for (const std::int64_t e : left_) most = std::max(most, logits_.error(t_, e));
    return most;
  }
  void take(std::int64_t expert) { std::erase(left_, expert); }
  /// Relative, of an exponential and its argument.
  double term_error(double difference, double inherited) const {
    const Profile& profile = rule_.rules().profile;
    return std::expm1(profile.compute.relative * (profile.exp_units + std::abs(difference)) + inherited);
  }

 private:
  const Rule& rule_;
  const Input& logits_;
  std::int64_t t_;
  std::vector<std::int64_t> left_;  // that no earlier slot chose
};

}  // namespace

/// e / sum: the sum between that of the terms that are near for certain and that with the doubtful ones; each term off
/// by its relative error, the sum of positive terms by gamma of their number, then a quotient.
Judged judge_sparsemixer_weights(const Rule& rule) {
  const Profile& profile = rule.rules().profile;
  const Input logits = rule.input(TapKind::router_logits);
  const double rounding = gamma(static_cast<double>(logits.cols) + 1, profile.compute.relative);
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    Row row(rule, logits, t);
    for (std::int64_t slot = 0; slot < rule.layer().feed_forward.top_k; ++slot) {
      const std::int32_t expert = rule.choice()(t, slot);
      const double largest = row.largest(), of_largest = row.largest_error();
      const NearSum sum = row.near(largest, of_largest);
      const double difference = logits.row(t)[expert] - largest, term = std::exp(difference);
      const double relative = row.term_error(difference, logits.error(t, expert) + of_largest);
      const double least = std::max(sum.certain - sum.error, 0.0) * (1 - rounding);
      const double most = (sum.certain + sum.doubtful + sum.error) * (1 + rounding);
      const double value = term / sum.nominal;
      const double high = least > 0 ? term * (1 + relative) / least : std::numeric_limits<double>::infinity();
      const double low = term * (1 - relative) / most;
      const double error = std::max(high - value, value - low) + profile.compute.relative * value +
                           static_cast<double>(logits.cols + 1) * kExpFlush + profile.compute.underflow;
      comparison.element(t, slot, value, stored_error(profile, value, step_error(profile, 3, value, error)));
      row.take(expert);
    }
  }
  return std::move(comparison).finish();
}

}  // namespace shardproof::rounding
