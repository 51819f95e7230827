#include "ops/router.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "ops/shape.h"
#include "tests/ops/oracle.h"

namespace shardproof::ops {
namespace {

using oracle::random_matrix;

struct Expected {
  std::vector<std::int32_t> ids;
  std::vector<double> weights;
};

Expected route_naively(std::span<const double> logits, Index top_k, bool normalise, bool exact) {
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto logit = [&](std::int32_t e) { return logits[static_cast<std::size_t>(e)]; };
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return logit(a) > logit(b); });
  const double largest = logit(order[0]);
  double sum = 0;
  for (std::size_t i = 0; i < (normalise ? static_cast<std::size_t>(top_k) : order.size()); ++i) {
    sum += oracle::exponential(logit(order[i]) - largest, exact);
  }
  Expected result;
  for (std::size_t i = 0; i < static_cast<std::size_t>(top_k); ++i) {
    const double weight = oracle::exponential(logit(order[i]) - largest, exact) / sum;
    result.ids.push_back(order[i]);
    result.weights.push_back(exact ? oracle::exact_stored(weight) : weight);
  }
  return result;
}

TEST(Route, EqualsTheOracleForEveryTopK) {
  for (const Index experts : {1, 2, 3, 4, 8, 16, 31, 64, 70}) {
    for (const Index top_k : {1, 2, 3, 4, 5, 6, 7, 8, 9, 32, 33, 64, 70}) {
      if (top_k > experts) break;
      for (const bool normalise : {true, false}) {
        const Matrix<double> logits = random_matrix<double>(20, experts, 3, static_cast<std::uint64_t>(experts));
        Matrix<std::int32_t> ids(20, top_k);
        Matrix<double> weights(20, top_k), wide(20, top_k);

        route<double>(logits, top_k, normalise, Format::exact, ids, weights);
        route<double>(logits, top_k, normalise, Format::fp64, ids, wide);

        for (Index t = 0; t < 20; ++t) {
          const Expected exact = route_naively(logits.row(t), top_k, normalise, true);
          const Expected plain = route_naively(logits.row(t), top_k, normalise, false);
          for (Index slot = 0; slot < top_k; ++slot) {
            const auto s = static_cast<std::size_t>(slot);
            ASSERT_EQ(ids(t, slot), exact.ids[s]);
            ASSERT_EQ(weights(t, slot), exact.weights[s]);
            ASSERT_NEAR(wide(t, slot), plain.weights[s], 1e-14);
          }
        }
      }
    }
  }
}

TEST(Route, BreaksTiesToTheLowerExpertHoweverManyAreChosen) {
  for (const Index top_k : {5, 60}) {
    Matrix<float> logits(1, 80), weights(1, top_k);
    Matrix<std::int32_t> ids(1, top_k);
    for (float& value : logits.span()) value = 0.5F;
    logits(0, 13) = 2;
    logits(0, 17) = 2;

    route<float>(logits, top_k, true, Format::fp32, ids, weights);

    std::vector<std::int32_t> expected{13, 17};
    for (std::int32_t e = 0; static_cast<Index>(expected.size()) < top_k; ++e) {
      if (e != 13 && e != 17) expected.push_back(e);
    }
    EXPECT_EQ(std::vector<std::int32_t>(ids.span().begin(), ids.span().end()), expected);
  }
}

TEST(Route, AZeroOfEitherSignIsTheSameLogit) {
  Matrix<float> logits(1, 3), weights(1, 3);
  Matrix<std::int32_t> ids(1, 3);
  logits(0, 0) = -0.0F;
  logits(0, 1) = 0.0F;
  logits(0, 2) = -0.0F;

  route<float>(logits, 3, true, Format::fp32, ids, weights);

  for (Index slot = 0; slot < 3; ++slot) EXPECT_EQ(ids(0, slot), slot);
}

TEST(Route, ChoosesDistinctExpertsEvenAmongNanAndInfinities) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  Matrix<float> logits(2, 6), weights(2, 6);
  Matrix<std::int32_t> ids(2, 6);
  const float rows[2][6] = {{nan, 1, -infinity, nan, infinity, 2}, {nan, nan, nan, nan, nan, nan}};
  for (Index t = 0; t < 2; ++t) std::copy_n(rows[t], 6, logits.row(t).data());

  route<float>(logits, 6, true, Format::fp32, ids, weights);

  const std::int32_t expected[2][6] = {{4, 5, 1, 2, 0, 3}, {0, 1, 2, 3, 4, 5}};
  for (Index t = 0; t < 2; ++t) {
    for (Index slot = 0; slot < 6; ++slot) EXPECT_EQ(ids(t, slot), expected[t][slot]);
  }
}

/// By the definition: the groups with the best sums of two, and in these the best scores, ties to the lower place.
std::vector<std::int32_t> best_in_best_groups(std::span<const float> scores, Index groups, Index top_groups,
                                              Index top_k) {
  const std::size_t size = scores.size() / static_cast<std::size_t>(groups);
  std::vector<std::pair<float, std::size_t>> by_group;
  for (std::size_t g = 0; g < static_cast<std::size_t>(groups); ++g) {
    std::vector<float> of_group(scores.begin() + static_cast<std::ptrdiff_t>(g * size),
                                scores.begin() + static_cast<std::ptrdiff_t>((g + 1) * size));
    std::ranges::sort(of_group, std::greater<>());
    by_group.emplace_back(-(of_group[0] + of_group[1]), g);
  }
  std::ranges::sort(by_group);
  std::vector<std::pair<float, std::int32_t>> open;
  for (std::size_t i = 0; i < static_cast<std::size_t>(top_groups); ++i) {
    for (std::size_t e = by_group[i].second * size; e < (by_group[i].second + 1) * size; ++e) {
      open.emplace_back(-scores[e], static_cast<std::int32_t>(e));
    }
  }
  std::ranges::sort(open);
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < static_cast<std::size_t>(top_k); ++i) ids.push_back(open[i].second);
  return ids;
}

TEST(Route, InGroupsChoosesTheBestOfTheBestGroups) {
  for (const Index size : {2, 5, 8, 13, 32}) {
    const Index groups = 8, top_groups = 3, top_k = 6, tokens = 20;
    const RouteOptions<float> options{.top_k = top_k, .sigmoid = true, .groups = groups, .top_groups = top_groups};
    Matrix<float> scores = oracle::random_matrix<float>(tokens, groups * size, 4, 7);
    // Few values, so that there are ties.
    for (float& score : scores.span()) score = std::round(score);
    Matrix<std::int32_t> ids(tokens, top_k);

    choose_experts<float>(scores, options, ids);

    for (Index t = 0; t < tokens; ++t) {
      const auto expected = best_in_best_groups(std::as_const(scores).row(t), groups, top_groups, top_k);
      EXPECT_TRUE(std::ranges::equal(std::as_const(ids).row(t), expected)) << "groups of " << size << ", token " << t;
    }
  }
}

// Logits 2, 1.9, 1, 1.8 with a jitter of 0.03: within 6 % of 2 is 1.9 alone; of 1.9, once 2 is chosen, 1.8 too.
TEST(Route, SparsemixerWeighsEachOfTwoAgainstTheLogitsNearIt) {
  Matrix<double> logits(1, 4), weights(1, 2);
  Matrix<std::int32_t> ids(1, 2);
  const double values[] = {2, 1.9, 1, 1.8};
  std::ranges::copy(values, logits.span().begin());
  const RouteOptions<double> options{.top_k = 2, .normalise = false, .sparsemixer = true, .jitter = 0.03};

  choose_experts<double>(logits, options, ids);
  route_weights<double>(logits, ids, options, Format::fp64, weights);

  EXPECT_EQ(ids(0, 0), 0);
  EXPECT_EQ(ids(0, 1), 1);
  EXPECT_NEAR(weights(0, 0), 1 / (1 + std::exp(-0.1)), 1e-15);
  EXPECT_NEAR(weights(0, 1), 1 / (1 + std::exp(-0.1)), 1e-15);
}

TEST(Route, StoresWeightsInTheFormat) {
  const Matrix<float> logits = random_matrix<float>(5, 8, 3, 4);
  Matrix<float> weights(5, 2);
  Matrix<std::int32_t> ids(5, 2);

  route<float>(logits, 2, true, Format::bf16, ids, weights);

  for (Index t = 0; t < 5; ++t) {
    EXPECT_EQ(weights(t, 0), stored(weights(t, 0), Format::bf16));
    EXPECT_NEAR(weights(t, 0) + weights(t, 1), 1, 0.01);
  }
}

TEST(Route, AcceptsNoTokensAndRefusesATopKOutOfRange) {
  Matrix<float> none(0, 4), no_weights(0, 2), logits(1, 4), weights(1, 5);
  Matrix<std::int32_t> no_ids(0, 2), ids(1, 5);
  route<float>(none, 2, true, Format::fp32, no_ids, no_weights);

  EXPECT_THROW(route<float>(logits, 5, true, Format::fp32, ids, weights), ShapeError);
  EXPECT_THROW(route<float>(logits, 2, true, Format::fp32, ids, weights), ShapeError);
}

}  // namespace
}  // namespace shardproof::ops
