// Every field of a model is in the one list: whoever forgets one there is found here.
#include "emu/model/fields.h"

#include <gtest/gtest.h>

#include <algorithm>
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
      } else if constexpr (std::is_enum_v<std::decay_t<decltype(value)>>) {
        value = static_cast<std::decay_t<decltype(value)>>(1);
      } else if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::vector<double>>) {
        value = {2.0};
      } else if (value == 0) {
        value = 2;
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
  ModelConfig model{.layers = LayerList(1, LayerSpec{})};
  std::set<const void*> visited;
  visit_fields(model, [&](const FieldInfo&, auto& value) { visited.insert(&value); });
  const auto missing = [&](std::initializer_list<const void*> members) {
    return std::ranges::count_if(members, [&](const void* member) { return !visited.contains(member); });
  };

  const auto& [attention, feed_forward] = model.layers.kinds().front();
  const auto& [heads, kv_heads, head_dim, v_head_dim, rope, query_key_norm, qkv_bias, output_bias, window, sinks,
               multiplier, clip, q_rank, kv_rank] = attention;
  const auto& [type, theta, dim, interleaved, factor, context, low, high, fast, slow, truncate, amplitude, pair_factors,
               all_dim] = rope;
  const auto& [size, experts, top_k, norm_topk, shared, shared_gate, scoring, bias, groups, top_groups, scale,
               router_bias, expert_bias, limit, jitter] = feed_forward;
  const auto& [hidden_size, layers, vocab_size, rms_norm_eps, tied, layer_norm, head_bias, embedding, residual, logits,
               most_positions, block, quantised, dtype, model_type] = model;

  EXPECT_EQ(missing({&heads, &kv_heads, &head_dim, &v_head_dim, &query_key_norm, &qkv_bias, &output_bias, &window,
                     &sinks, &multiplier, &clip, &q_rank, &kv_rank}),
            0);
  EXPECT_EQ(missing({&type, &theta, &dim, &interleaved, &factor, &context, &low, &high, &fast, &slow, &truncate,
                     &amplitude, &pair_factors, &all_dim}),
            0);
  EXPECT_EQ(missing({&size, &experts, &top_k, &norm_topk, &shared, &shared_gate, &scoring, &bias, &groups, &top_groups,
                     &scale, &router_bias, &expert_bias, &limit, &jitter}),
            0);
  // How weights are quantised, dtype, model_type and the longest sequence change no tensor.
  EXPECT_EQ(missing({&hidden_size, &vocab_size, &rms_norm_eps, &tied, &layer_norm, &head_bias, &embedding, &residual,
                     &logits, &block}),
            0);
  EXPECT_TRUE(layers.size() == 1 && most_positions == 0 && quantised.method.empty() && !dtype.empty() &&
              !model_type.empty());
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
  std::set<std::string> of_family;
  visit_fields(plan.model, [&](const FieldInfo& field, const auto&) {
    if (field.from_family) of_family.emplace(field.key);
  });

  for (const auto& [key, model] : edited_models(plan.model)) {
    if (of_family.contains(key)) continue;  // the family's, of which Mixtral has no keys
    Plan other = plan;
    other.model = model;

    const LoadedPlan loaded = parse_plan(plan_json(other), "saved", ".");

    ASSERT_TRUE(loaded.plan.has_value()) << key << ": " << loaded.problems.front().message;
    EXPECT_EQ(loaded.plan->model, model) << key;
  }
}

}  // namespace
}  // namespace shardproof
