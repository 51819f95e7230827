// What the ops that are run to be timed have in common: operands, and how a result is held to its definition.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "ops/format.h"
#include "ops/matrix.h"
#include "tools/op_shape.h"
#include "tools/prepared_op.h"

namespace shardproof::tools::prepare {

using ops::Format;
using ops::Index;
using ops::Matrix;
using ops::MatrixView;

inline constexpr double kTheta = 1e6;
inline constexpr double kEps = 1e-5;

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

inline std::vector<std::int64_t> scattered(Index count, Index below) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::int64_t>(i) * 7919 % below;
  return rows;
}

/// First, last, and up to `count` between.
inline std::vector<Index> sample(Index size, Index count) {
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
inline double store_error(Format format, double size) {
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

/// Each in the file of its name: prepare_attention.cpp, prepare_products.cpp, prepare_route.cpp, prepare_rows.cpp. For
/// float and double.
template <class T>
PreparedOp attention(const OpShape& shape, Format format);
template <class T>
PreparedOp attention_part(const OpShape& shape, Format format);
template <class T>
PreparedOp merge_parts(const OpShape& shape, Format format);
template <class T>
PreparedOp split_heads(const OpShape& shape, Format format);
template <class T>
PreparedOp absorb_queries(const OpShape& shape, Format format);
template <class T>
PreparedOp latent_attention(const OpShape& shape, Format format);
template <class T>
PreparedOp expand_context(const OpShape& shape, Format format);
template <class T>
PreparedOp linear(const OpShape& shape, Format format);
template <class T>
PreparedOp expert(const OpShape& shape, Format format);
template <class T>
PreparedOp norm(const OpShape& shape, Format format);
template <class T>
PreparedOp squares(const OpShape& shape, Format format);
template <class T>
PreparedOp rope(const OpShape& shape, Format format);
template <class T>
PreparedOp elementwise(const OpShape& shape, Format format);
template <class T>
PreparedOp route(const OpShape& shape, Format format);
template <class T>
PreparedOp gather_rows(const OpShape& shape, Format format);
template <class T>
PreparedOp embed(const OpShape& shape, Format format);
template <class T>
PreparedOp combine(const OpShape& shape, Format format);

}  // namespace shardproof::tools::prepare
