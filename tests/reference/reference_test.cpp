#include "emu/reference/reference.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "emu/model/taps.h"
#include "emu/model/tensors.h"

namespace shardproof::reference {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

struct Tap {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<double> values;
};

struct Taps {
  std::vector<std::string> order;
  std::map<std::string, Tap> taps;
  const std::vector<double>& operator[](const std::string& name) const { return taps.at(name).values; }
};

/// Small dyadic weights, a function of the seed, the tensor's name and the index.
std::vector<double> dyadic(const std::string& name, std::size_t count) {
  std::uint64_t state = std::hash<std::string>{}(name) | 1;
  std::vector<double> values(count);
  const bool norm = name.find("norm") != std::string::npos;
  for (double& value : values) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    value = (static_cast<double>(state >> 57) - 64.0) / 256.0;
    if (norm) value = 1.0 + value / 4.0;
  }
  return values;
}

/// Those given, else dyadic ones.
ReadWeight weights_of(const ModelConfig& model, const std::map<std::string, std::vector<double>>& given = {}) {
  struct Whole {
    std::int64_t rows = 0;
    std::vector<double> values;
  };
  std::map<std::string, Whole> weights;
  for_each_weight(model, [&](const WeightSpec& spec) {
    const auto found = given.find(spec.name);
    weights[spec.name] = {spec.rows, found != given.end()
                                         ? found->second
                                         : dyadic(spec.name, static_cast<std::size_t>(spec.rows * spec.cols))};
  });
  return [weights](const std::string& name, std::int64_t begin, std::int64_t count, std::vector<double>& values) {
    const Whole& whole = weights.at(name);
    const std::int64_t cols = std::ssize(whole.values) / whole.rows;
    const auto first = whole.values.begin() + begin * cols;
    values.assign(first, first + count * cols);
  };
}

Taps run(const ModelConfig& model, const std::vector<std::int32_t>& tokens, const std::vector<std::int64_t>& lengths,
         const ReadWeight& weights, const Options& options = {}) {
  Taps result;
  forward(model, tokens, lengths, weights, options,
          [&](const TapName& tap, std::int64_t rows, std::int64_t cols, std::vector<double>&& values) {
            const std::string name = to_string(tap);
            result.order.push_back(name);
            result.taps[name] = Tap{rows, cols, std::move(values)};
          });
  return result;
}

/// hidden 8, 2 query heads on 1 key-value head, 4 experts of which 2 serve a token, 1 layer, vocabulary 5.
ModelConfig small_model() {
  ModelConfig model;
  model.hidden_size = 8;
  model.layers.resize(2);
  model.layers.kind(0).attention.heads = 2;
  model.layers.kind(0).attention.kv_heads = 1;
  model.layers.kind(0).attention.head_dim = 4;
  model.layers.kind(0).feed_forward.intermediate_size = 6;
  model.layers.kind(0).feed_forward.num_experts = 4;
  model.layers.kind(0).feed_forward.top_k = 2;
  model.vocab_size = 5;
  return model;
}

/// hidden 2, 1 head of 2, 2 experts of width 1: small enough to compute by hand.
ModelConfig hand_model() {
  ModelConfig model;
  model.hidden_size = 2;
  model.layers.resize(1);
  model.layers.kind(0).attention.heads = 1;
  model.layers.kind(0).attention.kv_heads = 1;
  model.layers.kind(0).attention.head_dim = 2;
  model.layers.kind(0).feed_forward.intermediate_size = 1;
  model.layers.kind(0).feed_forward.num_experts = 2;
  model.layers.kind(0).feed_forward.top_k = 1;
  model.vocab_size = 3;
  model.rms_norm_eps = 0.0;
  return model;
}

std::map<std::string, std::vector<double>> hand_weights() {
  return {
      {"model.embed_tokens.weight", {3, 4, 5, -12, 1, 1}},
      {"model.layers.0.input_layernorm.weight", {1, 1}},
      {"model.layers.0.self_attn.q_proj.weight", {1, 0, 0, 1}},
      {"model.layers.0.self_attn.k_proj.weight", {1, 0, 0, 1}},
      {"model.layers.0.self_attn.v_proj.weight", {1, 2, 0, 1}},
      {"model.layers.0.self_attn.o_proj.weight", {0, 1, 1, 0}},
      {"model.layers.0.post_attention_layernorm.weight", {1, 2}},
      {"model.layers.0.block_sparse_moe.gate.weight", {0, 1, 1, 0}},
      {"model.layers.0.block_sparse_moe.experts.0.w1.weight", {1, 0}},
      {"model.layers.0.block_sparse_moe.experts.0.w3.weight", {0, 1}},
      {"model.layers.0.block_sparse_moe.experts.0.w2.weight", {1, -1}},
      {"model.layers.0.block_sparse_moe.experts.1.w1.weight", {2, 0}},
      {"model.layers.0.block_sparse_moe.experts.1.w3.weight", {0, 1}},
      {"model.layers.0.block_sparse_moe.experts.1.w2.weight", {3, 1}},
      {"model.norm.weight", {1, 1}},
      {"lm_head.weight", {1, 0, 0, 1, 1, 1}},
  };
}

void expect_near(const std::vector<double>& actual, const std::vector<double>& expected, double tolerance = 1e-14) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i], expected[i], tolerance) << "at " << i;
}

bool on_grid(double value, double step) {
  return value / step == std::nearbyint(value / step);
}

/// The reference knows neither table; what it asks for and hands over is held to both.
TEST(Reference, UsesEveryWeightAndMakesEveryTapOfTheTablesOnce) {
  ModelConfig model = small_model();
  model.layers.kind(0).feed_forward.top_k = 4;
  const ReadWeight source = weights_of(model);
  std::map<std::string, int> uses;

  const Taps made =
      run(model, {0, 1, 2}, {3},
          [&](const std::string& name, std::int64_t begin, std::int64_t count, std::vector<double>& values) {
            uses[name] += name != "model.embed_tokens.weight" || begin == 0 ? 1 : 0;
            source(name, begin, count, values);
          });

  std::map<std::string, int> weights;
  for_each_weight(model, [&](const WeightSpec& spec) { weights[spec.name] = 1; });
  std::vector<std::string> taps;
  for (const TapId& id : all_taps(model)) taps.push_back(to_string(id));
  EXPECT_EQ(uses, weights);
  EXPECT_EQ(made.order, taps);
}

TEST(Reference, MatchesHandComputedValuesForOneToken) {
  const ModelConfig model = hand_model();

  const Taps result = run(model, {0}, {1}, weights_of(model, hand_weights()));

  const double n0 = 3.0 / std::sqrt(12.5), n1 = 4.0 / std::sqrt(12.5);
  expect_near(result["embedding"], {3, 4});
  expect_near(result["layer.0.attention.norm"], {n0, n1});
  expect_near(result["layer.0.attention.q"], {n0, n1});  // position 0 is not rotated
  expect_near(result["layer.0.attention.v"], {n0 + 2 * n1, n1});
  expect_near(result["layer.0.attention.context"], {n0 + 2 * n1, n1});  // a token alone attends to itself
  expect_near(result["layer.0.attention.output"], {n1, n0 + 2 * n1});
  const double x0 = 3 + n1, x1 = 4 + n0 + 2 * n1;
  expect_near(result["layer.0.attention.residual"], {x0, x1});
  const double rms = std::sqrt((x0 * x0 + x1 * x1) / 2);
  const double m0 = x0 / rms, m1 = 2 * x1 / rms;
  expect_near(result["layer.0.moe.norm"], {m0, m1});
  expect_near(result["layer.0.moe.router_logits"], {m1, m0});
  expect_near(result["layer.0.moe.router_choice"], {0});
  expect_near(result["layer.0.moe.router_weights"], {1});
  const double h = m0 / (1 + std::exp(-m0)) * m1;
  expect_near(result["layer.0.moe.output"], {h, -h});
  expect_near(result["layer.0.moe.residual"], {x0 + h, x1 - h});
  const double f = std::sqrt(((x0 + h) * (x0 + h) + (x1 - h) * (x1 - h)) / 2);
  expect_near(result["final_norm"], {(x0 + h) / f, (x1 - h) / f});
  expect_near(result["logits"], {(x0 + h) / f, (x1 - h) / f, (x0 + x1) / f});
}

TEST(Reference, MatchesHandComputedAttentionForTwoTokens) {
  const ModelConfig model = hand_model();

  const Taps result = run(model, {0, 1}, {2}, weights_of(model, hand_weights()));

  const double r0 = std::sqrt(12.5), r1 = std::sqrt(84.5);
  const double a0 = 3 / r0, a1 = 4 / r0, b0 = 5 / r1, b1 = -12 / r1;
  const double q0 = b0 * std::cos(1.0) - b1 * std::sin(1.0), q1 = b1 * std::cos(1.0) + b0 * std::sin(1.0);
  const auto& q = result["layer.0.attention.q"];
  expect_near({q[2], q[3]}, {q0, q1});
  const double s0 = (q0 * a0 + q1 * a1) / std::sqrt(2.0), s1 = (q0 * q0 + q1 * q1) / std::sqrt(2.0);
  const double p0 = std::exp(s0) / (std::exp(s0) + std::exp(s1)), p1 = 1 - p0;
  const auto& context = result["layer.0.attention.context"];
  expect_near({context[0], context[1]}, {a0 + 2 * a1, a1});
  expect_near({context[2], context[3]}, {p0 * (a0 + 2 * a1) + p1 * (b0 + 2 * b1), p0 * a1 + p1 * b1});
}

TEST(Reference, RouterWeightsAreTheSoftmaxRenormalisedOnlyWhenAsked) {
  ModelConfig model = hand_model();
  model.layers.kind(0).feed_forward.num_experts = 3;
  model.layers.kind(0).feed_forward.top_k = 2;
  auto given = hand_weights();
  given["model.layers.0.self_attn.o_proj.weight"] = {0, 0, 0, 0};
  given["model.layers.0.post_attention_layernorm.weight"] = {1, 1};
  given["model.layers.0.block_sparse_moe.gate.weight"] = {0, 0, 1, 0, 2, 0};  // logits 0, 1, 2 for the token (1, 1)

  const Taps renormalised = run(model, {2}, {1}, weights_of(model, given));
  model.layers.kind(0).feed_forward.norm_topk_prob = false;
  const Taps plain = run(model, {2}, {1}, weights_of(model, given));

  const double e0 = 1, e1 = std::exp(1.0), e2 = std::exp(2.0);
  expect_near(renormalised["layer.0.moe.router_choice"], {2, 1});
  expect_near(renormalised["layer.0.moe.router_weights"], {e2 / (e1 + e2), e1 / (e1 + e2)});
  expect_near(plain["layer.0.moe.router_weights"], {e2 / (e0 + e1 + e2), e1 / (e0 + e1 + e2)});
}

TEST(Reference, EqualLogitsChooseTheLowerExperts) {
  ModelConfig model = small_model();
  std::map<std::string, std::vector<double>> given;
  for (int layer = 0; layer < 2; ++layer) {
    given["model.layers." + std::to_string(layer) + ".block_sparse_moe.gate.weight"].assign(32, 0.0);
  }

  const Taps result = run(model, {0, 1, 2}, {3}, weights_of(model, given));

  EXPECT_EQ(result["layer.0.moe.router_choice"], (std::vector<double>{0, 1, 0, 1, 0, 1}));
  EXPECT_EQ(result["layer.1.moe.router_weights"], (std::vector<double>(6, 0.5)));
}

TEST(Reference, TapsComeInProgramOrderWithTheirShapes) {
  const ModelConfig model = small_model();

  const Taps result = run(model, {0, 1, 2, 3, 4}, {3, 2}, weights_of(model));

  std::vector<std::pair<std::string, std::int64_t>> expected = {{"embedding", 8}};
  for (const std::string layer : {"layer.0.", "layer.1."}) {
    const std::vector<std::pair<std::string, std::int64_t>> block = {
        {"attention.norm", 8},    {"attention.q", 8},       {"attention.k", 4},        {"attention.v", 4},
        {"attention.context", 8}, {"attention.output", 8},  {"attention.residual", 8}, {"moe.norm", 8},
        {"moe.router_logits", 4}, {"moe.router_choice", 2}, {"moe.router_weights", 2}, {"moe.output", 8},
        {"moe.residual", 8}};
    for (const auto& [name, width] : block) expected.emplace_back(layer + name, width);
  }
  expected.emplace_back("final_norm", 8);
  expected.emplace_back("logits", 5);
  ASSERT_EQ(result.order.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(result.order[i], expected[i].first);
    EXPECT_EQ(result.taps.at(expected[i].first).cols, expected[i].second) << expected[i].first;
    EXPECT_EQ(result.taps.at(expected[i].first).rows, 5) << expected[i].first;
  }
}

TEST(Reference, SequencesDoNotSeeEachOther) {
  const ModelConfig model = small_model();

  const Taps together = run(model, {0, 1, 2, 3, 4}, {3, 0, 2}, weights_of(model));
  const Taps first = run(model, {0, 1, 2}, {3}, weights_of(model));
  const Taps second = run(model, {3, 4}, {2}, weights_of(model));

  for (const std::string& name : together.order) {
    std::vector<double> expected = first[name];
    expected.insert(expected.end(), second[name].begin(), second[name].end());
    EXPECT_EQ(together[name], expected) << name;
  }
}

TEST(Reference, LaterTokensDoNotChangeEarlierOnes) {
  const ModelConfig model = small_model();

  const Taps longer = run(model, {0, 1, 2, 3}, {4}, weights_of(model));
  const Taps shorter = run(model, {0, 1}, {2}, weights_of(model));

  const auto& logits = longer["logits"];
  EXPECT_EQ(std::vector<double>(logits.begin(), logits.begin() + 10), shorter["logits"]);
}

TEST(Reference, AttentionScoresDependOnlyOnTheDistanceOfPositions) {
  const ModelConfig model = small_model();

  const Taps result = run(model, {1, 1, 1, 1}, {4}, weights_of(model));

  const auto& q = result["layer.0.attention.q"];
  const auto& k = result["layer.0.attention.k"];
  const auto score = [&](std::size_t query, std::size_t key) {
    double sum = 0;
    for (std::size_t d = 0; d < 4; ++d) sum += q[query * 8 + d] * k[key * 4 + d];
    return sum;
  };
  EXPECT_NEAR(score(1, 0), score(3, 2), 1e-14);
  EXPECT_NEAR(score(2, 0), score(3, 1), 1e-14);
  EXPECT_GT(std::abs(score(1, 0) - score(2, 0)), 1e-6);
}

TEST(Reference, QueryHeadsShareTheirGroupsKeyValueHead) {
  ModelConfig grouped = small_model();
  grouped.layers.kind(0).attention.heads = 4;
  grouped.layers.kind(0).attention.head_dim = 2;
  grouped.layers.kind(0).attention.kv_heads = 2;
  ModelConfig full = grouped;
  full.layers.kind(0).attention.kv_heads = 4;
  std::map<std::string, std::vector<double>> repeated;
  for (int layer = 0; layer < 2; ++layer) {
    for (const std::string projection : {"k_proj", "v_proj"}) {
      const std::string name = "model.layers." + std::to_string(layer) + ".self_attn." + projection + ".weight";
      const std::vector<double> heads = dyadic(name, 2 * 2 * 8);
      for (const std::ptrdiff_t head : {0, 0, 1, 1}) {
        auto& all = repeated[name];
        all.insert(all.end(), heads.begin() + head * 16, heads.begin() + (head + 1) * 16);
      }
    }
  }

  const Taps with_groups = run(grouped, {0, 1, 2}, {3}, weights_of(grouped));
  const Taps with_copies = run(full, {0, 1, 2}, {3}, weights_of(full, repeated));

  EXPECT_EQ(with_groups["logits"], with_copies["logits"]);
}

TEST(Reference, RenumberingTheExpertsChangesNothing) {
  const ModelConfig model = small_model();
  const std::vector<int> renumbered = {2, 0, 3, 1};  // new id -> old id
  std::map<std::string, std::vector<double>> given;
  for (int layer = 0; layer < 2; ++layer) {
    const std::string moe = "model.layers." + std::to_string(layer) + ".block_sparse_moe.";
    const auto expert = [&](std::size_t number, const char* matrix) {
      return moe + "experts." + std::to_string(number) + matrix;
    };
    const std::vector<double> gate = dyadic(moe + "gate.weight", 32);
    for (std::size_t e = 0; e < 4; ++e) {
      const int old = renumbered[e];
      auto& rows = given[moe + "gate.weight"];
      rows.insert(rows.end(), gate.begin() + old * 8, gate.begin() + (old + 1) * 8);
      for (const char* matrix : {".w1.weight", ".w2.weight", ".w3.weight"}) {
        given[expert(e, matrix)] = dyadic(expert(static_cast<std::size_t>(old), matrix), 48);
      }
    }
  }

  const Taps before = run(model, {0, 1, 2, 3, 4}, {5}, weights_of(model));
  const Taps after = run(model, {0, 1, 2, 3, 4}, {5}, weights_of(model, given));

  EXPECT_NE(before["layer.0.moe.router_choice"], after["layer.0.moe.router_choice"]);
  EXPECT_EQ(before["logits"], after["logits"]);
}

TEST(Reference, TiedHeadIsTheEmbedding) {
  ModelConfig model = small_model();
  const Taps untied =
      run(model, {0, 1}, {2}, weights_of(model, {{"lm_head.weight", dyadic("model.embed_tokens.weight", 40)}}));
  model.tie_word_embeddings = true;

  const Taps tied =
      run(model, {0, 1}, {2},
          [&](const std::string& name, std::int64_t begin, std::int64_t count, std::vector<double>& values) {
            EXPECT_NE(name, "lm_head.weight");
            weights_of(model)(name, begin, count, values);
          });

  EXPECT_EQ(tied["logits"], untied["logits"]);
}

TEST(ReferenceExact, EveryStoredValueIsOnTheGridAndNearTheUnroundedOne) {
  const ModelConfig model = small_model();

  const Taps exact = run(model, {0, 1, 2, 3, 4}, {3, 2}, weights_of(model), {.arithmetic = Arithmetic::exact});
  const Taps unrounded = run(model, {0, 1, 2, 3, 4}, {3, 2}, weights_of(model));

  for (const std::string& name : exact.order) {
    std::size_t used = 0;
    for (std::size_t i = 0; i < exact[name].size(); ++i) {
      EXPECT_TRUE(on_grid(exact[name][i], 0x1p-10)) << name << " at " << i;
      EXPECT_FALSE(std::signbit(exact[name][i]) && exact[name][i] == 0.0) << name << " at " << i;
      EXPECT_NEAR(exact[name][i], unrounded[name][i], 0.02) << name << " at " << i;
      used += exact[name][i] != 0.0;
    }
    EXPECT_GT(used, exact[name].size() / 4) << name;
  }
}

TEST(ReferenceExact, RoundsEachStoreOfOneToken) {
  const ModelConfig model = hand_model();

  const Taps result = run(model, {0}, {1}, weights_of(model, hand_weights()), {.arithmetic = Arithmetic::exact});

  const auto grid = [](double x) { return std::nearbyint(x * 1024) / 1024; };
  const double inverse = 1.0 / std::sqrt(12.5);
  const double n0 = grid(3 * inverse), n1 = grid(4 * inverse);
  EXPECT_EQ(result["layer.0.attention.norm"], (std::vector<double>{n0, n1}));
  EXPECT_EQ(result["layer.0.attention.output"], (std::vector<double>{n1, n0 + 2 * n1}));
  const double x0 = 3 + n1, x1 = 4 + n0 + 2 * n1;
  const double inv = 1.0 / std::sqrt((x0 * x0 + x1 * x1) / 2);
  const double m0 = grid(x0 * inv), m1 = grid(x1 * inv * 2);
  const double h = grid(m0 / (1 + std::nearbyint(std::exp(-m0) * 0x1p20) / 0x1p20) * m1);
  EXPECT_EQ(result["layer.0.moe.output"], (std::vector<double>{h, -h}));
}

TEST(ReferenceExact, GivesTheSameBitsTwice) {
  const ModelConfig model = small_model();

  const Taps first = run(model, {0, 1, 2, 3, 4}, {3, 2}, weights_of(model), {.arithmetic = Arithmetic::exact});
  const Taps second = run(model, {0, 1, 2, 3, 4}, {3, 2}, weights_of(model), {.arithmetic = Arithmetic::exact});

  for (const std::string& name : first.order) EXPECT_EQ(first[name], second[name]) << name;
}

/// Latent attention: 2 heads with keys of 4 and 2 elements and values of 3, by way of 5.
ModelConfig latent_model() {
  ModelConfig model = small_model();
  AttentionSpec& attention = model.layers.kind(0).attention;
  attention.kv_heads = 2;
  attention.head_dim = 6;
  attention.v_head_dim = 3;
  attention.rope.dim = 2;
  attention.rope.interleaved = true;
  attention.kv_lora_rank = 5;
  return model;
}

TEST(Reference, TokensInTheAbsorbedFormAreThePlainOnesUpToRounding) {
  const ModelConfig model = latent_model();
  const ReadWeight weights = weights_of(model);
  const std::vector<std::int32_t> tokens{1, 4, 2, 0, 3, 3, 2};
  const std::vector<bool> absorbed{false, false, true, true, false, true, true};
  for (const Arithmetic arithmetic : {Arithmetic::float64, Arithmetic::exact}) {
    const Taps plain = run(model, tokens, {4, 3}, weights, {.arithmetic = arithmetic});
    const Taps mixed = run(model, tokens, {4, 3}, weights, {.arithmetic = arithmetic, .absorbed = absorbed});

    const Tap &one = plain.taps.at("layer.0.attention.context"), &other = mixed.taps.at("layer.0.attention.context");
    const bool exact = arithmetic == Arithmetic::exact;
    bool differs = false;
    for (std::size_t i = 0; i < one.values.size(); ++i) {
      const bool is_absorbed = absorbed[i / static_cast<std::size_t>(one.cols)];
      EXPECT_NEAR(one.values[i], other.values[i], !is_absorbed ? 0 : exact ? 4 * kActivationStep : 1e-14) << "at " << i;
      EXPECT_TRUE(!exact || on_grid(other.values[i], kActivationStep));
      differs = differs || one.values[i] != other.values[i];
    }
    EXPECT_TRUE(differs);
  }
}

TEST(Reference, CountsTheBitsOfTheAbsorbedFormsSums) {
  const ModelConfig model = latent_model();
  std::map<std::string, int> bits;
  const SumSink on_sum = [&](const TapName& tap, std::string_view sum, int needed) {
    int& most = bits[to_string(tap) + ": " + std::string(sum)];
    most = std::max(most, needed);
  };

  run(model, {1, 4, 2}, {3}, weights_of(model),
      {.arithmetic = Arithmetic::exact, .on_sum = on_sum, .absorbed = {false, true, true}});

  for (const char* sum : {"q K of the absorbed form", "V l of the absorbed form"}) {
    const int needed = bits["layer.0.attention.context: " + std::string(sum)];
    EXPECT_GT(needed, 10) << sum;
    EXPECT_LE(needed, kBudgetBits) << sum;
  }
}

TEST(Reference, RefusesInputThatFitsNoModel) {
  const ModelConfig model = small_model();
  ModelConfig odd_head = model;
  odd_head.layers.kind(0).attention.head_dim = 3;
  ModelConfig many_chosen = model;
  many_chosen.layers.kind(0).feed_forward.top_k = 5;
  const auto attempt = [](const ModelConfig& m, const std::vector<std::int32_t>& tokens,
                          const std::vector<std::int64_t>& lengths,
                          const ReadWeight& weights) { return [=] { run(m, tokens, lengths, weights); }; };
  const auto refuses = [](const std::string& part) { return ThrowsMessage<std::invalid_argument>(HasSubstr(part)); };

  EXPECT_THAT(attempt(model, {0, 1}, {3}, weights_of(model)), refuses("lengths add up to 3"));
  EXPECT_THAT(attempt(model, {0, 1}, {3, -1}, weights_of(model)), refuses("length -1"));
  EXPECT_THAT(attempt(model, {0, 5}, {2}, weights_of(model)), refuses("token 5"));
  EXPECT_THAT(attempt(model, {-1}, {1}, weights_of(model)), refuses("token -1"));
  EXPECT_THAT(attempt(odd_head, {0}, {1}, weights_of(odd_head)), refuses("head_dim"));
  EXPECT_THAT(attempt(many_chosen, {0}, {1}, weights_of(many_chosen)), refuses("top_k"));
  EXPECT_THAT(attempt(model, {0}, {1}, weights_of(model, {{"model.norm.weight", {1, 1}}})),
              refuses("model.norm.weight has 2 elements"));
  EXPECT_THAT(
      [&] {
        run(model, {0, 1}, {2}, weights_of(model), {.absorbed = {true}});
      },
      refuses("a form is given of 1 tokens"));
}

}  // namespace
}  // namespace shardproof::reference
