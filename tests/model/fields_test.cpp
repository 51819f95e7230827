// Every field of a model is in the one list: whoever forgets one there is found here.
#include "emu/model/fields.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include "emu/plan/load.h"
#include "emu/plan/save.h"
#include "emu/report/baseline.h"
#include "emu/weights/checkpoint.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

/// Models that differ from the given one in one field each, by the field's key.
std::vector<std::pair<std::string, ModelConfig>> edited_models(const ModelConfig& model) {
  int fields = 0;
  visit_fields(model, [&](const FieldInfo&, const auto&) { ++fields; });
  std::vector<std::pair<std::string, ModelConfig>> all;
  for (int edited = 0; edited < fields; ++edited) {
    ModelConfig other = model;
    int index = 0;
    std::string key;
    visit_fields(other, [&](const FieldInfo& field, auto& value) {
      if (index++ != edited) return;
      key = field.key;
      if constexpr (std::is_same_v<std::decay_t<decltype(value)>, bool>) {
        value = !value;
      } else {
        value = value * 2;
      }
    });
    all.emplace_back(key, other);
  }
  return all;
}

TEST(ModelFields, HaveKeysOfTheirOwn) {
  const ModelConfig model = testing::small_plan({}).model;
  std::set<std::string_view> keys;

  visit_fields(model,
               [&](const FieldInfo& field, const auto&) { EXPECT_TRUE(keys.insert(field.key).second) << field.key; });

  EXPECT_GE(keys.size(), 14U);
}

// A structured binding names every member: a field more in a spec does not compile until this test, and so the list of
// fields, knows it.
TEST(ModelFields, AreAllThatASpecHas) {
  const LayerSpec layer;
  const auto& [attention, feed_forward] = layer;
  const auto& [heads, kv_heads, head_dim, rope_theta, query_key_norm] = attention;
  const auto& [intermediate_size, num_experts, top_k, norm_topk_prob] = feed_forward;
  ModelConfig model{.layers = LayerList(1, layer)};
  const auto& [hidden_size, layers, vocab_size, rms_norm_eps, tied, dtype, model_type] = model;
  std::set<const void*> visited;

  visit_fields(model, [&](const FieldInfo&, auto& value) { visited.insert(&value); });

  // Of the model itself, and through a copy of its only kind; dtype and model_type change no tensor.
  EXPECT_TRUE(visited.contains(&hidden_size) && visited.contains(&vocab_size) && visited.contains(&rms_norm_eps) &&
              visited.contains(&tied));
  const LayerSpec& kind = model.layers.kinds().front();
  for (const void* field :
       {static_cast<const void*>(&kind.attention.heads), static_cast<const void*>(&kind.attention.kv_heads),
        static_cast<const void*>(&kind.attention.head_dim), static_cast<const void*>(&kind.attention.rope_theta),
        static_cast<const void*>(&kind.attention.query_key_norm),
        static_cast<const void*>(&kind.feed_forward.intermediate_size),
        static_cast<const void*>(&kind.feed_forward.num_experts), static_cast<const void*>(&kind.feed_forward.top_k),
        static_cast<const void*>(&kind.feed_forward.norm_topk_prob)}) {
    EXPECT_TRUE(visited.contains(field));
  }
  EXPECT_EQ(heads + kv_heads + head_dim + intermediate_size + num_experts + top_k, 0);
  EXPECT_TRUE(rope_theta > 0 && norm_topk_prob && !query_key_norm);
  EXPECT_TRUE(layers.size() == 1 && !dtype.empty() && !model_type.empty());
}

TEST(ModelFields, EachChangesTheHashAndTheComparison) {
  const Plan plan = testing::small_plan({});

  for (const auto& [key, model] : edited_models(plan.model)) {
    Plan other = plan;
    other.model = model;
    const std::vector<Problem> differences = compare_models(model, plan.model);

    EXPECT_NE(hash_inputs(other, ops::Format::exact), hash_inputs(plan, ops::Format::exact)) << key;
    ASSERT_EQ(differences.size(), 1U) << key;
    EXPECT_EQ(differences.front().field, "model." + key);
  }
}

TEST(ModelFields, SurviveSavingAndLoading) {
  const Plan plan = testing::small_plan({});

  for (const auto& [key, model] : edited_models(plan.model)) {
    if (key == fields::kQueryKeyNorm.key) continue;  // the family's, not a key's
    Plan other = plan;
    other.model = model;

    const LoadedPlan loaded = parse_plan(plan_json(other), "saved", ".");

    ASSERT_TRUE(loaded.plan.has_value()) << key << ": " << loaded.problems.front().message;
    EXPECT_EQ(loaded.plan->model, model) << key;
  }
}

}  // namespace
}  // namespace shardproof
