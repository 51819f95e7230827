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

double angle_units(const RopeSpec& rope) {
  const bool scaled = rope.type == RopeType::yarn || rope.type == RopeType::llama3;
  return scaled ? kScaledAngleUnits : kAngleUnits + (rope.type == RopeType::linear ? 2 : 0);
}

/// [positions, half].
std::vector<Turn> turns_at(const std::vector<std::int64_t>& positions, std::int64_t half, const RopeSpec& rope) {
  const std::vector<double> frequencies = reference::frequencies(rope, 2 * half);
  std::vector<Turn> turns;
  for (const std::int64_t position : positions) {
    for (const double frequency : frequencies) {
      const double angle = static_cast<double>(position) * frequency;
      turns.push_back({std::cos(angle), std::sin(angle), angle_units(rope) * 0x1p-53 * std::abs(angle)});
    }
  }
  return turns;
}

/// a c - b s: its value and, from the magnitudes of the sums that a and b are, its error. The product is stored first.
struct Rotated {
  double a = 0;
  double b = 0;
  double c = 0;
  double s = 0;
  double angle_error = 0;

  double value() const { return a * c - b * s; }
  double error(const Profile& profile, std::int64_t terms, double magnitude_a, double magnitude_b) const {
    const double error_a = stored_error(profile, a, product_error(profile, terms, magnitude_a));
    const double error_b = stored_error(profile, b, product_error(profile, terms, magnitude_b));
    const double before = std::abs(c) * error_a + std::abs(s) * error_b;
    // The cosine's own rounding, a product and the sum; in double the cosine is off by two units.
    const double turning = gamma(4, profile.compute.relative) *
                           (std::abs(c) * (std::abs(a) + error_a) + std::abs(s) * (std::abs(b) + error_b));
    const double angle = angle_error * (std::abs(a) + std::abs(b));
    return stored_error(profile, value(), before + turning + angle + 3 * profile.compute.underflow);
  }
};

/// The same of values that are stored already.
double rotation_error(const Profile& profile, double amplitude, const Turn& turn, double a, double b, double value) {
  const double c = amplitude * turn.cosine, s = amplitude * turn.sine;
  const double turning = gamma(5, profile.compute.relative) * (std::abs(c * a) + std::abs(s * b));
  const double angle = amplitude * turn.angle_error * (std::abs(a) + std::abs(b));
  return stored_error(profile, value, turning + angle + 3 * profile.compute.underflow);
}

}  // namespace

Judged judge_rotation(const Rule& rule, const reference::Tensor& before) {
  const Rules& rules = rule.rules();
  const AttentionSpec& attention = rule.layer().attention;
  const RopeSpec& rope = attention.rope;
  const std::int64_t dim = attention.head_dim, pairs = attention.rope_dim() / 2;
  const std::int64_t begin = attention.latent() ? dim - 2 * pairs : 0;
  const std::vector<Turn> turns = turns_at(rules.positions, pairs, rope);
  Comparison comparison = rule.comparison();
  for (std::int64_t t = 0; t < before.rows; ++t) {
    const double* x = before.row(t);
    for (std::int64_t head = 0; head < before.cols; head += dim) {
      for (std::int64_t i = 0; i < dim; ++i) {
        if (i < begin || i >= begin + 2 * pairs) comparison.element(t, head + i, x[head + i], 0);
      }
      for (std::int64_t i = 0; i < pairs; ++i) {
        const std::int64_t low = head + begin + (rope.interleaved ? 2 * i : i);
        const std::int64_t high = low + (rope.interleaved ? 1 : pairs);
        const Turn& turn = turns[static_cast<std::size_t>(t * pairs + i)];
        const double c = rope.amplitude * turn.cosine, s = rope.amplitude * turn.sine;
        const double first = x[low] * c - x[high] * s, second = x[high] * c + x[low] * s;
        comparison.element(t, low, first, rotation_error(rules.profile, rope.amplitude, turn, x[low], x[high], first));
        comparison.element(t, high, second,
                           rotation_error(rules.profile, rope.amplitude, turn, x[high], x[low], second));
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
  const auto bound = [&](double value, double magnitude) {
    const double error = product_error(profile, terms + (biased ? 1 : 0), magnitude);
    return product.stored ? stored_error(profile, value, error) : error;
  };
  for_each_block(rule.rules(), product, 1, [&](const OutputBlock& block) {
    const auto whole = [&](std::int64_t row, std::int64_t output) {
      const double bias = bias_of(block.outputs.begin + output);
      return bound(block.y.row(row)[output] + bias,
                   magnitude_of(product.x.row(row), block.weight(output, terms), terms) + std::abs(bias));
    };
    std::pair<std::int64_t, std::int64_t> candidate;
    for (std::int64_t row = 0; row < block.y.rows; ++row) {
      const std::int64_t tap_row = row_of_tap(product, row);
      for (std::int64_t output = 0; output < block.outputs.count; ++output) {
        const double bias = bias_of(block.outputs.begin + output), value = block.y.row(row)[output] + bias;
        const double likely =
            x_norms[static_cast<std::size_t>(row)] * block.norms[static_cast<std::size_t>(output)] + std::abs(bias);
        if (comparison.element(tap_row, block.outputs.begin + output, value, bound(value, std::abs(value)),
                               bound(value, likely), [&] { return whole(row, output); })) {
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
  const std::vector<Turn> turns = turns_at(rules.positions, half, attention.rope);
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
      return at.turned.error(rules.profile, terms, magnitude(at.row, at.a), magnitude(at.row, at.b));
    };
    const auto hold = [&](const Place& at) {
      const Rotated& turned = at.turned;
      if (std::abs(turned.a) > rules.profile.largest) {
        comparison.overflow(at.row, block.outputs.begin + at.a, turned.a);
      }
      if (comparison.element(at.row, block.outputs.begin + at.a, turned.value(),
                             turned.error(rules.profile, terms, std::abs(turned.a), std::abs(turned.b)),
                             turned.error(rules.profile, terms, likely(at.row, at.a), likely(at.row, at.b)),
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
