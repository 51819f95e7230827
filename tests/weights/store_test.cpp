#include "emu/weights/store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>

#include "emu/plan/random.h"
#include "tests/support/model.h"

namespace shardproof {
namespace {

using testing::small_model;

ops::Matrix<double> read(const WeightSource& source, const WeightSpec& spec, Range rows, Range cols) {
  ops::Matrix<double> values(rows.count, cols.count);
  source.read(spec, rows, cols, values);
  return values;
}

TEST(GeneratedWeights, GiveTheSameValueAtAGlobalIndexWhateverTheSlice) {
  const GeneratedWeights source(7);
  const WeightSpec spec = weight_spec(small_model(), Weight::attention_q, 1);
  const ops::Matrix<double> whole = read(source, spec, {0, spec.rows}, {0, spec.cols});

  const ops::Matrix<double> part = read(source, spec, {3, 5}, {2, 7});

  for (ops::Index i = 0; i < 5; ++i) {
    for (ops::Index j = 0; j < 7; ++j) EXPECT_EQ(part(i, j), whole(3 + i, 2 + j));
  }
}

TEST(GeneratedWeights, AreHeldExactlyByEveryFormat) {
  const GeneratedWeights source(7);
  for (const WeightSpec& spec : all_weights(small_model())) {
    const ops::Matrix<double> values = read(source, spec, {0, spec.rows}, {0, spec.cols});
    for (const auto format :
         {ops::Format::fp32, ops::Format::bf16, ops::Format::fp16, ops::Format::exact, ops::Format::fp64}) {
      ops::Matrix<double> rounded = values.copy();

      round_weight(rounded.span(), format);

      for (std::size_t i = 0; i < values.span().size(); ++i) {
        ASSERT_EQ(rounded.span()[i], values.span()[i]) << spec.name << " in " << ops::to_string(format);
      }
    }
  }
}

TEST(GeneratedWeights, AreTheDocumentedFunctionOfTheIndexInBothScalars) {
  const GeneratedWeights source(7);
  WeightSpec linear =
      weight_spec(testing::uniform_model({.hidden_size = 700, .heads = 1, .head_dim = 3}), Weight::attention_q, 0);
  WeightSpec norm = linear;
  norm.kind = WeightKind::norm;
  const Range rows{1, 2}, cols{5, 601};  // no multiple of any block
  for (const WeightSpec& spec : {linear, norm}) {
    const ops::Matrix<double> values = read(source, spec, rows, cols);
    ops::Matrix<double> doubles(rows.count, cols.count);
    ops::Matrix<float> floats(rows.count, cols.count);
    source.read_stored(spec, rows, cols, ops::Format::exact, doubles.view());
    source.read_stored(spec, rows, cols, ops::Format::fp16, floats.view());
    const std::uint64_t key = random_key(7, spec.name);
    const double step = 0x1p-11;  // 73.6 * sqrt(700) is nearest to 2^11, on the logarithmic scale
    for (std::int64_t i = 0; i < rows.count; ++i) {
      for (std::int64_t j = 0; j < cols.count; ++j) {
        const auto index = static_cast<std::uint64_t>((rows.begin + i) * spec.cols + cols.begin + j);
        const double expected = spec.kind == WeightKind::norm
                                    ? 1 + (static_cast<double>(random_below(key, index, 65)) - 32) / 128
                                    : (static_cast<double>(random_below(key, index, 255)) - 127) * step;
        ASSERT_EQ(values(i, j), expected) << i << ", " << j;
        ASSERT_EQ(doubles(i, j), expected) << i << ", " << j;
        ASSERT_EQ(floats(i, j), expected) << i << ", " << j;
      }
    }
  }
}

TEST(GeneratedWeights, DifferByNameAndSeed) {
  const ModelConfig model = small_model();
  const WeightSpec k = weight_spec(model, Weight::attention_k, 0);
  const WeightSpec v = weight_spec(model, Weight::attention_v, 0);
  const auto sum = [](const ops::Matrix<double>& m) {
    double total = 0;
    for (const double value : m.span()) total += value;
    return total;
  };
  const Range rows{0, k.rows};
  const Range cols{0, k.cols};

  std::set<double> sums{sum(read(GeneratedWeights(1), k, rows, cols)), sum(read(GeneratedWeights(1), v, rows, cols)),
                        sum(read(GeneratedWeights(2), k, rows, cols))};

  EXPECT_EQ(sums.size(), 3U);
}

TEST(GeneratedWeights, HaveUnitGain) {
  const ModelConfig model = testing::uniform_model({.hidden_size = 1024, .heads = 8, .kv_heads = 8, .head_dim = 64});
  const WeightSpec spec = weight_spec(model, Weight::attention_q, 0);

  const ops::Matrix<double> values = read(GeneratedWeights(3), spec, {0, 64}, {0, spec.cols});

  double squares = 0;
  for (const double value : values.span()) squares += value * value;
  const double gain = std::sqrt(squares / 64);
  EXPECT_GT(gain, 0.7);
  EXPECT_LT(gain, 1.45);
}

TEST(WeightStore, SharesOneCopyOfASlice) {
  const GeneratedWeights source(7);
  WeightStore<float> store(source, ops::Format::fp32);
  const WeightSpec spec = weight_spec(small_model(), Weight::router, 0);

  const auto first = store.get(spec, {1, 2}, {0, spec.cols});
  const auto second = store.get(spec, {1, 2}, {0, spec.cols});
  const auto other = store.get(spec, {1, 1}, {0, spec.cols});

  EXPECT_EQ(first.view().data, second.view().data);
  EXPECT_NE(first.view().data, other.view().data);
  EXPECT_EQ(first.view()(0, 3), other.view()(0, 3));
}

// A head that is not tied where it should be, or the reverse, is the same weight of another name.
TEST(WeightStore, KnowsWeightsByTheirNames) {
  const GeneratedWeights source(7);
  WeightStore<float> store(source, ops::Format::fp32);
  const WeightSpec head = weight_spec(small_model(), Weight::head);
  WeightSpec tied = head;
  tied.name = weight_spec(small_model(), Weight::embedding).name;

  const auto own = store.get(head, {0, head.rows}, {0, head.cols});
  const auto other = store.get(tied, {0, head.rows}, {0, head.cols});

  EXPECT_FALSE(std::ranges::equal(own.view().span(), other.view().span()));
}

TEST(WeightStore, ServesPartsFromAWeightThatItHoldsWhole) {
  const GeneratedWeights source(7);
  const WeightSpec spec = weight_spec(small_model(), Weight::attention_output, 1);
  const Range rows{2, 3}, cols{4, 8};
  WeightStore<float> parts(source, ops::Format::fp32);
  const LoadedWeight<float> held_alone = parts.get(spec, rows, cols);
  WeightStore<float> store(source, ops::Format::fp32);
  const LoadedWeight<float> whole = store.get(spec, {0, spec.rows}, {0, spec.cols});

  const LoadedWeight<float> held_part = store.get(spec, rows, cols);

  const ops::MatrixView<const float> part = held_part.view(), alone = held_alone.view();
  EXPECT_EQ(part.data, &whole.view()(2, 4));
  ASSERT_EQ(part.rows, 3);
  ASSERT_EQ(part.cols, 8);
  for (ops::Index i = 0; i < part.rows; ++i) {
    for (ops::Index j = 0; j < part.cols; ++j) ASSERT_EQ(part(i, j), alone(i, j)) << i << ", " << j;
  }
}

TEST(WeightStore, MakesTheSameValuesAgainAfterDroppingThem) {
  const GeneratedWeights source(7);
  const WeightSpec first = weight_spec(small_model(), Weight::attention_q, 0),
                   second = weight_spec(small_model(), Weight::attention_q, 1);
  const Range rows{0, first.rows}, cols{0, first.cols};
  WeightStore<float> all(source, ops::Format::fp32);
  WeightStore<float> one(source, ops::Format::fp32, first.rows * first.cols * 4);
  const LoadedWeight<float> expected = all.get(first, rows, cols);
  const LoadedWeight<float> held = one.get(first, rows, cols);

  const LoadedWeight<float> other = one.get(second, rows, cols);  // there is room for one only
  const LoadedWeight<float> again = one.get(first, rows, cols);

  EXPECT_NE(again.view().data, held.view().data);
  EXPECT_TRUE(std::ranges::equal(again.view().span(), expected.view().span()));
  EXPECT_TRUE(std::ranges::equal(held.view().span(), expected.view().span()));
  EXPECT_FALSE(std::ranges::equal(other.view().span(), expected.view().span()));
}

TEST(WeightSlice, ComesInBlocksOfRowsWhereItIsLarge) {
  const GeneratedWeights source(7);
  WeightStore<float> store(source, ops::Format::fp32);
  const std::int64_t cols = kElementsAtOnce / 4 - 1;
  WeightSpec spec = weight_spec(small_model(), Weight::head);
  spec.rows = 12;
  spec.cols = cols + 2;
  const WeightSlice<float> slice{&store, spec, {2, 9}, {1, cols}};
  const LoadedWeight<float> whole = store.get(spec, slice.rows, slice.cols);
  std::vector<std::int64_t> begins;

  slice.for_each_block([&](Range rows, const LoadedWeight<float>& block) {
    begins.push_back(rows.begin);
    ASSERT_EQ(block.view().rows, rows.count);
    for (std::int64_t i = 0; i < rows.count; ++i) {
      EXPECT_TRUE(std::ranges::equal(block.view().row(i), whole.view().row(rows.begin + i)));
    }
  });

  EXPECT_EQ(begins, (std::vector<std::int64_t>{0, 4, 8}));
  std::vector<float> row(static_cast<std::size_t>(cols));
  slice.read_row(8, row);
  EXPECT_TRUE(std::ranges::equal(row, whole.view().row(8)));
}

TEST(WeightStore, KeepsWhatFits) {
  const GeneratedWeights source(7);
  const WeightSpec first = weight_spec(small_model(), Weight::attention_q, 0),
                   second = weight_spec(small_model(), Weight::attention_q, 1);
  const Range rows{0, first.rows}, cols{0, first.cols};
  WeightStore<float> two(source, ops::Format::fp32, 2 * first.rows * first.cols * 4);
  const LoadedWeight<float> held = two.get(first, rows, cols);

  two.get(second, rows, cols);

  EXPECT_EQ(two.get(first, rows, cols).view().data, held.view().data);
}

}  // namespace
}  // namespace shardproof
