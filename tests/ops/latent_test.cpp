#include "ops/latent.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "ops/linear.h"
#include "ops/shape.h"
#include "ops/threads.h"
#include "tests/ops/oracle.h"

namespace shardproof::ops {
namespace {

using oracle::converted;
using oracle::random_matrix;

struct LatentCase {
  Index heads, rank;
  LatentHead head;
  std::vector<std::int64_t> offsets;
};

// The last are DeepSeek-V3's widths, and widths that fill no vector.
const LatentCase kLatentCases[] = {
    {1, 4, {2, 2, 2}, {0, 1}},         {3, 12, {6, 8, 10}, {0, 3, 3, 8}},        {2, 33, {5, 2, 7}, {0, 0, 40}},
    {4, 64, {16, 8, 16}, {0, 17, 18}}, {2, 512, {128, 64, 128}, {0, 5, 30, 31}}, {2, 7, {3, 6, 1}, {0, 270}},
};

template <class T>
struct LatentInputs {
  explicit LatentInputs(const LatentCase& c)
      : tokens(c.offsets.back()),
        q(random_matrix<T>(tokens, c.heads * c.head.key_dim(), 1, 1)),
        weight(random_matrix<T>(c.heads * (c.head.still + c.head.value_dim), c.rank, 0.25, 2)),
        latents(random_matrix<T>(tokens, c.rank + c.head.turned, 1, 3)) {
    for (std::size_t s = 1; s < c.offsets.size(); ++s) {
      spans.push_back({.rows = c.offsets[s] - c.offsets[s - 1], .first_key = c.offsets[s - 1]});
    }
  }
  Index tokens;
  Matrix<T> q, weight, latents;
  std::vector<AttentionSpan> spans;
};

template <class T>
struct Absorbed {
  Matrix<T> q, latents, context;
};

template <class T>
Absorbed<T> absorbed_form(const LatentCase& c, const LatentInputs<T>& in, Format format) {
  Absorbed<T> made{Matrix<T>(in.tokens, c.heads * (c.rank + c.head.turned)), Matrix<T>(in.tokens, c.heads * c.rank),
                   Matrix<T>(in.tokens, c.heads * c.head.value_dim)};
  absorb_queries<T>(in.q, in.weight, c.head, made.q);
  round_to<T>(made.q.span(), format);
  attend_to_latents<T>(made.q, in.latents, in.spans, 0, c.head, 0, format, made.latents);
  expand_context<T>(made.latents, in.weight, c.head, made.context);
  round_to<T>(made.context.span(), format);
  return made;
}

/// By the definition, with each step stored in `exact`.
template <class T>
Absorbed<double> oracle_of(const LatentCase& c, const LatentInputs<T>& in, bool exact) {
  const auto kept = [&](double value) { return exact ? oracle::exact_stored(value) : value; };
  const LatentHead& head = c.head;
  const Index width = c.rank + head.turned, rows = head.still + head.value_dim;
  Absorbed<double> made{Matrix<double>(in.tokens, c.heads * width), Matrix<double>(in.tokens, c.heads * c.rank),
                        Matrix<double>(in.tokens, c.heads * head.value_dim)};
  const double scale = 1 / std::sqrt(static_cast<double>(head.still + head.turned));
  for (std::size_t s = 1; s < c.offsets.size(); ++s) {
    for (Index t = c.offsets[s - 1]; t < c.offsets[s]; ++t) {
      for (Index h = 0; h < c.heads; ++h) {
        for (Index j = 0; j < width; ++j) {
          double sum = j < c.rank ? 0 : in.q(t, h * head.key_dim() + head.still + j - c.rank);
          for (Index i = 0; i < head.still && j < c.rank; ++i) {
            sum += static_cast<double>(in.q(t, h * head.key_dim() + i)) * in.weight(h * rows + i, j);
          }
          made.q(t, h * width + j) = kept(sum);
        }
        std::vector<double> p;
        for (Index key = c.offsets[s - 1]; key <= t; ++key) {
          double dot = 0;
          for (Index j = 0; j < width; ++j) dot += made.q(t, h * width + j) * in.latents(key, j);
          p.push_back(kept(dot * scale));
        }
        const double largest = *std::ranges::max_element(p);
        double sum = 0;
        for (double& value : p) sum += value = oracle::exponential(value - largest, exact);
        for (Index j = 0; j < c.rank; ++j) {
          double total = 0;
          for (std::size_t key = 0; key < p.size(); ++key) {
            total += p[key] * in.latents(c.offsets[s - 1] + static_cast<Index>(key), j);
          }
          made.latents(t, h * c.rank + j) = kept(total / sum);
        }
        for (Index i = 0; i < head.value_dim; ++i) {
          double total = 0;
          for (Index j = 0; j < c.rank; ++j) {
            total += made.latents(t, h * c.rank + j) * in.weight(h * rows + head.still + i, j);
          }
          made.context(t, h * head.value_dim + i) = kept(total);
        }
      }
    }
  }
  return made;
}

/// The plain form's context: keys and values are made.
Matrix<double> plain_form(const LatentCase& c, const LatentInputs<double>& in) {
  Matrix<double> product(in.tokens, in.weight.rows()), k(in.tokens, in.q.cols()),
      v(in.tokens, c.heads * c.head.value_dim), out(in.tokens, v.cols());
  linear<double>(in.latents.view().col_range(0, c.rank), in.weight, product);
  split_latent_heads<double>(product, in.latents.view().col_range(c.rank, c.head.turned), c.head.value_dim, k, v);
  attention<double>(in.q, k, v, c.offsets, {.head_dim = c.head.key_dim(), .value_dim = c.head.value_dim}, Format::fp64,
                    out);
  return out;
}

TEST(AbsorbedAttention, EqualsTheOracleInExact) {
  for (const LatentCase& c : kLatentCases) {
    const LatentInputs<double> in(c);
    const Absorbed<double> expected = oracle_of(c, in, true), got = absorbed_form(c, in, Format::exact);
    oracle::expect_equal<double, double>(expected.q, got.q);
    oracle::expect_equal<double, double>(expected.latents, got.latents);
    oracle::expect_equal<double, double>(expected.context, got.context);
  }
}

TEST(AbsorbedAttention, ErrsByRoundingInEveryOtherFormat) {
  for (const LatentCase& c : kLatentCases) {
    const LatentInputs<double> doubles(c);
    oracle::expect_near<double>(oracle_of(c, doubles, false).context, absorbed_form(c, doubles, Format::fp64).context,
                                1e-13);
    const LatentInputs<float> floats(c);
    const Absorbed<double> expected = oracle_of(c, floats, false);
    for (const Format format : {Format::fp32, Format::bf16, Format::fp16}) {
      const Absorbed<float> got = absorbed_form(c, floats, format);
      oracle::expect_near<float>(expected.q, got.q, unit_roundoff(format) + 1e-6);
      // Stored three times, and scores are off by as much as their queries were stored with.
      oracle::expect_near<float>(expected.context, got.context, 6 * unit_roundoff(format) + 1e-5);
    }
  }
}

TEST(AbsorbedAttention, IsThePlainFormOfRealNumbers) {
  for (const LatentCase& c : kLatentCases) {
    const LatentInputs<double> in(c);
    oracle::expect_near<double>(plain_form(c, in), absorbed_form(c, in, Format::fp64).context, 1e-13);
  }
}

TEST(AbsorbedAttention, OneQueryReadsAPagedCacheAsItLies) {
  const LatentCase c{4, 40, {16, 8, 16}, {0, 300}};
  constexpr Index kBlock = 16, kPast = 299;
  for (const Format format : {Format::fp32, Format::exact}) {
    const bool exact = format == Format::exact;
    const auto check = [&](const auto& in) {
      using T = std::remove_cvref_t<decltype(in.q(0, 0))>;
      const Absorbed<T> all = absorbed_form(c, in, format);
      // Blocks in falling order, and what no token lies in is no number.
      std::vector<std::int32_t> blocks;
      for (Index block = 0; block * kBlock <= kPast; ++block) {
        blocks.push_back(static_cast<std::int32_t>(kPast / kBlock + 2 - block));
      }
      Matrix<T> cache((kPast / kBlock + 4) * kBlock, in.latents.cols());
      std::ranges::fill(cache.span(), std::numeric_limits<T>::quiet_NaN());
      for (Index token = 0; token <= kPast; ++token) {
        const Index row = blocks[static_cast<std::size_t>(token / kBlock)] * kBlock + token % kBlock;
        std::ranges::copy(in.latents.row(token), cache.row(row).begin());
      }
      Matrix<T> q(1, all.q.cols()), latents(1, all.latents.cols());
      std::ranges::copy(all.q.row(kPast), q.row(0).begin());
      const std::vector<AttentionSpan> spans{{.rows = 1, .past = kPast, .blocks = blocks}};

      attend_to_latents<T>(q, cache, spans, kBlock, c.head, 0, format, latents);

      EXPECT_TRUE(oracle::same_bits<T>(all.latents.view().row_range(kPast, 1), latents)) << to_string(format);
    };
    if (exact) {
      check(LatentInputs<double>(c));
    } else {
      check(LatentInputs<float>(c));
    }
  }
}

TEST(AbsorbedAttention, ATokenAndAHeadDependOnThemselvesAlone) {
  const LatentCase c{6, 100, {20, 4, 24}, {0, 50}};
  const LatentInputs<float> in(c);
  const Index rows = c.head.still + c.head.value_dim, width = c.rank + c.head.turned;
  Absorbed<float> all = absorbed_form(c, in, Format::fp32);
  for (const Index head : {0, 5}) {
    for (const Index token : {0, 12, 49}) {
      const auto weight = in.weight.view().row_range(head * rows, rows);
      Matrix<float> q(1, width), context(1, c.head.value_dim);

      absorb_queries<float>(in.q.view().row_range(token, 1).col_range(head * c.head.key_dim(), c.head.key_dim()),
                            weight, c.head, q);
      expand_context<float>(all.latents.view().row_range(token, 1).col_range(head * c.rank, c.rank), weight, c.head,
                            context);

      EXPECT_TRUE(oracle::same_bits<float>(all.q.view().row_range(token, 1).col_range(head * width, width), q));
      EXPECT_TRUE(oracle::same_bits<float>(
          all.context.view().row_range(token, 1).col_range(head * c.head.value_dim, c.head.value_dim), context));
    }
  }
  const ThreadScope threads(3);
  const Absorbed<float> again = absorbed_form(c, in, Format::fp32);
  EXPECT_TRUE(oracle::same_bits<float>(all.q, again.q));
  EXPECT_TRUE(oracle::same_bits<float>(all.context, again.context));
}

TEST(AbsorbedAttention, TakesAScaleInPlaceOfTheKeysWidth) {
  const LatentCase c{1, 12, {6, 10, 4}, {0, 9}};
  const LatentInputs<double> in(c);
  const Absorbed<double> made = absorbed_form(c, in, Format::fp64);
  Matrix<double> same(in.tokens, c.rank), other(in.tokens, c.rank);

  attend_to_latents<double>(made.q, in.latents, in.spans, 0, c.head, 0.25, Format::fp64, same);
  attend_to_latents<double>(made.q, in.latents, in.spans, 0, c.head, 0.5, Format::fp64, other);

  EXPECT_TRUE(oracle::same_bits<double>(made.latents, same));
  EXPECT_FALSE(oracle::same_bits<double>(made.latents, other));
}

TEST(AbsorbedAttention, ThrowsWhenShapesDoNotFit) {
  const LatentHead head{.still = 4, .turned = 2, .value_dim = 3};
  Matrix<float> q(2, 12), weight(14, 8), absorbed(2, 20), latents(2, 16), context(2, 6), cache(5, 10);
  const std::vector<AttentionSpan> spans{{.rows = 2}};
  const auto says = [](const auto& call, const std::string& what) {
    try {
      call();
    } catch (const ShapeError& error) {
      EXPECT_NE(std::string(error.what()).find(what), std::string::npos) << error.what();
      return true;
    }
    return false;
  };

  EXPECT_NO_THROW(absorb_queries<float>(q, weight, head, absorbed));
  EXPECT_TRUE(says([&] { absorb_queries<float>(q, weight.view().row_range(0, 13), head, absorbed); },
                   "rows of the weight is 13, expected 14"));
  EXPECT_TRUE(
      says([&] { absorb_queries<float>(q, weight, head, latents); }, "columns of the output is 16, expected 20"));
  EXPECT_TRUE(says([&] { absorb_queries<float>(context, weight, {1, 1, 3}, absorbed); }, "rows of the weight"));
  EXPECT_TRUE(
      says([&] { expand_context<float>(latents, weight, head, q); }, "columns of the output is 12, expected 6"));
  EXPECT_TRUE(says([&] { expand_context<float>(latents, weight, {4, 2, 0}, context); }, "columns of a value"));
  EXPECT_TRUE(says(
      [&] {
        attend_to_latents<float>(absorbed, cache.view().col_range(0, 2), spans, 0, head, 0, Format::fp32, latents);
      },
      "columns of a latent is 2, expected 3"));
  EXPECT_TRUE(says([&] { attend_to_latents<float>(absorbed, cache, spans, 4, head, 0, Format::fp32, latents); },
                   "blocks of a span"));
}

TEST(AbsorbedAttention, CostsWhatItsProductsDo) {
  const LatentHead head{.still = 128, .turned = 64, .value_dim = 128};

  EXPECT_EQ(absorb_queries_cost(3, 16, 512, head, 2).flops, 2.0 * 3 * 16 * 128 * 512);
  EXPECT_EQ(expand_context_cost(3, 16, 512, head, 2).bytes, 2.0 * (3 * 16 * (128 + 512) + 16 * 128 * 512));
  EXPECT_EQ(attend_to_latents_cost(1000, 1, 1000, 16, 512, 64, 2).flops, 2.0 * 1000 * 16 * (512 + 64 + 512));
  EXPECT_EQ(attend_to_latents_cost(1000, 1, 1000, 16, 512, 64, 2).bytes, 2.0 * (1000 * 576 + 16 * (576 + 512)));
}

}  // namespace
}  // namespace shardproof::ops
