#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/norm.h"
#include "ops/permute.h"
#include "ops/rope.h"
#include "tools/prepare.h"

namespace shardproof::tools::prepare {

namespace {

template <class T>
struct Normed {
  Matrix<T> x, w, bias, squares, y;
};

template <class T>
Expected layer_normed(const Normed<T>& a, Index i, Index j, Format format) {
  const auto n = static_cast<double>(a.x.cols());
  double mean = 0, magnitude = 0, squares = 0;
  for (const T x : a.x.row(i)) {
    mean += static_cast<double>(x) / n;
    magnitude += std::abs(static_cast<double>(x)) / n;
  }
  for (const T x : a.x.row(i)) squares += (static_cast<double>(x) - mean) * (static_cast<double>(x) - mean);
  // In `exact` the mean is stored before it is taken off.
  const double mean_error = gamma<T>(n + 2) * magnitude + (format == Format::exact ? ops::kActivationStep / 2 : 0);
  const double inverse = 1 / std::sqrt(squares / n + kEps);
  const double d = static_cast<double>(a.x(i, j)) - mean, w = static_cast<double>(a.w(0, j));
  const auto bias = static_cast<double>(a.bias(0, j));
  const double error =
      inverse * std::abs(w) * (mean_error * (1 + inverse * std::abs(d)) * 2 + gamma<T>(n + 8) * std::abs(d)) +
      unit<T>() * std::abs(bias);
  return stored<T>(d * inverse * w + bias, error, format);
}

}  // namespace

template <class T>
PreparedOp norm(const OpShape& s, Format format) {
  // Of a whole row's squares the part has some; here as many times its own.
  const Index width = s.kernel == Kernel::rms_norm_part ? s.inner : s.cols;
  Normed<T> normed{filled<T>(s.rows, s.cols, 1, format), filled<T>(1, s.cols, 2, format),
                   filled<T>(1, s.cols, 3, format), Matrix<T>(s.rows, 1), Matrix<T>(s.rows, s.cols)};
  ops::sum_squares<T>(normed.x, normed.squares, 0);
  for (T& square : normed.squares.span()) square *= static_cast<T>(width / s.cols);
  const auto run = [format, kernel = s.kernel, width](Normed<T>& a) {
    if (kernel == Kernel::layer_norm) {
      ops::layer_norm<T>(a.x, a.w.span(), a.bias.span(), kEps, format, a.y);
    } else if (kernel == Kernel::rms_norm_part) {
      ops::rms_norm_part<T>(a.x, a.squares, 0, width, a.w.span(), kEps, format, a.y);
    } else {
      ops::rms_norm<T>(a.x, a.w.span(), kEps, format, a.y);
    }
  };
  return made(std::move(normed), 4, 16, run, [format, kernel = s.kernel, width](const Normed<T>& a, Index i, Index j) {
    if (kernel == Kernel::layer_norm) return layer_normed(a, i, j, format);
    const double squares =
        kernel == Kernel::rms_norm_part ? static_cast<double>(a.squares(i, 0)) : dot<T>(a.x.row(i), a.x.row(i)).value;
    const double y = static_cast<double>(a.x(i, j)) / std::sqrt(squares / static_cast<double>(width) + kEps) *
                     static_cast<double>(a.w(0, j));
    return stored<T>(y, gamma<T>(static_cast<double>(a.x.cols()) + 8) * std::abs(y), format);
  });
}

/// Of each row its sum of squares, in the first column.
template <class T>
PreparedOp squares(const OpShape& s, Format format) {
  return made(
      Product<T>{filled<T>(s.rows, s.cols, 1, format), {}, Matrix<T>(s.rows, 1)}, 4, 0,
      [](Product<T>& a) { ops::sum_squares<T>(a.x, a.y, 0); },
      [](const Product<T>& a, Index i, Index) {
        const Expected sum = dot<T>(a.x.row(i), a.x.row(i));
        return Expected{sum.value, sum.bound + unit<T>() * sum.value};
      });
}

namespace {

template <class T>
struct Turned {
  Matrix<T> x, y;
  std::vector<std::int64_t> positions;
  ops::RopeTable<T> table;
  ops::RopePairs pairs;
};

}  // namespace

template <class T>
PreparedOp rope(const OpShape& s, Format format) {
  // What does not turn comes first, as in latent attention; of a head that turns in part otherwise, as many elements
  // do.
  const ops::RopePairs pairs{.head_dim = s.head_dim,
                             .begin = s.head_dim - s.rope_dim,
                             .interleaved = s.interleaved,
                             .frequencies = ops::rope_frequencies(s.rope_dim, kTheta)};
  Turned<T> turned{filled<T>(s.rows, s.cols, 1, format),
                   {},
                   scattered(s.rows, s.rows),
                   ops::RopeTable<T>(s.rows, pairs, format),
                   pairs};
  turned.y = turned.x.copy();
  return made(
      std::move(turned), 4, 16, [](Turned<T>& a) { ops::rope<T>(a.y, a.positions, a.table); },
      [format](const Turned<T>& a, Index i, Index j) {
        const auto count = static_cast<Index>(a.pairs.frequencies.size());
        const Index place = j % a.pairs.head_dim - a.pairs.begin;
        if (place < 0) return Expected{static_cast<double>(a.x(i, j)), 0};
        const Index pair = a.pairs.interleaved ? place / 2 : place % count;
        const bool first = a.pairs.interleaved ? place % 2 == 0 : place < count;
        const Index away = a.pairs.interleaved ? 1 : count;
        const double angle = static_cast<double>(a.positions[static_cast<std::size_t>(i)]) *
                             a.pairs.frequencies[static_cast<std::size_t>(pair)];
        const auto x = static_cast<double>(a.x(i, j)), other = static_cast<double>(a.x(i, first ? j + away : j - away));
        const double y = x * std::cos(angle) + (first ? -other : other) * std::sin(angle);
        const double turn_error = 4 * unit<T>() + (format == Format::exact ? ops::kExpStep : 0);
        return stored<T>(y, turn_error * (std::abs(x) + std::abs(other)), format);
      });
}

/// x, and y where there are two; out is y or, of one that works in place, starts as x.
template <class T>
PreparedOp elementwise(const OpShape& s, Format format) {
  const double factor = s.factor;
  switch (s.kernel) {
    case Kernel::scale: {
      // In place: what it works on is copied first.
      return made(
          Product<T>{filled<T>(s.rows, s.cols, 1, format), {}, {s.rows, s.cols}}, 4, 16,
          [format, factor](Product<T>& a) {
            std::ranges::copy(std::as_const(a.x).span(), a.y.span().begin());
            ops::scale<T>(a.y, factor, format);
          },
          [format, factor](const Product<T>& a, Index i, Index j) {
            const double y = static_cast<double>(static_cast<T>(factor)) * static_cast<double>(a.x(i, j));
            return stored<T>(y, 2 * unit<T>() * std::abs(y), format);
          });
    }
    case Kernel::gate_rows:
      return made(
          Product<T>{filled<T>(s.rows, s.cols, 1, format), filled<T>(s.rows, 1, 2, format), {s.rows, s.cols}}, 4, 16,
          [format](Product<T>& a) { ops::gate_rows<T>(a.x, a.w, format, a.y); },
          [format](const Product<T>& a, Index i, Index j) {
            const double x = static_cast<double>(a.x(i, j)), open = 1 / (1 + std::exp(-static_cast<double>(a.w(i, 0))));
            const double error = format == Format::exact ? 2 * ops::kExpStep : 16 * unit<T>();
            return stored<T>(x * open, error * std::abs(x), format);
          });
    default:
      return made(
          Product<T>{filled<T>(s.rows, s.cols, 1, format), filled<T>(s.rows, s.cols, 2, format), {s.rows, s.cols}}, 4,
          16,
          [format, factor, scaled = s.kernel == Kernel::add_scaled](Product<T>& a) {
            if (scaled) return ops::add_scaled<T>(a.x, a.w, factor, format, a.y);
            ops::add<T>(a.x, a.w, format, a.y);
          },
          [format, factor = s.kernel == Kernel::add_scaled ? factor : 1](const Product<T>& a, Index i, Index j) {
            const double added = static_cast<double>(static_cast<T>(factor)) * static_cast<double>(a.w(i, j));
            const double y = static_cast<double>(a.x(i, j)) + added;
            const double error = factor == 1 ? 0 : stored<T>(added, 2 * unit<T>() * std::abs(added), format).bound;
            return stored<T>(y, error + 2 * unit<T>() * (std::abs(y) + error), format);
          });
  }
}

namespace {

template <class T>
struct Moved {
  Matrix<T> x, y;
  std::vector<std::int64_t> rows;
};

}  // namespace

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

namespace {

template <class T>
struct Slots {
  Matrix<T> x, weights, y;
  Matrix<std::int64_t> positions;
};

}  // namespace

template <class T>
PreparedOp combine(const OpShape& s, Format format) {
  Slots<T> slots{filled<T>(s.present, s.cols, 1, format),
                 filled<T>(s.rows, s.inner, 2, format),
                 {s.rows, s.cols},
                 {s.rows, s.inner}};
  // Those that are there lie evenly among the slots.
  const Index all = s.rows * s.inner;
  const std::vector<std::int64_t> places = scattered(s.present, std::max<Index>(1, s.present));
  for (Index i = 0; i < all; ++i) {
    const Index before = i * s.present / all;
    const bool here = (i + 1) * s.present / all > before;
    slots.positions.span()[static_cast<std::size_t>(i)] =
        here ? places[static_cast<std::size_t>(before)] : ops::kElsewhere;
  }
  return made(
      std::move(slots), 4, 16, [format](Slots<T>& a) { ops::combine<T>(a.x, a.positions, a.weights, format, a.y); },
      [format](const Slots<T>& a, Index i, Index j) {
        double sum = 0, magnitude = 0;
        for (Index slot = 0; slot < a.weights.cols(); ++slot) {
          if (a.positions(i, slot) == ops::kElsewhere) continue;
          const double term =
              static_cast<double>(a.weights(i, slot)) * static_cast<double>(a.x(a.positions(i, slot), j));
          sum += term;
          magnitude += std::abs(term);
        }
        return stored<T>(sum, gamma<T>(static_cast<double>(a.weights.cols()) + 1) * magnitude, format);
      });
}

template PreparedOp norm<float>(const OpShape&, Format);
template PreparedOp norm<double>(const OpShape&, Format);
template PreparedOp squares<float>(const OpShape&, Format);
template PreparedOp squares<double>(const OpShape&, Format);
template PreparedOp rope<float>(const OpShape&, Format);
template PreparedOp rope<double>(const OpShape&, Format);
template PreparedOp elementwise<float>(const OpShape&, Format);
template PreparedOp elementwise<double>(const OpShape&, Format);
template PreparedOp gather_rows<float>(const OpShape&, Format);
template PreparedOp gather_rows<double>(const OpShape&, Format);
template PreparedOp embed<float>(const OpShape&, Format);
template PreparedOp embed<double>(const OpShape&, Format);
template PreparedOp combine<float>(const OpShape&, Format);
template PreparedOp combine<double>(const OpShape&, Format);

}  // namespace shardproof::tools::prepare
