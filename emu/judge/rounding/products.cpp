#include <algorithm>
#include <cmath>
#include <numeric>

#include "emu/judge/rounding/internal/rule.h"

namespace shardproof::rounding {
namespace {

// So many weights are in memory at a time.
constexpr std::int64_t kWeightsAtOnce = std::int64_t{1} << 20;

double norm_of(const double* values, std::int64_t count) {
  return std::sqrt(std::inner_product(values, values + count, values, 0.0));
}

double magnitude_of(const double* x, const double* w, std::int64_t count) {
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += std::abs(x[i] * w[i]);
  return sum;
}

std::vector<double> row_norms(const double* values, std::int64_t rows, std::int64_t cols) {
  std::vector<double> norms;
  for (std::int64_t row = 0; row < rows; ++row) norms.push_back(norm_of(values + row * cols, cols));
  return norms;
}

/// Outputs begin..begin+count of a product.
struct OutputBlock {
  Range outputs;
  std::vector<double> weights;  ///< [outputs, cols]
  std::vector<double> norms;    ///< of their rows
  reference::Tensor y;          ///< [rows of x, outputs]
  reference::Tensor inherited;  ///< the same of x's errors and the weights' magnitudes; empty where x has none
  double error(std::int64_t row, std::int64_t output) const {
    return inherited.rows > 0 ? inherited.row(row)[output] : 0;
  }
  const double* weight(std::int64_t output, std::int64_t cols) const { return weights.data() + output * cols; }
};

/// visit(block) for blocks of whole runs of `unit` outputs.
template <class Visit>
void for_each_block(const Rules& rules, const Product& product, std::int64_t unit, const Visit& visit) {
  const std::int64_t cols = product.cols.count;
  const std::int64_t units = std::max<std::int64_t>(1, kWeightsAtOnce / std::max<std::int64_t>(1, cols * unit));
  OutputBlock block;
  for (std::int64_t begin = 0; begin < product.weight.rows; begin += units * unit) {
    block.outputs = {begin, std::min(units * unit, product.weight.rows - begin)};
    block.weights.resize(static_cast<std::size_t>(block.outputs.count * cols));
    rules.weights.read_stored(product.weight, block.outputs, product.cols, rules.format,
                              ops::MatrixView<double>{block.weights.data(), block.outputs.count, cols});
    block.norms = row_norms(block.weights.data(), block.outputs.count, cols);
    block.y = reference::linear(product.x, block.weights, block.outputs.count);
    if (product.x.derived()) {
      reference::Tensor errors(product.x.rows, product.x.cols);
      errors.values = product.x.errors;
      std::vector<double> magnitudes = block.weights;
      for (double& weight : magnitudes) weight = std::abs(weight);
      block.inherited = reference::linear(errors, magnitudes, block.outputs.count);
    }
    visit(block);
  }
}

std::int64_t row_of_tap(const Product& product, std::int64_t row) {
  return product.rows.empty() ? row : product.rows[static_cast<std::size_t>(row)];
}

/// A turn of one pair, and how far the angles of both sides may lie apart.
struct Turn {
  double cosine = 1;
  double sine = 0;
  double angle_error = 0;
};

/// Each side takes the angle in double, as position times theta^(-2 i / d): the exponent is one quotient and the same
/// on both, the power within a unit in the last place (2 u), the product within u. Twice 3 u; the rest is of second
/// order.
constexpr double kAngleUnits = 8;
/// Scaled frequencies are means of two such ones, f / s r + f (1 - r): a quotient, 1 - r, two products and the sum,
/// twice 5 u more. A ramp r is a difference over a difference, clamped: of a position in the context (llama3), twice 6
/// u of at most high / (high - low); of a pair (yarn), whose end points come from two logarithms, are rounded to whole
/// ones on both sides alike or, where they are not, are off by twice 6 u of at most the pairs of a head, 2^10 of them.
constexpr double kScaledAngleUnits = 8 + 10 + 12 * 1024;

/// Others take the angle in float: the exponent within u, which moves the power by ln(theta) u, the power itself, its
/// inverse, the scaling, the product with the position: 8 u more. A ramp is a difference over a difference, of a
/// position in the context or of a pair of a head, each of them a float.
double angle_error(const RopeSpec& rope, std::int64_t pairs, RoundingProfile profile) {
  const bool scaled = rope.type == RopeType::yarn || rope.type == RopeType::llama3;
  const bool divided = rope.type == RopeType::linear || rope.type == RopeType::longrope;
  if (profile != RoundingProfile::ours) {
    const double ramp = scaled ? 10 + 12 * static_cast<double>(std::max<std::int64_t>(pairs, 4)) : 0;
    return (std::log(std::max(rope.theta, 1.0)) + 9 + ramp) * 0x1p-24;
  }
  return (scaled ? kScaledAngleUnits : kAngleUnits + (divided ? 2 : 0)) * 0x1p-53;
}

/// [positions, half].
std::vector<Turn> turns_at(const std::vector<std::int64_t>& positions, std::int64_t half, const RopeSpec& rope,
                           RoundingProfile profile) {
  const std::vector<double> frequencies = reference::frequencies(rope, 2 * half);
  const double relative = angle_error(rope, half, profile);
  std::vector<Turn> turns;
  for (const std::int64_t position : positions) {
    for (const double frequency : frequencies) {
      const double angle = static_cast<double>(position) * frequency;
      turns.push_back({std::cos(angle), std::sin(angle), relative * std::abs(angle)});
    }
  }
  return turns;
}

/// Relative error that a rotation has beside that of what it rotates and of its angle, before it is stored: `scalar`
/// operations of the scalar and, of elementary ops, the cosine and a product (the sum is what is stored).
double turning_error(const Profile& profile, double scalar) {
  const double of_float_cosine = profile.kind == RoundingProfile::ours ? 0 : 2;
  return gamma(1, (scalar + of_float_cosine) * profile.compute.relative + 2 * profile.step.relative);
}

/// How far a product may be off, and of how large a sum it is.
struct Factor {
  double magnitude = 0;
  double inherited = 0;
};

/// a c - b s: its value and, from the magnitudes of the sums that a and b are, its error. The product is stored first.
struct Rotated {
  double a = 0;
  double b = 0;
  double c = 0;
  double s = 0;
  double angle_error = 0;

  double value() const { return a * c - b * s; }
  double error(const Profile& profile, std::int64_t terms, const Factor& of_a, const Factor& of_b) const {
    const auto product = [&](double value, const Factor& of) {
      const double error = of.inherited + product_error(profile, terms, of.magnitude + of.inherited);
      return stored_error(profile, value, error);
    };
    const double error_a = product(a, of_a), error_b = product(b, of_b);
    const double before = std::abs(c) * error_a + std::abs(s) * error_b;
    // The cosine's own rounding, a product and the sum; in double the cosine is off by two units.
    const double turning =
        turning_error(profile, 4) * (std::abs(c) * (std::abs(a) + error_a) + std::abs(s) * (std::abs(b) + error_b));
    const double angle = angle_error * (std::abs(a) + error_a + std::abs(b) + error_b);
    const double underflow = 3 * profile.compute.underflow + (2 + std::abs(a) + std::abs(b)) * profile.step.underflow;
    return stored_error(profile, value(), before + turning + angle + underflow);
  }
};

/// The same of values that are stored already.
double rotation_error(const Profile& profile, double amplitude, const Turn& turn, double a, double b,
                      double inherited_a, double inherited_b) {
  const double c = amplitude * turn.cosine, s = amplitude * turn.sine;
  const double value = a * c - b * s, inherited = std::abs(c) * inherited_a + std::abs(s) * inherited_b;
  const double turning = turning_error(profile, 5) * (std::abs(c * a) + std::abs(s * b) + inherited);
  const double angle = std::abs(amplitude) * turn.angle_error * (std::abs(a) + inherited_a + std::abs(b) + inherited_b);
  const double underflow = 3 * profile.compute.underflow + (2 + std::abs(a) + std::abs(b)) * profile.step.underflow;
  return stored_error(profile, value, inherited + turning + angle + underflow);
}

}  // namespace

Judged judge_rotation(const Rule& rule, const Input& before) {
  const Rules& rules = rule.rules();
  const AttentionSpec& attention = rule.layer().attention;
  const RopeSpec& rope = attention.rope;
  const std::int64_t dim = attention.head_dim, pairs = attention.rope_dim() / 2;
  const std::int64_t begin = attention.latent() ? dim - 2 * pairs : 0;
  const std::vector<Turn> turns = turns_at(rules.positions, pairs, rope, rules.profile.kind);
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < before.rows; ++t) {
    const double* x = before.row(t);
    for (std::int64_t head = 0; head < before.cols; head += dim) {
      for (std::int64_t i = 0; i < dim; ++i) {
        if (i < begin || i >= begin + 2 * pairs)
          comparison.element(t, head + i, x[head + i], before.error(t, head + i));
      }
      for (std::int64_t i = 0; i < pairs; ++i) {
        const std::int64_t low = head + begin + (rope.interleaved ? 2 * i : i);
        const std::int64_t high = low + (rope.interleaved ? 1 : pairs);
        const Turn& turn = turns[static_cast<std::size_t>(t * pairs + i)];
        const double c = rope.amplitude * turn.cosine, s = rope.amplitude * turn.sine;
        const double first = x[low] * c - x[high] * s, second = x[high] * c + x[low] * s;
        const double of_low = before.error(t, low), of_high = before.error(t, high);
        const Turn back{turn.cosine, -turn.sine, turn.angle_error};
        comparison.element(t, low, first,
                           rotation_error(rules.profile, rope.amplitude, turn, x[low], x[high], of_low, of_high));
        comparison.element(t, high, second,
                           rotation_error(rules.profile, rope.amplitude, back, x[high], x[low], of_high, of_low));
      }
    }
  }
  return std::move(comparison).finish();
}

void compare_product(const Rule& rule, const Product& product, Comparison& comparison) {
  const Profile& profile = rule.rules().profile;
  const std::int64_t terms = product.cols.count;
  const std::vector<double> x_norms = row_norms(product.x.values.data(), product.x.rows, terms);
  // A bias is one term more.
  const bool biased = !product.bias.empty();
  const auto bias_of = [&](std::int64_t output) {
    return biased ? product.bias[static_cast<std::size_t>(output)] : 0.0;
  };
  // Of elementary ops, the sum with the bias is one of its own: what it is added to is stored before.
  const auto bound = [&](double value, double magnitude, double bias, double inherited) {
    const double error = inherited + product_error(profile, terms + (biased ? 1 : 0), magnitude + inherited);
    const double stepped = (biased ? step_error(profile, 1, std::abs(value - bias), error) : error) +
                           product.spared * profile.store.relative * std::abs(bias);
    const double whole = product.stored ? stored_error(profile, value, stepped) : stepped;
    if (product.divisor == 1) return whole;
    return scaled_error(profile, value / product.divisor, whole / product.divisor);
  };
  for_each_block(rule.rules(), product, 1, [&](const OutputBlock& block) {
    const auto whole = [&](std::int64_t row, std::int64_t output) {
      const double bias = bias_of(block.outputs.begin + output);
      return bound(block.y.row(row)[output] + bias,
                   magnitude_of(product.x.row(row), block.weight(output, terms), terms) + std::abs(bias), bias,
                   block.error(row, output));
    };
    std::pair<std::int64_t, std::int64_t> candidate;
    for (std::int64_t row = 0; row < block.y.rows; ++row) {
      const std::int64_t tap_row = row_of_tap(product, row);
      for (std::int64_t output = 0; output < block.outputs.count; ++output) {
        const double bias = bias_of(block.outputs.begin + output), value = block.y.row(row)[output] + bias;
        const double likely =
            x_norms[static_cast<std::size_t>(row)] * block.norms[static_cast<std::size_t>(output)] + std::abs(bias);
        const double inherited = block.error(row, output);
        if (comparison.element(tap_row, block.outputs.begin + output, value / product.divisor,
                               bound(value, std::abs(value), bias, inherited), bound(value, likely, bias, inherited),
                               [&] { return whole(row, output); })) {
          candidate = {row, output};
        }
      }
    }
    if (comparison.candidate()) comparison.settle(whole(candidate.first, candidate.second));
  });
}

void compare_rotated(const Rule& rule, const Product& product, Comparison& comparison) {
  const Rules& rules = rule.rules();
  const AttentionSpec& attention = rule.layer().attention;
  const std::int64_t terms = product.cols.count, half = attention.head_dim / 2;
  const std::vector<double> x_norms = row_norms(product.x.values.data(), product.x.rows, terms);
  const std::vector<Turn> turns = turns_at(rules.positions, half, attention.rope, rules.profile.kind);
  for_each_block(rules, product, attention.head_dim, [&](const OutputBlock& block) {
    const auto magnitude = [&](std::int64_t row, std::int64_t output) {
      return magnitude_of(product.x.row(row), block.weight(output, terms), terms);
    };
    const auto likely = [&](std::int64_t row, std::int64_t output) {
      return x_norms[static_cast<std::size_t>(row)] * block.norms[static_cast<std::size_t>(output)];
    };
    struct Place {
      std::int64_t row = 0, a = 0, b = 0;
      Rotated turned;
    } candidate;
    const auto whole = [&](const Place& at) {
      return at.turned.error(rules.profile, terms, {magnitude(at.row, at.a), block.error(at.row, at.a)},
                             {magnitude(at.row, at.b), block.error(at.row, at.b)});
    };
    const auto hold = [&](const Place& at) {
      const Rotated& turned = at.turned;
      if (std::abs(turned.a) > rules.profile.largest) {
        comparison.overflow(at.row, block.outputs.begin + at.a, turned.a);
      }
      if (comparison.element(at.row, block.outputs.begin + at.a, turned.value(),
                             turned.error(rules.profile, terms, {std::abs(turned.a), block.error(at.row, at.a)},
                                          {std::abs(turned.b), block.error(at.row, at.b)}),
                             turned.error(rules.profile, terms, {likely(at.row, at.a), block.error(at.row, at.a)},
                                          {likely(at.row, at.b), block.error(at.row, at.b)}),
                             [&] { return whole(at); })) {
        candidate = at;
      }
    };
    for (std::int64_t row = 0; row < block.y.rows; ++row) {
      const double* y = block.y.row(row);
      for (std::int64_t head = 0; head < block.outputs.count; head += 2 * half) {
        for (std::int64_t i = 0; i < half; ++i) {
          const auto& [cosine, sine, angle_error] = turns[static_cast<std::size_t>(row * half + i)];
          const std::int64_t low = head + i, high = low + half;
          hold({row, low, high, {y[low], y[high], cosine, sine, angle_error}});
          hold({row, high, low, {y[high], y[low], cosine, -sine, angle_error}});
        }
      }
    }
    if (comparison.candidate()) comparison.settle(whole(candidate));
  });
}

}  // namespace shardproof::rounding
