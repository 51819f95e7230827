#include "ops/attention_parts.h"

#include <cmath>
#include <limits>

#include "ops/shape.h"
#include "tests/ops/oracle.h"

namespace shardproof::ops {
namespace {

using oracle::converted;
using oracle::random_matrix;

constexpr Index kHeadDim = 12, kValueDim = 7, kHeads = 4, kKvHeads = 2, kTokens = 41;
constexpr double kNoKey = -std::numeric_limits<double>::infinity();

/// One sequence, its keys in parts that end there, in the order in which they come.
struct Cut {
  std::vector<Index> ends;
  std::vector<std::size_t> order;
};
const Cut kCuts[] = {{{41}, {0}}, {{20, 41}, {1, 0}}, {{1, 17, 17, 40, 41}, {3, 0, 2, 4, 1}}};

template <class T>
struct PartInputs {
  explicit PartInputs(double range = 2)
      : q(random_matrix<T>(kTokens, kHeads * kHeadDim, range, 1)),
        k(random_matrix<T>(kTokens, kKvHeads * kHeadDim, range, 2)),
        v(random_matrix<T>(kTokens, kKvHeads * kValueDim, range, 3)) {}
  Matrix<T> q, k, v;
  AttentionOptions<T> options{.head_dim = kHeadDim, .value_dim = kValueDim};

  Matrix<T> whole(Format format) const {
    Matrix<T> out(kTokens, kHeads * kValueDim);
    const std::vector<std::int64_t> offsets{0, kTokens};
    attention<T>(q, k, v, offsets, options, format, out);
    return out;
  }
};

/// What the queries see of the keys begin..end: none, more and more, all.
std::vector<PartSpan> spans_of(Index begin, Index end) {
  return {{.rows = begin, .first_key = begin, .keys = 0},
          {.rows = end - begin, .first_key = begin, .keys = end > begin ? 1 : 0, .causal = end > begin},
          {.rows = kTokens - end, .first_key = begin, .keys = end - begin}};
}

template <class T>
Matrix<T> in_parts(const PartInputs<T>& in, const Cut& cut, Format format) {
  std::vector<Matrix<T>> contexts, sums;
  std::vector<AttentionPart<T>> parts;
  for (const std::size_t i : cut.order) {
    contexts.emplace_back(kTokens, kHeads * kValueDim);
    sums.emplace_back(kTokens, kHeads);
    attend_to_part<T>(in.q, in.k, in.v, spans_of(i == 0 ? 0 : cut.ends[i - 1], cut.ends[i]), in.options, format,
                      contexts.back(), sums.back());
  }
  for (std::size_t i = 0; i < contexts.size(); ++i) {
    parts.push_back({std::as_const(contexts[i]).view(), std::as_const(sums[i]).view()});
  }
  Matrix<T> out(kTokens, kHeads * kValueDim);
  merge_parts<T>(parts, format, out);
  return out;
}

TEST(AttentionParts, HaveTheBitsOfTheWholeInExact) {
  const PartInputs<double> in;
  const Matrix<double> expected = in.whole(Format::exact);
  for (const Cut& cut : kCuts) {
    Matrix<double> maximum(kTokens, kHeads), out(kTokens, kHeads * kValueDim);
    std::ranges::fill(maximum.span(), kNoKey);
    Matrix<double> numerator = Matrix<double>::zeros(kTokens, kHeads * kValueDim);
    Matrix<double> denominator = Matrix<double>::zeros(kTokens, kHeads);
    const auto for_each_part = [&](const auto& use) {
      for (const std::size_t i : cut.order) use(spans_of(i == 0 ? 0 : cut.ends[i - 1], cut.ends[i]));
    };

    for_each_part([&](const auto& spans) { raise_maximum(in.q, in.k, spans, in.options, maximum); });
    for_each_part(
        [&](const auto& spans) { add_part(in.q, in.k, in.v, spans, in.options, maximum, numerator, denominator); });
    divide_parts(numerator, denominator, out);

    EXPECT_TRUE(oracle::same_bits<double>(expected, out));
  }
}

TEST(AttentionParts, MergeToTheWholeWithinRounding) {
  for (const Cut& cut : kCuts) {
    const PartInputs<double> doubles;
    const Matrix<double> expected = doubles.whole(Format::fp64);
    oracle::expect_near<double>(expected, in_parts(doubles, cut, Format::fp64), 1e-13);
    const PartInputs<float> floats;
    for (const Format format : {Format::fp32, Format::bf16, Format::fp16}) {
      oracle::expect_near<float>(expected, in_parts(floats, cut, format), 2 * unit_roundoff(format) + 1e-5);
    }
  }
}

TEST(AttentionParts, SurviveScoresThatSpanHundreds) {
  const PartInputs<float> in(16);
  const PartInputs<double> doubles(16);

  for (const Cut& cut : kCuts) {
    oracle::expect_near<float>(doubles.whole(Format::fp64), in_parts(in, cut, Format::fp32), 1e-3);
  }
}

TEST(AttentionParts, GiveTheLogOfTheSumOfExponentials) {
  const PartInputs<double> in;
  Matrix<double> out(kTokens, kHeads * kValueDim), lse(kTokens, kHeads);

  attend_to_part<double>(in.q, in.k, in.v, spans_of(10, 20), in.options, Format::fp64, out, lse);

  for (Index head = 0; head < kHeads; ++head) {
    EXPECT_EQ(lse(9, head), kNoKey);
    EXPECT_EQ(out(9, head * kValueDim), 0);
    for (const Index row : {10, 13, 40}) {
      double sum = 0;
      for (Index key = 10; key <= std::min<Index>(row, 19); ++key) {
        double dot = 0;
        for (Index i = 0; i < kHeadDim; ++i) dot += in.q(row, head * kHeadDim + i) * in.k(key, head / 2 * kHeadDim + i);
        sum += std::exp(dot / std::sqrt(static_cast<double>(kHeadDim)));
      }
      EXPECT_NEAR(lse(row, head), std::log(sum), 1e-13 * std::abs(std::log(sum)) + 1e-13);
    }
  }
}

TEST(AttentionParts, MakeNoNumberOfNoKeyAtAll) {
  Matrix<float> nothing = Matrix<float>::zeros(2, 4), none(2, 2), out(2, 4);
  std::ranges::fill(none.span(), static_cast<float>(kNoKey));
  const std::vector<AttentionPart<float>> parts(3, {std::as_const(nothing).view(), std::as_const(none).view()});

  merge_parts<float>(parts, Format::bf16, out);

  EXPECT_TRUE(oracle::same_bits<float>(nothing, out));
}

TEST(AttentionParts, ReadNoKeyThatIsNotSeen) {
  PartInputs<float> in;
  const Matrix<float> clean = in_parts(in, kCuts[1], Format::fp32);
  for (Index row = 30; row < kTokens; ++row) {
    for (Index i = 0; i < kKvHeads * kHeadDim; ++i) in.k(row, i) = std::numeric_limits<float>::quiet_NaN();
    for (Index i = 0; i < kKvHeads * kValueDim; ++i) in.v(row, i) = std::numeric_limits<float>::quiet_NaN();
  }

  const Matrix<float> dirty = in_parts(in, kCuts[1], Format::fp32);

  EXPECT_TRUE(oracle::same_bits<float>(clean.view().row_range(0, 30), dirty.view().row_range(0, 30)));
}

TEST(AttentionParts, RefuseWhatDoesNotFit) {
  const PartInputs<float> in;
  Matrix<float> out(kTokens, kHeads * kValueDim), lse(kTokens, kHeads), narrow(kTokens, 1);
  const std::vector<PartSpan> beyond{{.rows = kTokens, .first_key = 1, .keys = 1, .causal = true}},
      all{{.rows = kTokens, .keys = 1, .causal = true}}, few{{.rows = kTokens - 1, .keys = 1}};
  AttentionOptions<float> window = in.options;
  window.window = 3;
  const auto attend = [&](const std::vector<PartSpan>& spans, const AttentionOptions<float>& options, auto& sums) {
    attend_to_part<float>(in.q, in.k, in.v, spans, options, Format::fp32, out, sums);
  };

  EXPECT_THROW(attend(beyond, in.options, lse), ShapeError);
  EXPECT_THROW(attend(few, in.options, lse), ShapeError);
  EXPECT_THROW(attend(all, window, lse), ShapeError);
  EXPECT_THROW(attend(all, in.options, narrow), ShapeError);
  EXPECT_NO_THROW(attend(all, in.options, lse));
}

}  // namespace
}  // namespace shardproof::ops
