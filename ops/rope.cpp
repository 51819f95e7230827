#include "ops/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "ops/internal/math.h"
#include "ops/shape.h"

namespace shardproof::ops {

namespace {

double to_exp_step(double value) {
  return simd::round_to_multiple<double>(simd::broadcast(value), kExpStep)[0];
}

template <class T>
void turns_of(Index position, const std::vector<double>& frequency, double amplitude, Format format, T* cosine,
              T* sine) {
  for (std::size_t i = 0; i < frequency.size(); ++i) {
    const double angle = static_cast<double>(position) * frequency[i];
    const double c = amplitude * std::cos(angle), s = amplitude * std::sin(angle);
    cosine[i] = static_cast<T>(format == Format::exact ? to_exp_step(c) : c);
    sine[i] = static_cast<T>(format == Format::exact ? to_exp_step(s) : s);
  }
}

template <class T, class Rounding>
void turn_row(std::span<T> row, Index half, const T* cosine, const T* sine, Rounding rounding) {
  for (T* head = row.data(); head != row.data() + row.size(); head += 2 * half) {
    Index i = 0;
    const auto turn = [&](auto load, auto store) {
      const simd::Vec<T> a = load(head + i), b = load(head + half + i), c = load(cosine + i), s = load(sine + i);
      store(head + i, rounding(a * c - b * s));
      store(head + half + i, rounding(b * c + a * s));
    };
    for (; i + simd::kLanes<T> <= half; i += simd::kLanes<T>) {
      turn([](const T* from) { return simd::load<T>(from); },
           [](T* to, simd::Vec<T> value) { simd::store<T>(to, value); });
    }
    if (const Index rest = half - i; rest > 0) {
      turn([&](const T* from) { return simd::load_partial<T>(from, rest); },
           [&](T* to, simd::Vec<T> value) { simd::store_partial<T>(to, value, rest); });
    }
  }
}

/// The same for pairs that do not fill their heads, or lie side by side.
template <class T, class Rounding>
void turn_pairs(std::span<T> row, const RopeTable<T>& table, Index position, Rounding rounding) {
  const std::span<const T> cosine = table.cosine(position), sine = table.sine(position);
  const auto pairs = static_cast<Index>(cosine.size());
  const Index step = table.interleaved() ? 2 : 1, apart = table.interleaved() ? 1 : pairs;
  for (T* head = row.data(); head != row.data() + row.size(); head += table.head_dim()) {
    for (Index i = 0; i < pairs; ++i) {
      T& a = head[table.begin() + i * step];
      T& b = head[table.begin() + i * step + apart];
      const T c = cosine[static_cast<std::size_t>(i)], s = sine[static_cast<std::size_t>(i)];
      const T turned = rounding(simd::broadcast<T>(a * c - b * s))[0];
      b = rounding(simd::broadcast<T>(b * c + a * s))[0];
      a = turned;
    }
  }
}

template <class T>
void require_shapes(MatrixView<T> x, std::span<const std::int64_t> positions, Index head_dim) {
  require_equal("rope", "number of positions", x.rows, static_cast<Index>(positions.size()));
  require_equal("rope", "columns beyond a whole number of heads", 0, x.cols % head_dim);
}

}  // namespace

std::vector<double> rope_frequencies(Index dim, double theta) {
  if (dim < 2 || dim % 2 != 0) throw ShapeError("rope", "head_dim (even)", 2, dim);
  std::vector<double> result(static_cast<std::size_t>(dim / 2));
  for (std::size_t i = 0; i < result.size(); ++i) {
    result[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
  }
  return result;
}

std::vector<double> llama3_frequencies(std::vector<double> plain, double factor, double context, double low,
                                       double high) {
  for (double& f : plain) {
    const double turns = context * f / (2 * std::numbers::pi);  // context over the wavelength
    const double share = std::clamp((turns - low) / (high - low), 0.0, 1.0);
    f = (1 - share) * (f / factor) + share * f;
  }
  return plain;
}

std::vector<double> yarn_frequencies(std::vector<double> plain, double theta, double factor, double context,
                                     double beta_fast, double beta_slow, bool truncate) {
  const double dim = 2 * static_cast<double>(plain.size());
  const auto pair_of = [&](double turns) {
    return dim * std::log(context / (turns * 2 * std::numbers::pi)) / (2 * std::log(theta));
  };
  double first = pair_of(beta_fast), last = pair_of(beta_slow);
  if (truncate) {
    first = std::floor(first);
    last = std::ceil(last);
  }
  first = std::max(first, 0.0);
  last = std::min(last, dim - 1);
  if (first == last) last += 0.001;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - first) / (last - first), 0.0, 1.0);
    plain[i] = plain[i] / factor * ramp + plain[i] * (1 - ramp);
  }
  return plain;
}

template <class T>
RopeTable<T>::RopeTable(Index positions, const RopePairs& pairs, Format format)
    : values_(positions, 2 * static_cast<Index>(pairs.frequencies.size())),
      head_dim_(pairs.head_dim),
      begin_(pairs.begin),
      interleaved_(pairs.interleaved),
      format_(format) {
  if (begin_ < 0 || values_.cols() < 2 || begin_ + values_.cols() > head_dim_) {
    throw ShapeError("rope", "elements of a head that turn (at most)", head_dim_ - begin_, values_.cols());
  }
  for (Index position = 0; position < positions; ++position) {
    T* const row = values_.row(position).data();
    turns_of<T>(position, pairs.frequencies, pairs.amplitude, format, row, row + half());
  }
}

template <class T>
RopeTable<T>::RopeTable(Index positions, Index head_dim, double theta, Format format)
    : RopeTable(positions, {.head_dim = head_dim, .frequencies = rope_frequencies(head_dim, theta)}, format) {}

template <class T>
void rope(MatrixView<T> x, std::span<const std::int64_t> positions, const RopeTable<T>& table) {
  require_shapes(x, positions, table.head_dim());
  for (const Index position : positions) {
    if (position < 0 || position >= table.positions()) {
      throw ShapeError("rope", "position (below the table's positions)", table.positions(), position);
    }
  }
  simd::with_rounding<T>(table.format(), [&](auto rounding) {
    for (Index t = 0; t < x.rows; ++t) {
      const Index position = positions[static_cast<std::size_t>(t)];
      if (table.interleaved() || static_cast<Index>(2 * table.cosine(position).size()) != table.head_dim()) {
        turn_pairs<T>(x.row(t), table, position, rounding);
        continue;
      }
      turn_row<T>(x.row(t), table.head_dim() / 2, table.cosine(position).data(), table.sine(position).data(), rounding);
    }
  });
}

template <class T>
void rope(MatrixView<T> x, std::span<const std::int64_t> positions, Index head_dim, double theta, Format format) {
  const std::vector<double> frequency = rope_frequencies(head_dim, theta);
  require_shapes(x, positions, head_dim);
  std::vector<T> cosine(frequency.size()), sine(frequency.size());
  simd::with_rounding<T>(format, [&](auto rounding) {
    for (Index t = 0; t < x.rows; ++t) {
      turns_of<T>(positions[static_cast<std::size_t>(t)], frequency, 1.0, format, cosine.data(), sine.data());
      turn_row<T>(x.row(t), head_dim / 2, cosine.data(), sine.data(), rounding);
    }
  });
}

template class RopeTable<float>;
template class RopeTable<double>;
template void rope(MatrixView<float>, std::span<const std::int64_t>, const RopeTable<float>&);
template void rope(MatrixView<double>, std::span<const std::int64_t>, const RopeTable<double>&);
template void rope(MatrixView<float>, std::span<const std::int64_t>, Index, double, Format);
template void rope(MatrixView<double>, std::span<const std::int64_t>, Index, double, Format);

}  // namespace shardproof::ops
