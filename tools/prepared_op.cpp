#include "tools/prepared_op.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/expert.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/permute.h"
#include "ops/rope.h"
#include "ops/router.h"

namespace shardproof::tools {
namespace {

using ops::Format;
using ops::Index;
using ops::Matrix;
using ops::MatrixView;

constexpr double kTheta = 1e6;
constexpr double kEps = 1e-5;

/// A value from the definition, and how far from it a right result may be.
struct Expected {
  double value = 0;
  double bound = 0;
};

template <class T>
Matrix<T> filled(Index rows, Index cols, std::uint32_t seed, Format format) {
  Matrix<T> result(rows, cols);
  std::uint32_t state = seed * 2654435761U + 1;
  for (T& value : result.span()) {
    state = state * 1664525U + 1013904223U;
    value = static_cast<T>(static_cast<double>(state >> 8) / 8388608.0 - 1);
  }
  ops::round_to<T>(result.span(), format);
  return result;
}

std::vector<std::int64_t> scattered(Index count, Index below) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::int64_t>(i) * 7919 % below;
  return rows;
}

/// First, last, and up to `count` between.
std::vector<Index> sample(Index size, Index count) {
  std::vector<Index> places{0, size - 1};
  for (Index i = 1; i <= count; ++i) places.push_back(i * 7919 % size);
  std::ranges::sort(places);
  places.erase(std::unique(places.begin(), places.end()), places.end());
  return places;
}

template <class T>
double unit() {
  return sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
}
/// n u / (1 - n u) for the scalar that is computed in.
template <class T>
double gamma(double n) {
  return n * unit<T>() / (1 - n * unit<T>());
}
/// What storing a value of about this size may change.
double store_error(Format format, double size) {
  if (format == Format::exact) return ops::kActivationStep / 2;
  return ops::unit_roundoff(format) * std::abs(size) + (format == Format::fp16 ? 0x1p-25 : 0);
}
template <class T>
Expected stored(double value, double error, Format format) {
  return {value, error + store_error(format, std::abs(value) + error)};
}

/// Holds sampled elements of `result` to expected(row, col).
template <class T, class Reference>
std::string compare(MatrixView<const T> result, Index rows, Index cols, const Reference& expected) {
  for (const Index row : sample(result.rows, rows)) {
    for (const Index col : sample(result.cols, cols)) {
      const Expected want = expected(row, col);
      const auto got = static_cast<double>(result(row, col));
      if (!(std::abs(got - want.value) <= want.bound)) {
        return fmt::format("row {}, column {}: {}, expected {} within {:.2e}", row, col, got, want.value, want.bound);
      }
    }
  }
  return "";
}

/// The op over arrays that live as long as it: run(arrays) fills arrays.y, expected(arrays, row, col) is what it holds.
template <class Arrays, class Run, class Reference>
PreparedOp made(Arrays&& of, Index rows, Index cols, Run run, Reference expected) {
  const auto arrays = std::make_shared<std::decay_t<Arrays>>(std::forward<Arrays>(of));
  PreparedOp op;
  op.run = [arrays, run] { run(*arrays); };
  op.wrong = [arrays, rows, cols, expected] {
    using T = std::decay_t<decltype(arrays->y(0, 0))>;
    return compare<T>(arrays->y.view(), rows, cols, [&](Index row, Index col) { return expected(*arrays, row, col); });
  };
  op.result = std::as_writable_bytes(arrays->y.span());
  return op;
}

/// sum a_i b_i with the error of any order of summation.
template <class T>
Expected dot(std::span<const T> a, std::span<const T> b) {
  double sum = 0, magnitude = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double product = static_cast<double>(a[i]) * static_cast<double>(b[i]);
    sum += product;
    magnitude += std::abs(product);
  }
  return {sum, gamma<T>(static_cast<double>(a.size()) + 1) * magnitude};
}

template <class T>
struct Product {
  Matrix<T> x, w, y;
};

template <class T>
PreparedOp linear(const OpShape& s, Format format) {
  return made(
      Product<T>{filled<T>(s.rows, s.inner, 1, format), filled<T>(s.cols, s.inner, 2, format), {s.rows, s.cols}}, 4, 8,
      [format](Product<T>& a) {
        ops::linear<T>(a.x, a.w, a.y);
        ops::round_to<T>(a.y.span(), format);
      },
      [format](const Product<T>& a, Index i, Index j) {
        const Expected sum = dot<T>(a.x.row(i), a.w.row(j));
        return stored<T>(sum.value, sum.bound, format);
      });
}

template <class T>
struct Mlp {
  Matrix<T> x, gate, up, down, y;
  /// Of the row that was asked for last: the activation, and how far each may be off.
  mutable Index row = -1;
  mutable std::vector<Expected> activation = {};
};

/// silu(g) u of a row of x. |silu'| is below 1.1; exp, quotient and products take some more roundings.
template <class T>
void activate(const Mlp<T>& a, Index row, Format format) {
  a.row = row;
  a.activation.clear();
  const double exp_error = format == Format::exact ? ops::kExpStep : 16 * unit<T>();
  for (Index j = 0; j < a.gate.rows(); ++j) {
    const Expected g = dot<T>(a.x.row(row), a.gate.row(j)), u = dot<T>(a.x.row(row), a.up.row(j));
    const double g_error = stored<T>(g.value, g.bound, format).bound,
                 u_error = stored<T>(u.value, u.bound, format).bound;
    const double silu = g.value / (1 + std::exp(-g.value));
    const double silu_error = 1.1 * g_error + exp_error * (std::abs(g.value) + g_error);
    const double error = silu_error * (std::abs(u.value) + u_error) + std::abs(silu) * u_error;
    a.activation.push_back(stored<T>(silu * u.value, error, format));
  }
}

template <class T>
PreparedOp expert(const OpShape& s, Format format) {
  return made(
      Mlp<T>{filled<T>(s.rows, s.cols, 1, format),
             filled<T>(s.inner, s.cols, 2, format),
             filled<T>(s.inner, s.cols, 3, format),
             filled<T>(s.cols, s.inner, 4, format),
             {s.rows, s.cols}},
      0, 16, [format](Mlp<T>& a) { ops::expert<T>(a.x, a.gate, a.up, a.down, format, a.y); },
      [format](const Mlp<T>& a, Index i, Index j) {
        if (a.row != i) activate(a, i, format);
        Expected y;
        double magnitude = 0;
        for (Index k = 0; k < a.down.cols(); ++k) {
          const Expected& h = a.activation[static_cast<std::size_t>(k)];
          const auto w = static_cast<double>(a.down(j, k));
          y.value += w * h.value;
          y.bound += std::abs(w) * h.bound;
          magnitude += std::abs(w) * (std::abs(h.value) + h.bound);
        }
        y.bound += gamma<T>(static_cast<double>(a.down.cols()) + 1) * magnitude;
        return y;
      });
}

template <class T>
struct Heads {
  Matrix<T> q, k, v, y;
  std::vector<std::int64_t> offsets;
  Index head_dim, kv_heads;
};

template <class T>
Expected attended(const Heads<T>& a, Index row, Index col, Format format) {
  const auto next = std::ranges::upper_bound(a.offsets, row);
  const Index first = *std::prev(next), head = col / a.head_dim, kv = head / (a.q.cols() / a.head_dim / a.kv_heads);
  const auto part = [&](const Matrix<T>& m, Index r, Index h) {
    return m.row(r).subspan(static_cast<std::size_t>(h * a.head_dim), static_cast<std::size_t>(a.head_dim));
  };
  const double scale = 1 / std::sqrt(static_cast<double>(a.head_dim));
  std::vector<double> scores;
  double score_error = 0, largest = -1e300, sum = 0, out = 0, magnitude = 0;
  for (Index j = first; j <= row; ++j) {
    const Expected score = dot<T>(part(a.q, row, head), part(a.k, j, kv));
    scores.push_back(score.value * scale);
    score_error = std::max(score_error, score.bound * scale + 4 * unit<T>() * std::abs(score.value * scale) +
                                            (format == Format::exact ? ops::kActivationStep / 2 : 0));
    largest = std::max(largest, scores.back());
  }
  for (std::size_t j = 0; j < scores.size(); ++j) {
    const double p = std::exp(scores[j] - largest);
    const auto v = static_cast<double>(a.v(first + static_cast<Index>(j), kv * a.head_dim + col % a.head_dim));
    sum += p;
    out += p * v;
    magnitude += p * std::abs(v);
  }
  // Every p is off by a factor within e^(+-2 score_error), and in `exact` by half a step; both sums, the quotient and
  // the scaling of each tile's maximum round.
  const auto keys = static_cast<double>(scores.size());
  const double factor = std::exp(4 * score_error) - 1 + 2 * gamma<T>(keys + 16);
  const double steps = format == Format::exact ? keys * ops::kExpStep : 0;
  return stored<T>(out / sum, factor * 2 * magnitude / sum + 2 * steps / sum, format);
}

template <class T>
PreparedOp attention(const OpShape& s, Format format) {
  const Index kv_width = s.kv_heads * s.head_dim;
  Heads<T> heads{filled<T>(s.rows, s.cols, 1, format),
                 filled<T>(s.rows, kv_width, 2, format),
                 filled<T>(s.rows, kv_width, 3, format),
                 {s.rows, s.cols},
                 {0},
                 s.head_dim,
                 s.kv_heads};
  for (const std::int64_t length : s.sequences) heads.offsets.push_back(heads.offsets.back() + length);
  return made(
      std::move(heads), 4, 4,
      [format](Heads<T>& a) { ops::attention<T>(a.q, a.k, a.v, a.offsets, a.head_dim, format, a.y); },
      [format](const Heads<T>& a, Index row, Index col) { return attended(a, row, col, format); });
}

template <class T>
PreparedOp rms_norm(const OpShape& s, Format format) {
  return made(
      Product<T>{filled<T>(s.rows, s.cols, 1, format), filled<T>(1, s.cols, 2, format), {s.rows, s.cols}}, 4, 16,
      [format](Product<T>& a) { ops::rms_norm<T>(a.x, a.w.span(), kEps, format, a.y); },
      [format](const Product<T>& a, Index i, Index j) {
        const double mean = dot<T>(a.x.row(i), a.x.row(i)).value / static_cast<double>(a.x.cols());
        const double y = static_cast<double>(a.x(i, j)) / std::sqrt(mean + kEps) * static_cast<double>(a.w(0, j));
        return stored<T>(y, gamma<T>(static_cast<double>(a.x.cols()) + 8) * std::abs(y), format);
      });
}

template <class T>
struct Turned {
  Matrix<T> x, y;
  std::vector<std::int64_t> positions;
  ops::RopeTable<T> table;
};

template <class T>
PreparedOp rope(const OpShape& s, Format format) {
  Turned<T> turned{filled<T>(s.rows, s.cols, 1, format),
                   {},
                   scattered(s.rows, s.rows),
                   ops::RopeTable<T>(s.rows, s.head_dim, kTheta, format)};
  turned.y = turned.x.copy();
  return made(
      std::move(turned), 4, 16, [](Turned<T>& a) { ops::rope<T>(a.y, a.positions, a.table); },
      [format, half = s.head_dim / 2](const Turned<T>& a, Index i, Index j) {
        const Index pair = j % (2 * half) % half;
        const bool first = j % (2 * half) < half;
        const double angle = static_cast<double>(a.positions[static_cast<std::size_t>(i)]) *
                             std::pow(kTheta, -static_cast<double>(pair) / static_cast<double>(half));
        const auto x = static_cast<double>(a.x(i, j)), other = static_cast<double>(a.x(i, first ? j + half : j - half));
        const double y = x * std::cos(angle) + (first ? -other : other) * std::sin(angle);
        const double turn_error = 4 * unit<T>() + (format == Format::exact ? ops::kExpStep : 0);
        return stored<T>(y, turn_error * (std::abs(x) + std::abs(other)), format);
      });
}

template <class T>
PreparedOp add(const OpShape& s, Format format) {
  return made(
      Product<T>{filled<T>(s.rows, s.cols, 1, format), filled<T>(s.rows, s.cols, 2, format), {s.rows, s.cols}}, 4, 16,
      [format](Product<T>& a) { ops::add<T>(a.x, a.w, format, a.y); },
      [format](const Product<T>& a, Index i, Index j) {
        const double y = static_cast<double>(a.x(i, j)) + static_cast<double>(a.w(i, j));
        return stored<T>(y, 2 * unit<T>() * std::abs(y), format);
      });
}

template <class T>
struct Choice {
  Matrix<T> logits, y;
  Matrix<std::int32_t> ids;
};

template <class T>
PreparedOp route(const OpShape& s, Format format) {
  return made(
      Choice<T>{filled<T>(s.rows, s.inner, 1, format), {s.rows, s.cols}, {s.rows, s.cols}}, 16, 8,
      [format, normalise = s.normalise](Choice<T>& a) {
        ops::route<T>(a.logits, a.ids.cols(), normalise, format, a.ids, a.y);
      },
      [format, normalise = s.normalise](const Choice<T>& a, Index i, Index j) {
        const std::span<const T> logits = a.logits.row(i);
        std::vector<int> order(logits.size());
        std::iota(order.begin(), order.end(), 0);
        std::ranges::stable_sort(order, [&](int x, int y) { return logits[std::size_t(x)] > logits[std::size_t(y)]; });
        if (a.ids(i, j) != order[static_cast<std::size_t>(j)]) return Expected{std::nan(""), 0};
        double sum = 0, mine = 0;
        for (std::size_t e = 0; e < (normalise ? static_cast<std::size_t>(a.ids.cols()) : order.size()); ++e) {
          const auto at = [&](std::size_t place) { return static_cast<double>(logits[std::size_t(order[place])]); };
          const double p = std::exp(at(e) - at(0));
          sum += p;
          if (static_cast<Index>(e) == j) mine = p;
        }
        const double step = format == Format::exact ? ops::kExpStep : 0;
        const double error = gamma<T>(static_cast<double>(order.size()) + 16) * mine / sum +
                             (1 + static_cast<double>(order.size())) * step / sum;
        return stored<T>(mine / sum, error, format);
      });
}

template <class T>
struct Moved {
  Matrix<T> x, y;
  std::vector<std::int64_t> rows;
};

template <class T>
PreparedOp gather_rows(const OpShape& s, Format format) {
  return made(
      Moved<T>{filled<T>(s.rows, s.cols, 1, format), {s.rows, s.cols}, scattered(s.rows, s.rows)}, 8, 16,
      [](Moved<T>& a) { ops::gather_rows<T>(a.x, a.rows, a.y); },
      [](const Moved<T>& a, Index i, Index j) {
        return Expected{static_cast<double>(a.x(a.rows[static_cast<std::size_t>(i)], j)), 0};
      });
}

template <class T>
PreparedOp embed(const OpShape& s, Format format) {
  return made(
      Moved<T>{filled<T>(s.inner, s.cols, 1, format), {s.rows, s.cols}, scattered(s.rows, s.inner)}, 8, 16,
      [](Moved<T>& a) { ops::embed<T>(std::span<const std::int64_t>(a.rows), a.x, 0, a.y); },
      [](const Moved<T>& a, Index i, Index j) {
        return Expected{static_cast<double>(a.x(a.rows[static_cast<std::size_t>(i)], j)), 0};
      });
}

template <class T>
struct Slots {
  Matrix<T> x, weights, y;
  Matrix<std::int64_t> positions;
};

template <class T>
PreparedOp combine(const OpShape& s, Format format) {
  Slots<T> slots{filled<T>(s.rows * s.inner, s.cols, 1, format),
                 filled<T>(s.rows, s.inner, 2, format),
                 {s.rows, s.cols},
                 {s.rows, s.inner}};
  std::ranges::copy(scattered(s.rows * s.inner, s.rows * s.inner), slots.positions.span().begin());
  return made(
      std::move(slots), 4, 16, [format](Slots<T>& a) { ops::combine<T>(a.x, a.positions, a.weights, format, a.y); },
      [format](const Slots<T>& a, Index i, Index j) {
        double sum = 0, magnitude = 0;
        for (Index slot = 0; slot < a.weights.cols(); ++slot) {
          const double term =
              static_cast<double>(a.weights(i, slot)) * static_cast<double>(a.x(a.positions(i, slot), j));
          sum += term;
          magnitude += std::abs(term);
        }
        return stored<T>(sum, gamma<T>(static_cast<double>(a.weights.cols()) + 1) * magnitude, format);
      });
}

template <class T>
PreparedOp prepared(const OpShape& shape, Format format) {
  switch (shape.kernel) {
    case Kernel::embed:
      return embed<T>(shape, format);
    case Kernel::rms_norm:
      return rms_norm<T>(shape, format);
    case Kernel::linear:
      return linear<T>(shape, format);
    case Kernel::rope:
      return rope<T>(shape, format);
    case Kernel::attention:
      return attention<T>(shape, format);
    case Kernel::add:
      return add<T>(shape, format);
    case Kernel::route:
      return route<T>(shape, format);
    case Kernel::gather_rows:
      return gather_rows<T>(shape, format);
    case Kernel::expert:
      return expert<T>(shape, format);
    case Kernel::combine:
      return combine<T>(shape, format);
  }
  return {};
}

}  // namespace

double memory_of(const OpShape& shape, Format format) {
  const double scalar = ops::computes_in_double(format) ? 8 : 4;
  const double table =
      shape.kernel == Kernel::embed ? static_cast<double>(shape.inner) * static_cast<double>(shape.cols) * scalar : 0;
  // The packed copies of a product's operands are smaller than these.
  return 1.25 * cost_of(shape, static_cast<int>(scalar)).bytes + table;
}

PreparedOp prepare(const OpShape& shape, Format format) {
  return ops::computes_in_double(format) ? prepared<double>(shape, format) : prepared<float>(shape, format);
}

}  // namespace shardproof::tools
