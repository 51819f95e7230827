#include "emu/plan/layout.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/support/model.h"
#include "tests/support/random_plan.h"

namespace shardproof {
namespace {

TEST(Layout, FoldsExpertParallelismOnTensorParallelism) {
  const ModelConfig model = testing::uniform_model({.hidden_size = 16,
                                                    .layers = 8,
                                                    .heads = 8,
                                                    .kv_heads = 8,
                                                    .head_dim = 2,
                                                    .intermediate_size = 8,
                                                    .experts = 4,
                                                    .top_k = 2,
                                                    .vocab_size = 10});
  const Mesh mesh(Parallel{.tp = 4, .pp = 4, .ep = 4});

  const Layout layout = make_layout(model, mesh, 7);

  EXPECT_EQ(layout.layers, (Range{2, 2}));
  EXPECT_EQ(layout.kinds[0].heads, (Range{6, 2}));
  EXPECT_EQ(layout.kinds[0].experts, (Range{3, 1}));
  EXPECT_EQ(layout.vocabulary, (Range{8, 2}));
  EXPECT_EQ(layout.kinds[0].intermediate_size, (Range{0, 8}));
}

TEST(Layout, ReplicatesKvHeadsWhereTpExceedsThem) {
  const ModelConfig model = testing::uniform_model({.heads = 8, .kv_heads = 2, .head_dim = 2, .experts = 1});
  const Mesh mesh(Parallel{.tp = 8, .edp = 8});

  for (int rank = 0; rank < 8; ++rank) {
    const Layout layout = make_layout(model, mesh, rank);

    EXPECT_EQ(layout.kinds[0].heads, (Range{rank, 1}));
    EXPECT_EQ(layout.kinds[0].kv_heads, (Range{rank / 4, 1})) << "query head " << rank << " reads kv head " << rank / 4;
  }
}

TEST(PaddedVocabulary, IsAMultipleOfWhatIsAskedForTimesTpAndNobodysRowsComeLast) {
  ModelConfig model;
  model.vocab_size = 50257;
  const Parallel parallel{.tp = 2, .make_vocab_size_divisible_by = 128};
  model.layers = LayerList(1, {});

  EXPECT_EQ(padded_vocabulary(model, parallel), 50432);
  EXPECT_EQ(vocabulary_of(model, parallel, 0), (Range{0, 25216}));
  EXPECT_EQ(vocabulary_of(model, parallel, 1), (Range{25216, 25041}));
  EXPECT_EQ(padded_vocabulary(model, {.tp = 2}), 50257);
  model.vocab_size = 3;
  EXPECT_EQ(vocabulary_of(model, {.tp = 4, .make_vocab_size_divisible_by = 2}, 1), (Range{2, 1}));
  EXPECT_EQ(vocabulary_of(model, {.tp = 4, .make_vocab_size_divisible_by = 2}, 3), (Range{3, 0}));
}

TEST(Layout, HoldsEveryWeightSomewhereOnRandomPlans) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const Plan plan = testing::random_plan(testing::property_seed() + seed);
    const Mesh mesh(plan.parallel);

    // Per weight: the elements held, over the number of ranks that hold each.
    std::map<std::string, std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t>> blocks;
    for (int rank = 0; rank < mesh.world(); ++rank) {
      const Layout layout = make_layout(plan.model, mesh, rank);
      std::int64_t elements = 0;
      for_each_slice(layout, plan.model, [&](const WeightSpec& spec, Range rows, Range cols) {
        blocks[spec.name][{rows.begin, cols.begin}] = rows.count * cols.count;
        elements += rows.count * cols.count;
        if (spec.row_split == Split::vocabulary) elements += layout.vocabulary_padding * cols.count;
      });
      EXPECT_EQ(held_parameters(layout, plan.model).total(), elements) << testing::describe(plan);
    }

    for (const WeightSpec& spec : all_weights(plan.model)) {
      std::int64_t held = 0;
      for (const auto& [where, size] : blocks[spec.name]) held += size;
      EXPECT_EQ(held, spec.rows * spec.cols) << spec.name << " of " << testing::describe(plan);
    }
  }
}

}  // namespace
}  // namespace shardproof
