#include "ops/router.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string_view>
#include <vector>

#include "ops/internal/math.h"
#include "ops/internal/sigmoid.h"
#include "ops/shape.h"

namespace shardproof::ops {

namespace {

/// Keeps the sum of no scores from dividing.
constexpr double kLeastScoreSum = 1e-20;
/// Of more experts the largest is looked for in blocks.
constexpr std::size_t kMany = 64;

/// Whether expert a is preferred to expert b: the larger logit, ties to the lower index, NaN after everything else.
template <class T>
class Preferred {
 public:
  explicit Preferred(std::span<const T> logits) : logits_(logits) {}
  bool operator()(std::int32_t a, std::int32_t b) const {
    const T x = logits_[static_cast<std::size_t>(a)], y = logits_[static_cast<std::size_t>(b)];
    const bool x_is_nan = std::isnan(x), y_is_nan = std::isnan(y);
    if (x_is_nan != y_is_nan) return y_is_nan;
    if (x > y) return true;
    return !(x < y) && a < b;
  }

 private:
  std::span<const T> logits_;
};

/// order becomes all experts, of which the first `count` are in the order in which they are preferred.
template <class T>
void sort_experts(std::span<const T> logits, std::size_t count, std::vector<std::int32_t>& order) {
  order.resize(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    Preferred<T>(logits));
}

/// A logit that no other is preferred to.
template <class T>
T most_preferred(std::span<const T> logits, std::vector<std::int32_t>& order) {
  sort_experts(logits, 1, order);
  return logits[static_cast<std::size_t>(order[0])];
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

/// No logit is NaN, and so many are above minus infinity: none other is chosen.
template <class T>
bool can_choose(std::span<const T> logits, std::size_t slots) {
  std::size_t below = 0;
  for (const T logit : logits) {
    if (std::isnan(logit)) return false;
    below += logit > -std::numeric_limits<T>::infinity() ? 0U : 1U;
  }
  return logits.size() - below >= slots;
}

/// The same where every logit is above minus infinity and few are chosen: the largest, first of equals, slot after
/// slot.
template <class T>
void choose_few(std::span<const T> logits, std::vector<T>& left, std::span<std::int32_t> ids) {
  left.assign(logits.begin(), logits.end());
  for (std::int32_t& id : ids) {
    const T largest = simd::largest_of<T>(static_cast<Index>(left.size()), left.data());
    std::size_t place = 0;
    while (left[place] != largest) ++place;
    left[place] = -std::numeric_limits<T>::infinity();
    id = static_cast<std::int32_t>(place);
  }
}

/// The same among many, block by block: each is walked again only when its largest was taken.
template <class T>
void choose_among_many(std::span<const T> logits, std::vector<T>& left, std::span<std::int32_t> ids) {
  constexpr std::size_t kBlock = simd::kPartials<T>;
  left.assign(logits.begin(), logits.end());
  left.resize((logits.size() + kBlock - 1) / kBlock * kBlock, -std::numeric_limits<T>::infinity());
  std::vector<T> largest;
  for (std::size_t b = 0; b < left.size(); b += kBlock) {
    largest.push_back(simd::largest_of<T>(simd::kPartials<T>, left.data() + b));
  }
  for (std::int32_t& id : ids) {
    const auto block = std::ranges::max_element(largest);
    std::size_t place = static_cast<std::size_t>(block - largest.begin()) * kBlock;
    const T* const begin = left.data() + place;
    while (left[place] != *block) ++place;
    left[place] = -std::numeric_limits<T>::infinity();
    *block = simd::largest_of<T>(simd::kPartials<T>, begin);
    id = static_cast<std::int32_t>(place);
  }
}

/// out = exp(in - largest).
template <class T>
void exponentials(const T* in, Index count, T largest, Format format, T* out) {
  simd::transform<T>(
      count, out,
      [&](auto value) {
        const simd::Vec<T> e = simd::exponential<T>(value - largest);
        return format == Format::exact ? simd::round_to_multiple<T>(e, static_cast<T>(kExpStep)) : e;
      },
      in);
}

template <class T>
void sparsemixer_weights(MatrixView<const T> logits, MatrixView<const std::int32_t> ids, double jitter, Format format,
                         MatrixView<T> weights) {
  require_choice_shape("route_weights", logits, ids, weights);
  const T band = static_cast<T>(2 * jitter);
  std::vector<T> left, terms(static_cast<std::size_t>(logits.cols));
  for (Index t = 0; t < logits.rows; ++t) {
    const std::span<const T> row = logits.row(t);
    left.assign(row.begin(), row.end());
    for (Index slot = 0; slot < ids.cols; ++slot) {
      const auto chosen = static_cast<std::size_t>(ids(t, slot));
      const T largest = *std::ranges::max_element(left);
      exponentials(row.data(), logits.cols, largest, format, terms.data());
      T sum = 0;
      for (std::size_t e = 0; e < row.size(); ++e) {
        if (left[e] < row[e]) continue;
        const bool far = (largest - row[e]) / std::max(std::abs(row[e]), largest) > band;
        if (!far) sum += terms[e];
      }
      weights(t, slot) = terms[chosen] / sum;
      left[chosen] = -std::numeric_limits<T>::infinity();
    }
    round_to(weights.row(t), format);
  }
}

/// Not stored.
template <class T>
void softmax_weights(MatrixView<const T> logits, MatrixView<const std::int32_t> ids, bool normalise, Format format,
                     MatrixView<T> weights) {
  require_choice_shape("route_weights", logits, ids, weights);
  std::vector<T> all(static_cast<std::size_t>(normalise ? 0 : logits.cols));
  std::vector<std::int32_t> order;
  for (Index t = 0; t < logits.rows; ++t) {
    const std::span<const T> row = logits.row(t);
    const std::span<T> weight = weights.row(t);
    for (Index slot = 0; slot < ids.cols; ++slot) weights(t, slot) = row[static_cast<std::size_t>(ids(t, slot))];
    const T largest =
        all_above_minus_infinity(row) ? simd::largest_of<T>(logits.cols, row.data()) : most_preferred(row, order);
    exponentials(weight.data(), ids.cols, largest, format, weight.data());
    T sum = 0;
    if (normalise) {
      for (const T e : weight) sum += e;
    } else {
      exponentials(row.data(), logits.cols, largest, format, all.data());
      for (const T e : all) sum += e;
    }
    for (T& e : weight) e /= sum;
  }
}

template <class T>
void sigmoid(std::span<T> values, Format format) {
  if (format == Format::exact) {
    for (T& value : values) value = simd::sigmoid<T>(value, format);
    return;
  }
  simd::transform<T>(
      static_cast<Index>(values.size()), values.data(), [](auto value) { return simd::logistic<T>(value); },
      values.data());
}

/// The largest score and the next, NaN as minus infinity.
template <class T>
struct BestTwo {
  T first = -std::numeric_limits<T>::infinity(), second = -std::numeric_limits<T>::infinity();

  void add(T score) {
    second = std::max(second, std::min(first, score));
    first = std::max(first, score);
  }
};

template <class T>
BestTwo<T> best_two(std::span<const T> scores) {
  using simd::Vec;
  constexpr Index kL = simd::kLanes<T>;
  const Vec<T> least = simd::broadcast<T>(-std::numeric_limits<T>::infinity());
  Vec<T> first = least, second = least;
  const auto count = static_cast<Index>(scores.size());
  Index i = 0;
  for (; i + kL <= count; i += kL) {
    const Vec<T> loaded = simd::load<T>(scores.data() + i), score = loaded == loaded ? loaded : least;
    const Vec<T> smaller = score < first ? score : first;
    second = smaller > second ? smaller : second;
    first = score > first ? score : first;
  }
  BestTwo<T> best;
  for (Index lane = 0; lane < kL; ++lane) {
    best.add(first[lane]);
    best.add(second[lane]);
  }
  for (; i < count; ++i)
    best.add(std::isnan(scores[static_cast<std::size_t>(i)]) ? least[0] : scores[static_cast<std::size_t>(i)]);
  return best;
}

/// Sets the scores of the groups that are not chosen from to what they are closed by.
template <class T>
void close_groups(const RouteOptions<T>& options, std::span<T> scores) {
  const auto groups = static_cast<std::size_t>(options.groups);
  if (options.groups > static_cast<Index>(scores.size()) || scores.size() % groups != 0) {
    throw ShapeError("choose_experts", "groups (a divisor of the experts)", static_cast<Index>(scores.size()),
                     options.groups);
  }
  const std::size_t size = scores.size() / groups;
  std::vector<T> best(groups);
  for (std::size_t g = 0; g < groups; ++g) {
    const BestTwo<T> of_group = best_two<T>(scores.subspan(g * size, size));
    best[g] = options.sigmoid && size > 1 ? of_group.first + of_group.second : of_group.first;
  }
  std::vector<std::size_t> order(groups);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return best[a] > best[b]; });
  for (std::size_t i = static_cast<std::size_t>(options.top_groups); i < groups; ++i) {
    std::fill_n(scores.begin() + static_cast<std::ptrdiff_t>(order[i] * size), size,
                static_cast<T>(options.closed_score));
  }
}

}  // namespace

template <class T>
void selection_scores(MatrixView<const T> logits, const RouteOptions<T>& options, Format format, MatrixView<T> scores) {
  require_equal("selection_scores", "rows", logits.rows, scores.rows);
  require_equal("selection_scores", "columns", logits.cols, scores.cols);
  const bool biased = !options.selection_bias.empty();
  if (biased) {
    require_equal("selection_scores", "values of the bias", logits.cols,
                  static_cast<Index>(options.selection_bias.size()));
  }
  for (Index t = 0; t < logits.rows; ++t) {
    const std::span<T> row = scores.row(t);
    std::ranges::copy(logits.row(t), row.begin());
    if (options.sigmoid) sigmoid(row, format);
    if (biased) {
      for (std::size_t e = 0; e < row.size(); ++e) row[e] += options.selection_bias[e];
    }
  }
}

template <class T>
void choose_experts(MatrixView<const T> scores, const RouteOptions<T>& options, MatrixView<std::int32_t> ids) {
  require_equal("choose_experts", "rows of the ids", scores.rows, ids.rows);
  if (scores.rows == 0) return;
  if (ids.cols < 1 || ids.cols > scores.cols) {
    throw ShapeError("choose_experts", "top_k (at most the experts)", scores.cols, ids.cols);
  }
  // Each slot of choose_few passes over all experts; sorting them takes as long as about so many passes.
  constexpr Index kFew = 32;
  std::vector<T> left, open;
  std::vector<std::int32_t> order;
  for (Index t = 0; t < scores.rows; ++t) {
    std::span<const T> row = scores.row(t);
    if (options.groups > 1) {
      open.assign(row.begin(), row.end());
      close_groups<T>(options, open);
      row = open;
    }
    const bool many = row.size() > kMany;
    if (ids.cols <= kFew && many && can_choose(row, static_cast<std::size_t>(ids.cols))) {
      choose_among_many(row, left, ids.row(t));
      continue;
    }
    if (ids.cols <= kFew && !many && all_above_minus_infinity(row)) {
      choose_few(row, left, ids.row(t));
      continue;
    }
    sort_experts(row, static_cast<std::size_t>(ids.cols), order);
    std::copy_n(order.begin(), ids.cols, ids.row(t).begin());
  }
}

template <class T>
void route_weights(MatrixView<const T> logits, MatrixView<const std::int32_t> ids, const RouteOptions<T>& options,
                   Format format, MatrixView<T> weights) {
  if (options.sparsemixer) return sparsemixer_weights<T>(logits, ids, options.jitter, format, weights);
  if (!options.sigmoid && options.scale == 1) {
    return route_weights<T>(logits, ids, options.normalise, format, weights);
  }
  require_choice_shape("route_weights", logits, ids, weights);
  if (!options.sigmoid) {
    softmax_weights<T>(logits, ids, options.normalise, format, weights);
  }
  for (Index t = 0; t < logits.rows; ++t) {
    const std::span<T> weight = weights.row(t);
    if (options.sigmoid) {
      for (Index slot = 0; slot < ids.cols; ++slot) weights(t, slot) = logits(t, ids(t, slot));
      sigmoid(weight, format);
      for (Index slot = 0; slot < ids.cols && options.weighs_bias; ++slot) {
        weights(t, slot) += options.selection_bias[static_cast<std::size_t>(ids(t, slot))];
      }
      if (options.normalise) {
        T sum = 0;
        for (const T score : weight) sum += score;
        sum += static_cast<T>(kLeastScoreSum);
        for (T& score : weight) score /= sum;
      }
    }
    for (T& score : weight) score *= static_cast<T>(options.scale);
    round_to(weight, format);
  }
}

template <class T>
void route_weights(MatrixView<const T> logits, MatrixView<const std::int32_t> ids, bool normalise, Format format,
                   MatrixView<T> weights) {
  softmax_weights<T>(logits, ids, normalise, format, weights);
  for (Index t = 0; t < weights.rows; ++t) round_to(weights.row(t), format);
}

template <class T>
void route(MatrixView<const T> logits, Index top_k, bool normalise, Format format, MatrixView<std::int32_t> ids,
           MatrixView<T> weights) {
  require_choice_shape<T>("route", logits, ids, weights);
  require_equal("route", "columns of the ids", top_k, ids.cols);
  if (logits.rows == 0) return;
  if (top_k < 1 || top_k > logits.cols) throw ShapeError("route", "top_k (at most the experts)", logits.cols, top_k);
  choose_experts<T>(logits, {}, ids);
  route_weights<T>(logits, ids, normalise, format, weights);
}

template void selection_scores(MatrixView<const float>, const RouteOptions<float>&, Format, MatrixView<float>);
template void choose_experts(MatrixView<const float>, const RouteOptions<float>&, MatrixView<std::int32_t>);
template void route_weights(MatrixView<const float>, MatrixView<const std::int32_t>, const RouteOptions<float>&, Format,
                            MatrixView<float>);
template void selection_scores(MatrixView<const double>, const RouteOptions<double>&, Format, MatrixView<double>);
template void choose_experts(MatrixView<const double>, const RouteOptions<double>&, MatrixView<std::int32_t>);
template void route_weights(MatrixView<const double>, MatrixView<const std::int32_t>, const RouteOptions<double>&,
                            Format, MatrixView<double>);
template void route_weights(MatrixView<const float>, MatrixView<const std::int32_t>, bool, Format, MatrixView<float>);
template void route_weights(MatrixView<const double>, MatrixView<const std::int32_t>, bool, Format, MatrixView<double>);
template void route(MatrixView<const float>, Index, bool, Format, MatrixView<std::int32_t>, MatrixView<float>);
template void route(MatrixView<const double>, Index, bool, Format, MatrixView<std::int32_t>, MatrixView<double>);

}  // namespace shardproof::ops
