#include "emu/model/tensors.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

#include "tests/support/model.h"

namespace shardproof {
namespace {

using testing::small_model;

TEST(TensorTable, HasARowForEveryTensorInItsOrder) {
  int index = 0;

  for (const TensorRow& row : tensor_table()) {
    EXPECT_EQ(static_cast<int>(row.weight), index++);
    EXPECT_FALSE(row.name.empty());
    EXPECT_NE(row.rows, nullptr);
    EXPECT_NE(row.cols, nullptr);
  }

  EXPECT_EQ(index, kWeights);
}

TEST(TensorTable, NamesEveryWeightOnce) {
  const ModelConfig model = small_model();

  std::set<std::string> names;
  std::int64_t elements = 0;
  for (const WeightSpec& spec : all_weights(model)) {
    EXPECT_TRUE(names.insert(spec.name).second) << spec.name;
    elements += spec.rows * spec.cols;
  }

  const std::int64_t layer = 2 * 12 + (16 + 8 + 8) * 12 + 12 * 16 + 3 * 12 + 3 * 3 * 6 * 12;
  EXPECT_EQ(elements, 2 * layer + 2 * 20 * 12 + 12);
  EXPECT_TRUE(names.contains("model.layers.1.block_sparse_moe.experts.2.w2.weight"));
}

TEST(TensorTable, UsesEveryRow) {
  std::set<Weight> used;

  ModelConfig all = small_model();
  all.layer_norm = all.head_bias = true;
  LayerSpec full = all.layers.kinds().front();
  full.attention.query_key_norm = QueryKeyNorm::head;
  full.attention.qkv_bias = full.attention.output_bias = full.attention.sinks = true;
  full.feed_forward.shared_intermediate_size = 4;
  full.feed_forward.shared_gate = full.feed_forward.selection_bias = true;
  full.feed_forward.router_bias = full.feed_forward.expert_bias = true;
  all.layers.push_back(full);
  full.attention.kv_heads = full.attention.heads;
  full.attention.rope.dim = 2;
  full.attention.q_lora_rank = full.attention.kv_lora_rank = 3;
  all.layers.push_back(full);

  for (const WeightSpec& spec : all_weights(all)) used.insert(spec.weight);

  EXPECT_EQ(static_cast<int>(used.size()), kWeights);
}

TEST(TensorTable, GivesATiedHeadTheEmbeddingsNameAndListsItOnce) {
  ModelConfig model = small_model();
  model.tie_word_embeddings = true;

  const WeightSpec head = weight_spec(model, Weight::head);
  std::map<std::string, int> times;
  for (const WeightSpec& spec : all_weights(model)) ++times[spec.name];

  EXPECT_EQ(head.name, weight_spec(model, Weight::embedding).name);
  EXPECT_EQ(times[head.name], 1);
  EXPECT_EQ(model_parameters(model).head, 0);
}

TEST(TensorCounts, AddUpToEveryWeightWhateverTheKindsOfLayers) {
  ModelConfig model = small_model();
  LayerSpec other = model.layers[0];
  other.feed_forward.num_experts = 5;
  other.attention.kv_heads = 4;
  model.layers.push_back(other);
  model.layers.push_back(model.layers[0]);

  std::int64_t counted = 0;
  for (const TensorCount& count : tensor_counts(model)) counted += count.elements();
  std::int64_t listed = 0;
  for (const WeightSpec& spec : all_weights(model)) listed += spec.rows * spec.cols;

  EXPECT_EQ(counted, listed);
  EXPECT_EQ(model_parameters(model).total(), listed);
}

}  // namespace
}  // namespace shardproof
