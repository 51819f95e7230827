#include "emu/run/weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace shardproof {
namespace {

ModelConfig small_model() {
  return {.hidden_size = 12,
          .num_layers = 2,
          .num_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 4,
          .expert_width = 6,
          .num_experts = 3,
          .top_k = 2,
          .vocab_size = 20};
}

ops::Matrix<double> read(const WeightSource& source, const WeightSpec& spec, Range rows, Range cols) {
  ops::Matrix<double> values(rows.count, cols.count);
  source.read(spec, rows, cols, values);
  return values;
}

TEST(GeneratedWeights, GiveTheSameValueAtAGlobalIndexWhateverTheSlice) {
  const GeneratedWeights source(7);
  const WeightSpec spec = registry::attention_q(small_model(), 1);
  const ops::Matrix<double> whole = read(source, spec, {0, spec.rows}, {0, spec.cols});

  const ops::Matrix<double> part = read(source, spec, {3, 5}, {2, 7});

  for (ops::Index i = 0; i < 5; ++i) {
    for (ops::Index j = 0; j < 7; ++j) EXPECT_EQ(part(i, j), whole(3 + i, 2 + j));
  }
}

TEST(GeneratedWeights, AreHeldExactlyByEveryFormat) {
  const GeneratedWeights source(7);
  for (const WeightSpec& spec : registry::all(small_model())) {
    const ops::Matrix<double> values = read(source, spec, {0, spec.rows}, {0, spec.cols});
    for (const auto format :
         {ops::Format::fp32, ops::Format::bf16, ops::Format::fp16, ops::Format::exact, ops::Format::fp64}) {
      ops::Matrix<double> rounded = values.copy();

      store_weight(rounded.span(), format);

      for (std::size_t i = 0; i < values.span().size(); ++i) {
        ASSERT_EQ(rounded.span()[i], values.span()[i]) << spec.name << " in " << ops::to_string(format);
      }
    }
  }
}

TEST(GeneratedWeights, DifferByNameAndSeed) {
  const ModelConfig model = small_model();
  const WeightSpec k = registry::attention_k(model, 0);
  const WeightSpec v = registry::attention_v(model, 0);
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
  const ModelConfig model{.hidden_size = 1024, .num_heads = 8, .num_kv_heads = 8, .head_dim = 64};
  const WeightSpec spec = registry::attention_q(model, 0);

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
  const WeightSpec spec = registry::router(small_model(), 0);

  const auto first = store.get(spec, {1, 2}, {0, spec.cols});
  const auto second = store.get(spec, {1, 2}, {0, spec.cols});
  const auto other = store.get(spec, {1, 1}, {0, spec.cols});

  EXPECT_EQ(first.data, second.data);
  EXPECT_NE(first.data, other.data);
  EXPECT_EQ(first(0, 3), other(0, 3));
}

TEST(WeightStore, ServesPartsFromAWeightThatItHoldsWhole) {
  const GeneratedWeights source(7);
  const WeightSpec spec = registry::attention_output(small_model(), 1);
  const Range rows{2, 3}, cols{4, 8};
  WeightStore<float> parts(source, ops::Format::fp32);
  const auto alone = parts.get(spec, rows, cols);
  WeightStore<float> store(source, ops::Format::fp32);
  const auto whole = store.get(spec, {0, spec.rows}, {0, spec.cols});

  const auto part = store.get(spec, rows, cols);

  EXPECT_EQ(part.data, &whole(2, 4));
  ASSERT_EQ(part.rows, 3);
  ASSERT_EQ(part.cols, 8);
  for (ops::Index i = 0; i < part.rows; ++i) {
    for (ops::Index j = 0; j < part.cols; ++j) ASSERT_EQ(part(i, j), alone(i, j)) << i << ", " << j;
  }
}

TEST(Registry, NamesEveryWeightOnce) {
  const ModelConfig model = small_model();

  std::set<std::string> names;
  std::int64_t elements = 0;
  for (const WeightSpec& spec : registry::all(model)) {
    EXPECT_TRUE(names.insert(spec.name).second) << spec.name;
    elements += spec.rows * spec.cols;
  }

  const std::int64_t layer = 2 * 12 + (16 + 8 + 8) * 12 + 12 * 16 + 3 * 12 + 3 * 3 * 6 * 12;
  EXPECT_EQ(elements, 2 * layer + 2 * 20 * 12 + 12);
  EXPECT_EQ(registry::find(model, "model.layers.1.block_sparse_moe.experts.2.w2.weight").cols, 6);
  EXPECT_THROW(registry::find(model, "model.layers.2.mlp"), std::out_of_range);
}

}  // namespace
}  // namespace shardproof
