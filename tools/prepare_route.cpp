#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "ops/router.h"
#include "tools/prepare.h"

namespace shardproof::tools::prepare {
namespace {

template <class T>
struct Choice {
  Matrix<T> logits, bias, scores, y;
  Matrix<std::int32_t> ids;
  OpShape shape;
};

template <class T>
ops::RouteOptions<T> options_of(const Choice<T>& a) {
  const OpShape& s = a.shape;
  return {.top_k = s.cols,
          .normalise = s.normalise,
          .sigmoid = s.sigmoid,
          .selection_bias = s.bias ? a.bias.row(0) : std::span<const T>(),
          .groups = s.groups,
          .top_groups = s.top_groups,
          .scale = s.factor,
          .sparsemixer = s.sparsemixer,
          .jitter = s.jitter};
}

/// The chosen experts by the definition, from the scores that the op computed: which of two that are nearly alike comes
/// first is rounding.
template <class T>
std::vector<int> chosen(const Choice<T>& a, Index row) {
  const std::span<const T> scores = a.scores.row(row);
  std::vector<int> open(scores.size());
  std::iota(open.begin(), open.end(), 0);
  const auto falls = [&](int x, int y) { return scores[std::size_t(x)] > scores[std::size_t(y)]; };
  if (a.shape.groups > 1) {
    const std::size_t size = scores.size() / static_cast<std::size_t>(a.shape.groups);
    std::vector<T> best;
    for (std::size_t g = 0; g < static_cast<std::size_t>(a.shape.groups); ++g) {
      std::vector<T> of_group(scores.begin() + std::ptrdiff_t(g * size),
                              scores.begin() + std::ptrdiff_t((g + 1) * size));
      std::ranges::sort(of_group, std::greater<>());
      best.push_back(a.shape.sigmoid && size > 1 ? of_group[0] + of_group[1] : of_group[0]);
    }
    std::vector<int> groups(best.size());
    std::iota(groups.begin(), groups.end(), 0);
    std::ranges::stable_sort(groups, [&](int x, int y) { return best[std::size_t(x)] > best[std::size_t(y)]; });
    groups.resize(static_cast<std::size_t>(a.shape.top_groups));
    std::erase_if(open, [&](int e) { return std::ranges::find(groups, e / static_cast<int>(size)) == groups.end(); });
  }
  std::ranges::stable_sort(open, falls);
  open.resize(static_cast<std::size_t>(a.shape.cols));
  return open;
}

/// Scores before they are shared out, each exact to its error.
struct Share {
  double mine = 0, sum = 0, terms = 0;
};

/// Of exp(logit - largest) over those that are summed.
template <class T>
Share softmax_share(const Choice<T>& a, Index row, Index slot, const std::vector<int>& ids) {
  const std::span<const T> logits = a.logits.row(row);
  const auto largest = static_cast<double>(*std::ranges::max_element(logits));
  Share share;
  const auto add = [&](int e) { share.sum += std::exp(static_cast<double>(logits[std::size_t(e)]) - largest); };
  if (a.shape.normalise) {
    std::ranges::for_each(ids, add);
    share.terms = static_cast<double>(ids.size());
  } else {
    for (std::size_t e = 0; e < logits.size(); ++e) add(static_cast<int>(e));
    share.terms = static_cast<double>(logits.size());
  }
  share.mine = std::exp(static_cast<double>(logits[std::size_t(ids[std::size_t(slot)])]) - largest);
  return share;
}

template <class T>
Share sigmoid_share(const Choice<T>& a, Index row, Index slot, const std::vector<int>& ids) {
  const auto score = [&](int e) { return 1 / (1 + std::exp(-static_cast<double>(a.logits(row, e)))); };
  Share share{.mine = score(ids[std::size_t(slot)]), .sum = 1, .terms = 1};
  if (!a.shape.normalise) return share;
  share.sum = 0;
  for (const int e : ids) share.sum += score(e);
  share.terms = static_cast<double>(ids.size());
  return share;
}

/// Of those near the largest that no earlier slot chose.
template <class T>
Share sparsemixer_share(const Choice<T>& a, Index row, Index slot, const std::vector<int>& ids) {
  const auto logit = [&](Index e) { return static_cast<double>(a.logits(row, e)); };
  const auto earlier = [&](Index e) {
    return std::find(ids.begin(), ids.begin() + slot, int(e)) != ids.begin() + slot;
  };
  double largest = -std::numeric_limits<double>::infinity();
  for (Index e = 0; e < a.logits.cols(); ++e) {
    if (!earlier(e)) largest = std::max(largest, logit(e));
  }
  Share share{.mine = std::exp(logit(ids[std::size_t(slot)]) - largest)};
  for (Index e = 0; e < a.logits.cols(); ++e) {
    const bool far = (largest - logit(e)) / std::max(std::abs(logit(e)), largest) > 2 * a.shape.jitter;
    if (earlier(e) || far) continue;
    share.sum += std::exp(logit(e) - largest);
    ++share.terms;
  }
  return share;
}

template <class T>
Expected weighed(const Choice<T>& a, Index row, Index slot, Format format) {
  const std::vector<int> ids = chosen(a, row);
  if (a.ids(row, slot) != ids[static_cast<std::size_t>(slot)]) return {std::nan(""), 0};
  const Share share = a.shape.sparsemixer ? sparsemixer_share(a, row, slot, ids)
                      : a.shape.sigmoid   ? sigmoid_share(a, row, slot, ids)
                                          : softmax_share(a, row, slot, ids);
  const double step = format == Format::exact ? ops::kExpStep : 0, weight = share.mine / share.sum;
  const double error = gamma<T>(share.terms + 24) * weight + (1 + share.terms) * step / share.sum;
  return stored<T>(a.shape.factor * weight, std::abs(a.shape.factor) * error, format);
}

}  // namespace

template <class T>
PreparedOp route(const OpShape& s, Format format) {
  Choice<T> choice{filled<T>(s.rows, s.inner, 1, format),
                   filled<T>(1, s.inner, 2, format),
                   {s.rows, s.inner},
                   {s.rows, s.cols},
                   {s.rows, s.cols},
                   s};
  return made(
      std::move(choice), 16, 8,
      [format](Choice<T>& a) {
        const ops::RouteOptions<T> options = options_of(a);
        ops::selection_scores<T>(a.logits, options, format, a.scores);
        ops::choose_experts<T>(a.scores, options, a.ids);
        ops::route_weights<T>(a.logits, a.ids, options, format, a.y);
      },
      [format](const Choice<T>& a, Index row, Index slot) { return weighed(a, row, slot, format); });
}

template PreparedOp route<float>(const OpShape&, Format);
template PreparedOp route<double>(const OpShape&, Format);

}  // namespace shardproof::tools::prepare
