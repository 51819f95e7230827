// How far rounding may take a result: forward error bounds that hold for any order of summation.
//
// The model of arithmetic is the standard one with underflow (Higham, Accuracy and Stability of Numerical Algorithms,
// 2nd ed. 2002, (2.8)): fl(z) = z (1 + d) + e, |d| <= u, |e| <= half the spacing of the subnormal numbers, e only
// where a product, a quotient or a store underflows: a sum never does. A product of k factors (1 + d)^(+-1) is
// 1 + theta with |theta| <= gamma(k) = k u / (1 - k u) (Lemma 3.1), hence, whatever the order of the sum (3.5):
//   |fl(sum a_i b_i) - sum a_i b_i| <= gamma(K) sum |a_i b_i| + K e,  K terms.
//
// A rounding profile says where a program rounds. `ours` is that of the ops (ops/): an op computes in its scalar
// (float, or double for fp64) and rounds each stored value once to the run's format. Fused or not, blocked or not: a
// fused product and sum rounds once where the bound allows twice. Of other people's programs, in which exponentials and
// angles are taken less exactly and reductions round wherever they send or add:
//   fused   one kernel an op: as ours, but attention's probabilities are rounded to the format before they meet values
//   eager   one rounding an elementary op (a product, a sum, an activation, a cast) to the format. Sums of products,
//           the mean of a norm and the softmax are taken in the scalar.
//
// What a result is held to is computed in double. Its own error obeys the same bounds with u = 2^-53, and
// gamma(k, u) + gamma(k, v) <= gamma(k, u + v): every relative unit here is that of the format's scalar plus 2^-53.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string_view>

#include "collectives/options.h"
#include "ops/format.h"

namespace shardproof::rounding {

/// Of one operation or one store: fl(z) = z (1 + d) + e, |d| <= relative, |e| <= underflow.
struct Unit {
  double relative = 0;
  double underflow = 0;
};

enum class RoundingProfile { ours, fused, eager };
/// "ours", "fused", "eager".
std::string_view to_string(RoundingProfile profile);
std::optional<RoundingProfile> parse_rounding_profile(std::string_view name);

struct Profile {
  RoundingProfile kind = RoundingProfile::ours;
  Unit compute;               ///< of an operation of the scalar
  Unit store;                 ///< of a value that is rounded to the format; zero where the scalar is stored as it is
  double largest = 0;         ///< finite value of the format
  double largest_scalar = 0;  ///< and of the scalar
  Unit step = {};             ///< of an elementary op inside an op, beside that of the scalar: a store, or nothing
  Unit probability = {};      ///< the same of attention's probabilities
  double exp_units = 0;       ///< kExpUnits, or kFastExpUnits
};

Profile profile_of(ops::Format format, RoundingProfile kind = RoundingProfile::ours);

/// k u / (1 - k u); infinite from k u = 1 on.
inline double gamma(double count, double relative) {
  const double total = count * relative;
  return total < 1 ? total / (1 - total) : std::numeric_limits<double>::infinity();
}

/// Relative error of exp(x) as ops/ takes it, beside that of its argument: within 2 u (tests/ops/math_test.cpp), the
/// third for std::exp, which is not correctly rounded either.
inline constexpr double kExpUnits = 3;
/// The same of the vector exponentials of other libraries: PyTorch's on the CPU are within 20 units in the last place.
inline constexpr double kFastExpUnits = 42;
/// Below exp(-86.6) a float's exponential is 0, and from about its inverse on held (ops/internal/math.h): an absolute
/// error of at most this, of what is at most 1.
inline constexpr double kExpFlush = 2.5e-38;

/// Of a stored value, from that of the value before: store.relative (|value| + error) + store.underflow on top.
inline double stored_error(const Profile& profile, double value, double error) {
  return error + profile.store.relative * (std::abs(value) + error) + profile.store.underflow;
}

/// Of a stored product with, or quotient by, a constant that the scalar may have to round, from that of the other
/// factor times the constant.
inline double scaled_error(const Profile& profile, double value, double inherited) {
  const double error = inherited + gamma(2, profile.compute.relative) * (std::abs(value) + inherited);
  return stored_error(profile, value, error + profile.compute.underflow);
}

/// The same of a value on its way through `count` elementary ops; nothing where they are one kernel.
inline double step_error(const Profile& profile, double count, double value, double error) {
  return error + gamma(count, profile.step.relative) * (std::abs(value) + error) + count * profile.step.underflow;
}

/// Of a sum of `count` products that add up to `magnitude` in absolute value.
inline double product_error(const Profile& profile, std::int64_t count, double magnitude) {
  const auto terms = static_cast<double>(count);
  return gamma(terms, profile.compute.relative) * magnitude + terms * profile.compute.underflow;
}

/// How often a value is rounded on its way through a reduction, at most: after an addition, and where it is sent.
struct ReductionPath {
  int additions = 0;
  int hops = 0;
};
/// Of any input of any chunk, in the order that the algorithm takes them (collectives/algorithms/order.h). `members`
/// are global ranks.
ReductionPath reduction_path(const ReduceOptions& options, std::span<const int> members);

/// Of a sum of partial sums that add up to `magnitude` in absolute value: each input is rounded to the wire format on
/// entry, after its hops and as the result, and to the accumulation format after its additions.
double reduction_error(const Profile& profile, const ReduceOptions& options, const ReductionPath& path,
                       double magnitude);

}  // namespace shardproof::rounding
