#include "ops/router.h"

#include <cmath>
#include <limits>
#include <string_view>
#include <vector>

#include "ops/internal/math.h"
#include "ops/shape.h"

namespace shardproof::ops {

namespace {

/// The expert of the largest logit among those that come after `last` in the order of falling logit, ties to the lower
/// index, NaN after everything else. last < 0: the first of all.
template <class T>
Index next_expert(std::span<const T> logits, Index last) {
  const auto before = [&](Index a, Index b) {
    const T x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    const bool x_is_nan = std::isnan(x), y_is_nan = std::isnan(y);
    if (x_is_nan != y_is_nan) return y_is_nan;
    if (x > y) return true;
    return !(x < y) && a < b;
  };
  Index best = -1;
  for (Index e = 0; e < static_cast<Index>(logits.size()); ++e) {
    if (last >= 0 && !before(last, e)) continue;
    if (best < 0 || before(e, best)) best = e;
  }
  return best;
}

template <class T>
void require_choice_shape(std::string_view op, MatrixView<const T> logits, MatrixView<const std::int32_t> ids,
                          MatrixView<T> weights) {
  require_equal(op, "rows of the ids", logits.rows, ids.rows);
  require_equal(op, "rows of the weights", logits.rows, weights.rows);
  require_equal(op, "columns of the weights", ids.cols, weights.cols);
}

/// No logit is NaN or minus infinity.
template <class T>
bool all_above_minus_infinity(std::span<const T> logits) {
  int below = 0;
  for (const T logit : logits) below += logit > -std::numeric_limits<T>::infinity() ? 0 : 1;
  return below == 0;
}

/// The order of next_expert where every logit is above minus infinity: the largest, first of equals, slot after slot.
template <class T>
void choose(std::span<const T> logits, std::vector<T>& left, std::span<std::int32_t> ids) {
  left.assign(logits.begin(), logits.end());
  for (std::int32_t& id : ids) {
    const T largest = simd::largest_of<T>(static_cast<Index>(left.size()), left.data());
    std::size_t place = 0;
    while (left[place] != largest) ++place;
    left[place] = -std::numeric_limits<T>::infinity();
    id = static_cast<std::int32_t>(place);
  }
}

}  // namespace

template <class T>
void route_weights(MatrixView<const T> logits, MatrixView<const std::int32_t> ids, bool normalise, Format format,
                   MatrixView<T> weights) {
  require_choice_shape("route_weights", logits, ids, weights);
  const auto exponentials = [&](const T* in, Index count, T largest, T* out) {
    simd::transform<T>(
        count, out,
        [&](auto value) {
          const simd::Vec<T> e = simd::exponential<T>(value - largest);
          return format == Format::exact ? simd::round_to_multiple<T>(e, static_cast<T>(kExpStep)) : e;
        },
        in);
  };
  std::vector<T> all(static_cast<std::size_t>(normalise ? 0 : logits.cols));
  for (Index t = 0; t < logits.rows; ++t) {
    const std::span<const T> row = logits.row(t);
    const std::span<T> weight = weights.row(t);
    for (Index slot = 0; slot < ids.cols; ++slot) weights(t, slot) = row[static_cast<std::size_t>(ids(t, slot))];
    const T largest = all_above_minus_infinity(row) ? simd::largest_of<T>(logits.cols, row.data())
                                                    : row[static_cast<std::size_t>(next_expert(row, -1))];
    exponentials(weight.data(), ids.cols, largest, weight.data());
    T sum = 0;
    if (normalise) {
      for (const T e : weight) sum += e;
    } else {
      exponentials(row.data(), logits.cols, largest, all.data());
      for (const T e : all) sum += e;
    }
    for (T& e : weight) e /= sum;
    round_to(weight, format);
  }
}

template <class T>
void route(MatrixView<const T> logits, Index top_k, bool normalise, Format format, MatrixView<std::int32_t> ids,
           MatrixView<T> weights) {
  require_choice_shape<T>("route", logits, ids, weights);
  require_equal("route", "columns of the ids", top_k, ids.cols);
  if (logits.rows == 0) return;
  if (top_k < 1 || top_k > logits.cols) throw ShapeError("route", "top_k (at most the experts)", logits.cols, top_k);
  std::vector<T> left;
  for (Index t = 0; t < logits.rows; ++t) {
    if (all_above_minus_infinity(logits.row(t))) {
      choose(logits.row(t), left, ids.row(t));
      continue;
    }
    Index last = -1;
    for (std::int32_t& id : ids.row(t)) id = static_cast<std::int32_t>(last = next_expert(logits.row(t), last));
  }
  route_weights<T>(logits, ids, normalise, format, weights);
}

template void route_weights(MatrixView<const float>, MatrixView<const std::int32_t>, bool, Format, MatrixView<float>);
template void route_weights(MatrixView<const double>, MatrixView<const std::int32_t>, bool, Format, MatrixView<double>);
template void route(MatrixView<const float>, Index, bool, Format, MatrixView<std::int32_t>, MatrixView<float>);
template void route(MatrixView<const double>, Index, bool, Format, MatrixView<std::int32_t>, MatrixView<double>);

}  // namespace shardproof::ops
