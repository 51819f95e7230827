// Naive oracles in double, and data to hold the ops to them.
//
// The oracles follow the definitions literally, with std::exp and one loop a formula; `exact` rounds where the format's
// rules say. Data come from a small generator, on the grid of the exact format, so that every case can be named by a
// seed and no sum in it is inexact.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof::ops::oracle {

class Generator {
 public:
  explicit Generator(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ULL + 1) {}

  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15ULL);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }
  Index below(Index count) { return static_cast<Index>(next() % static_cast<std::uint64_t>(count)); }
  /// A multiple of kActivationStep in [-range, range).
  double on_grid(double range) {
    const auto steps = static_cast<Index>(2 * range / kActivationStep);
    return (static_cast<double>(below(steps)) - static_cast<double>(steps) / 2) * kActivationStep;
  }

 private:
  std::uint64_t state_;
};

template <class T>
Matrix<T> random_matrix(Index rows, Index cols, double range, std::uint64_t seed) {
  Generator generator(seed);
  Matrix<T> result(rows, cols);
  for (T& value : result.span()) value = static_cast<T>(generator.on_grid(range));
  return result;
}

template <class To, class From>
Matrix<To> converted(MatrixView<const From> from) {
  Matrix<To> result(from.rows, from.cols);
  for (Index i = 0; i < from.rows; ++i) {
    for (Index j = 0; j < from.cols; ++j) result(i, j) = static_cast<To>(from(i, j));
  }
  return result;
}

inline double to_multiple(double value, double step) {
  return std::nearbyint(value / step) * step + 0.0;
}
inline double exact_stored(double value) {
  return to_multiple(value, kActivationStep);
}
inline double exponential(double x, bool exact) {
  return exact ? to_multiple(std::exp(x), kExpStep) : std::exp(x);
}

inline Matrix<double> linear(MatrixView<const double> x, MatrixView<const double> w) {
  Matrix<double> y(x.rows, w.rows);
  for (Index i = 0; i < x.rows; ++i) {
    for (Index j = 0; j < w.rows; ++j) {
      double sum = 0;
      for (Index k = 0; k < x.cols; ++k) sum += x(i, k) * w(j, k);
      y(i, j) = sum;
    }
  }
  return y;
}

inline Matrix<double> rms_norm(MatrixView<const double> x, std::span<const double> weight, double eps, bool exact) {
  Matrix<double> y(x.rows, x.cols);
  for (Index i = 0; i < x.rows; ++i) {
    double sum = 0;
    for (const double value : x.row(i)) sum += value * value;
    const double inverse = 1 / std::sqrt(sum / static_cast<double>(x.cols) + eps);
    for (Index j = 0; j < x.cols; ++j) {
      const double value = x(i, j) * inverse * weight[static_cast<std::size_t>(j)];
      y(i, j) = exact ? exact_stored(value) : value;
    }
  }
  return y;
}

inline Matrix<double> rope(MatrixView<const double> x, std::span<const std::int64_t> positions, Index head_dim,
                           double theta, bool exact) {
  Matrix<double> y(x.rows, x.cols);
  const Index half = head_dim / 2;
  for (Index t = 0; t < x.rows; ++t) {
    for (Index j = 0; j < x.cols; ++j) {
      const Index i = j % head_dim % half;
      const bool first = j % head_dim < half;
      const double angle = static_cast<double>(positions[static_cast<std::size_t>(t)]) *
                           std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
      double c = std::cos(angle), s = std::sin(angle);
      if (exact) c = to_multiple(c, kExpStep), s = to_multiple(s, kExpStep);
      const double value = first ? x(t, j) * c - x(t, j + half) * s : x(t, j) * c + x(t, j - half) * s;
      y(t, j) = exact ? exact_stored(value) : value;
    }
  }
  return y;
}

inline Matrix<double> attention(MatrixView<const double> q, MatrixView<const double> k, MatrixView<const double> v,
                                std::span<const std::int64_t> offsets, Index head_dim, bool exact) {
  Matrix<double> out = Matrix<double>::zeros(q.rows, q.cols);
  const Index heads = q.cols / head_dim, share = q.cols / k.cols;
  for (std::size_t s = 1; s < offsets.size(); ++s) {
    for (Index t = offsets[s - 1]; t < offsets[s]; ++t) {
      for (Index h = 0; h < heads; ++h) {
        const Index column = h * head_dim, kv_column = h / share * head_dim;
        std::vector<double> p;
        for (Index j = offsets[s - 1]; j <= t; ++j) {
          double dot = 0;
          for (Index d = 0; d < head_dim; ++d) dot += q(t, column + d) * k(j, kv_column + d);
          const double score = dot * (1 / std::sqrt(static_cast<double>(head_dim)));
          p.push_back(exact ? exact_stored(score) : score);
        }
        const double largest = *std::max_element(p.begin(), p.end());
        double sum = 0;
        for (double& score : p) sum += score = exponential(score - largest, exact);
        for (Index d = 0; d < head_dim; ++d) {
          double total = 0;
          for (std::size_t j = 0; j < p.size(); ++j) {
            total += p[j] * v(offsets[s - 1] + static_cast<Index>(j), kv_column + d);
          }
          out(t, column + d) = exact ? exact_stored(total / sum) : total / sum;
        }
      }
    }
  }
  return out;
}

inline double swiglu(double gate, double up, bool exact) {
  const double argument = exact ? std::min(-gate, 20.0) : -gate;
  const double value = gate / (1 + exponential(argument, exact)) * up;
  return exact ? exact_stored(value) : value;
}

template <class T, class U>
void expect_equal(MatrixView<const T> expected, MatrixView<const U> got) {
  ASSERT_EQ(expected.rows, got.rows);
  ASSERT_EQ(expected.cols, got.cols);
  for (Index i = 0; i < expected.rows; ++i) {
    for (Index j = 0; j < expected.cols; ++j) ASSERT_EQ(expected(i, j), got(i, j)) << "at (" << i << ", " << j << ")";
  }
}

/// |got - expected| <= bound * (largest |expected| of the row), and the data are not all zero.
template <class T>
void expect_near(MatrixView<const double> expected, MatrixView<const T> got, double bound) {
  ASSERT_EQ(expected.rows, got.rows);
  ASSERT_EQ(expected.cols, got.cols);
  for (Index i = 0; i < expected.rows; ++i) {
    double scale = 0;
    for (const double value : expected.row(i)) scale = std::max(scale, std::abs(value));
    ASSERT_GT(scale, 0) << "row " << i << " is empty";
    for (Index j = 0; j < expected.cols; ++j) {
      ASSERT_NEAR(expected(i, j), static_cast<double>(got(i, j)), bound * scale) << "at (" << i << ", " << j << ")";
    }
  }
}

template <class T>
bool same_bits(MatrixView<const T> a, MatrixView<const T> b) {
  if (a.rows != b.rows || a.cols != b.cols) return false;
  if (a.cols == 0) return true;
  for (Index i = 0; i < a.rows; ++i) {
    if (std::memcmp(a.row(i).data(), b.row(i).data(), static_cast<std::size_t>(a.cols) * sizeof(T)) != 0) return false;
  }
  return true;
}

}  // namespace shardproof::ops::oracle
