// Faults in a table that ranks should share: who holds what (layout), which rows a rank has (token map), what its
// weights are. Of the plain model, and of what families have beside.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "emu/judge/verify.h"
#include "emu/plan/validate.h"
#include "emu/run/fault.h"
#include "tests/diagnose/family_plans.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

Plan plain() {
  return testing::small_plan({.tp = 2, .dp = 2, .pp = 2, .ep = 2, .etp = 2});
}
Plan with_replicas() {
  Plan plan = testing::small_plan({.tp = 2, .dp = 2, .ep = 4});
  plan.parallel.experts = {.redundant = 4, .map = ExpertPlacement::Map::round_robin};
  return plan;
}

/// Tables as some ranks believe them to be.
class EditedTables final : public FaultInjector {
 public:
  std::function<void(std::vector<Layout>&)> layouts;
  std::function<void(const Rank&, RankTokens&)> tokens;
  std::function<void(const Rank&, WeightSpec&, Range& rows, Range& cols)> slice;

  void edit_layouts(std::vector<Layout>& given) override {
    if (layouts) layouts(given);
  }
  void edit_microbatch(const Rank& rank, std::int64_t /*microbatch*/, RankTokens& given) override {
    if (tokens) tokens(rank, given);
  }
  void edit_slice(const Rank& rank, WeightSpec& spec, Range& rows, Range& cols) override {
    if (slice) slice(rank, spec, rows, cols);
  }
};

void expect_named(const Plan& plan, FaultInjector& fault, const std::string& tap, const std::string& cause) {
  ASSERT_TRUE(validate(plan).empty()) << validate(plan).front().message;

  const VerifyReport report = verify(plan, {.format = ops::Format::exact, .fault = &fault});

  ASSERT_EQ(report.verdict, Verdict::mismatch) << (report.stall ? report.stall->text : "");
  EXPECT_EQ(report.first_divergence->tap, tap);
  EXPECT_EQ(report.first_divergence->cause->name, cause) << report.first_divergence->cause->evidence;
}

/// One weight of layer 1 is layer 2's, on the first or the last ranks of tp, or where an expert's slices lie first.
struct Stale {
  const char* name;
  Plan (*plan)();
  Weight weight;
  const char* tap;
  friend std::ostream& operator<<(std::ostream& out, const Stale& stale) {
    return out << stale.name << "." << tensor_row(stale.weight).name;
  }
};

class StaleWeights : public ::testing::TestWithParam<Stale> {};

TEST_P(StaleWeights, AreNamedWhereTheyAreUsedFirst) {
  const Plan plan = GetParam().plan();
  const Weight weight = GetParam().weight;
  ASSERT_TRUE(has_weight(plan.model, weight, 1));
  // What is added once over tp is added by the first.
  const int tp = weight == Weight::attention_output_bias ? 0 : 1;
  EditedTables fault;
  fault.slice = [&](const Rank& rank, WeightSpec& spec, Range&, Range&) {
    if (spec.weight != weight || spec.layer != 1) return;
    const bool here = spec.expert >= 0 ? rank.at().ep == 0 && rank.at().etp == 0 : rank.at().tp == tp;
    if (here) spec = weight_spec(plan.model, weight, 2, spec.expert);
  };

  expect_named(plan, fault, std::string("layer.1.") + GetParam().tap, "weights_of_another_layer");
}

constexpr auto kDeepseek = testing::deepseek;
constexpr auto kGptOss = testing::gpt_oss;
constexpr auto kPhimoe = testing::phimoe;
constexpr auto kOlmoe = testing::olmoe;
constexpr auto kQwen = testing::qwen;

INSTANTIATE_TEST_SUITE_P(
    Weights, StaleWeights,
    ::testing::Values(Stale{"plain", plain, Weight::attention_norm, "attention.norm"},
                      Stale{"plain", plain, Weight::attention_q, "attention.q"},
                      Stale{"plain", plain, Weight::attention_k, "attention.k"},
                      Stale{"plain", plain, Weight::attention_v, "attention.v"},
                      Stale{"plain", plain, Weight::attention_output, "attention.output"},
                      Stale{"plain", plain, Weight::moe_norm, "moe.norm"},
                      Stale{"plain", plain, Weight::router, "moe.router_logits"},
                      Stale{"plain", plain, Weight::expert_gate, "moe.output"},
                      Stale{"plain", plain, Weight::expert_up, "moe.output"},
                      Stale{"plain", plain, Weight::expert_down, "moe.output"},
                      Stale{"deepseek", kDeepseek, Weight::attention_q_latent, "attention.q_latent"},
                      Stale{"deepseek", kDeepseek, Weight::attention_q_latent_norm, "attention.q_latent_norm"},
                      Stale{"deepseek", kDeepseek, Weight::attention_q, "attention.q"},
                      Stale{"deepseek", kDeepseek, Weight::attention_kv_latent, "attention.kv_latent"},
                      Stale{"deepseek", kDeepseek, Weight::attention_kv_latent_norm, "attention.kv_latent_norm"},
                      Stale{"deepseek", kDeepseek, Weight::attention_kv, "attention.k"},
                      Stale{"deepseek", kDeepseek, Weight::router_selection_bias, "moe.router_scores"},
                      Stale{"deepseek", kDeepseek, Weight::mlp_gate, "mlp.output"},
                      Stale{"deepseek", kDeepseek, Weight::mlp_up, "mlp.output"},
                      Stale{"deepseek", kDeepseek, Weight::mlp_down, "mlp.output"},
                      Stale{"gpt_oss", kGptOss, Weight::attention_q_bias, "attention.q"},
                      Stale{"gpt_oss", kGptOss, Weight::attention_k_bias, "attention.k"},
                      Stale{"gpt_oss", kGptOss, Weight::attention_v_bias, "attention.v"},
                      Stale{"gpt_oss", kGptOss, Weight::attention_sinks, "attention.context"},
                      Stale{"gpt_oss", kGptOss, Weight::attention_output_bias, "attention.output"},
                      Stale{"gpt_oss", kGptOss, Weight::router_bias, "moe.router_logits"},
                      Stale{"gpt_oss", kGptOss, Weight::expert_gate_bias, "moe.output"},
                      Stale{"gpt_oss", kGptOss, Weight::expert_up_bias, "moe.output"},
                      Stale{"gpt_oss", kGptOss, Weight::expert_down_bias, "moe.output"},
                      Stale{"phimoe", kPhimoe, Weight::attention_norm, "attention.norm"},
                      Stale{"phimoe", kPhimoe, Weight::attention_norm_bias, "attention.norm"},
                      Stale{"phimoe", kPhimoe, Weight::moe_norm_bias, "moe.norm"},
                      Stale{"olmoe", kOlmoe, Weight::attention_q, "attention.q"},
                      Stale{"olmoe", kOlmoe, Weight::attention_q_norm, "attention.q"},
                      Stale{"olmoe", kOlmoe, Weight::attention_k_norm, "attention.k"},
                      Stale{"qwen", kQwen, Weight::attention_q_norm, "attention.q"},
                      Stale{"qwen", kQwen, Weight::attention_k_norm, "attention.k"},
                      Stale{"qwen", kQwen, Weight::shared_gate, "mlp.shared_gate"},
                      Stale{"gathered_tokens", testing::gathered_tokens, Weight::expert_down, "moe.output"},
                      Stale{"tokens_everywhere", testing::tokens_everywhere, Weight::expert_up, "moe.output"},
                      Stale{"with_replicas", with_replicas, Weight::expert_gate, "moe.output"}));

/// Two weights of one shape stand for each other, as where a fused tensor is cut in another order.
struct Exchanged {
  const char* name;
  Plan (*plan)();
  Weight weight;
  Weight other;
  const char* tap;
  friend std::ostream& operator<<(std::ostream& out, const Exchanged& exchanged) {
    return out << exchanged.name << "." << tensor_row(exchanged.weight).name;
  }
};

class ExchangedWeights : public ::testing::TestWithParam<Exchanged> {};

TEST_P(ExchangedWeights, AreNamedWhereTheyAreUsedFirst) {
  const Plan plan = GetParam().plan();
  EditedTables fault;
  fault.slice = [&](const Rank& rank, WeightSpec& spec, Range&, Range&) {
    const bool here = spec.expert >= 0 ? rank.at().ep == 0 : rank.at().tp == 1;
    if (spec.layer != 1 || !here) return;
    if (spec.weight == GetParam().weight) {
      spec = weight_spec(plan.model, GetParam().other, 1, spec.expert);
    } else if (spec.weight == GetParam().other) {
      spec = weight_spec(plan.model, GetParam().weight, 1, spec.expert);
    }
  };

  expect_named(plan, fault, std::string("layer.1.") + GetParam().tap, "weights_exchanged");
}

INSTANTIATE_TEST_SUITE_P(
    Weights, ExchangedWeights,
    ::testing::Values(Exchanged{"plain", plain, Weight::attention_k, Weight::attention_v, "attention.k"},
                      Exchanged{"plain", plain, Weight::expert_gate, Weight::expert_up, "moe.output"},
                      Exchanged{"gpt_oss", kGptOss, Weight::attention_k, Weight::attention_v, "attention.k"},
                      Exchanged{"gpt_oss", kGptOss, Weight::expert_gate, Weight::expert_up, "moe.output"},
                      Exchanged{"deepseek", kDeepseek, Weight::mlp_gate, Weight::mlp_up, "mlp.output"},
                      Exchanged{"deepseek", kDeepseek, Weight::expert_gate, Weight::expert_up, "moe.output"},
                      Exchanged{"qwen", kQwen, Weight::attention_k, Weight::attention_v, "attention.k"},
                      Exchanged{"qwen", kQwen, Weight::attention_q_norm, Weight::attention_k_norm, "attention.q"},
                      Exchanged{"gathered_tokens", testing::gathered_tokens, Weight::expert_gate, Weight::expert_up,
                                "moe.output"},
                      Exchanged{"tokens_everywhere", testing::tokens_everywhere, Weight::expert_gate, Weight::expert_up,
                                "moe.output"}));

/// A table that is wrong, and what comes of it.
struct Table {
  const char* name;
  Plan (*plan)();
  void (*edit)(EditedTables& tables, const Plan& plan);
  const char* tap;
  const char* cause;
  friend std::ostream& operator<<(std::ostream& out, const Table& table) { return out << table.name; }
};

class WrongTables : public ::testing::TestWithParam<Table> {};

TEST_P(WrongTables, AreNamedForWhatTheyDo) {
  const Plan plan = GetParam().plan();
  EditedTables fault;
  GetParam().edit(fault, plan);

  expect_named(plan, fault, GetParam().tap, GetParam().cause);
}

/// What the rank has of every kind of layer.
template <class Edit>
void on_rank(EditedTables& tables, std::size_t rank, const Edit& edit) {
  tables.layouts = [rank, edit](std::vector<Layout>& layouts) {
    for (LayerLayout& kind : layouts[rank].kinds) edit(kind);
  };
}

/// The owners of experts 1 and 2, on one rank or on all.
template <int rank>
void owners_swapped(EditedTables& tables, const Plan& /*plan*/) {
  tables.layouts = [](std::vector<Layout>& layouts) {
    for (std::size_t r = 0; r < layouts.size(); ++r) {
      if (rank >= 0 && static_cast<int>(r) != rank) continue;
      for (LayerLayout& kind : layouts[r].kinds) std::swap(kind.expert_owner[1], kind.expert_owner[2]);
    }
  };
}

/// Experts 0 and 1 of layer 1 have each other's weights where they lie.
void experts_swapped(EditedTables& tables, const Plan& plan) {
  tables.slice = [&plan](const Rank&, WeightSpec& spec, Range&, Range&) {
    if (spec.layer == 1 && (spec.expert == 0 || spec.expert == 1))
      spec = weight_spec(plan.model, spec.weight, 1, 1 - spec.expert);
  };
}
/// Of a stacked tensor: expert e of layer 1 has the weights of expert e + 1.
void experts_one_on(EditedTables& tables, const Plan& plan) {
  tables.slice = [&plan](const Rank&, WeightSpec& spec, Range&, Range&) {
    if (spec.layer == 1 && spec.expert >= 0) spec = weight_spec(plan.model, spec.weight, 1, (spec.expert + 1) % 4);
  };
}

/// Of the weight in layer 1, the slice of the rank beside, on tp 1 (of experts etp 1).
template <Weight weight, bool columns>
void slice_of_neighbour(EditedTables& tables, const Plan& /*plan*/) {
  tables.slice = [](const Rank& rank, WeightSpec& spec, Range& rows, Range& cols) {
    const int at = spec.expert >= 0 ? rank.at().etp : rank.at().tp;
    if (spec.weight == weight && spec.layer == 1 && at == 1) (columns ? cols : rows).begin = 0;
  };
}

/// Every row of the rank's is one further on.
void positions_shifted(EditedTables& tables, const Plan& /*plan*/) {
  tables.tokens = [](const Rank& rank, RankTokens& tokens) {
    if (rank.at().tp != 1) return;
    for (std::int64_t& position : tokens.positions) ++position;
  };
}
void sequences_merged(EditedTables& tables, const Plan& /*plan*/) {
  tables.tokens = [](const Rank& rank, RankTokens& tokens) {
    if (rank.at().tp != 1 || tokens.offsets.size() < 3) return;
    tokens.offsets = {tokens.offsets.front(), tokens.offsets.back()};
  };
}
/// Ranks of tp take each other's rows for their own: the table is transposed.
void own_rows_swapped(EditedTables& tables, const Plan& /*plan*/) {
  tables.tokens = [](const Rank&, RankTokens& tokens) {
    if (tokens.own.count * 2 == tokens.rows.count()) tokens.own.begin = tokens.own.begin == 0 ? tokens.own.count : 0;
  };
}
/// The two sequences of a microbatch stand in the other order than on the rank beside.
void rows_transposed(EditedTables& tables, const Plan& /*plan*/) {
  tables.tokens = [](const Rank& rank, RankTokens& tokens) {
    const std::int64_t half = tokens.rows.count() / 2;
    if (rank.at().tp != 1 || half == 0) return;
    const std::int64_t begin = tokens.rows[0];
    tokens.rows.runs = {{begin + half, half}, {begin, half}};
  };
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, WrongTables,
    ::testing::Values(Table{"heads", plain,
                            [](EditedTables& tables, const Plan&) {
                              on_rank(tables, 1, [](LayerLayout& kind) { kind.heads.begin = 0; });
                            },
                            "layer.0.attention.q", "wrong_slice"},
                      Table{"kv_heads", plain,
                            [](EditedTables& tables, const Plan&) {
                              on_rank(tables, 1, [](LayerLayout& kind) { kind.kv_heads.begin = 0; });
                            },
                            "layer.0.attention.k", "wrong_slice"},
                      Table{"sinks", testing::gpt_oss,
                            [](EditedTables& tables, const Plan&) {
                              on_rank(tables, 1, [](LayerLayout& kind) { kind.heads.begin = 0; });
                            },
                            "layer.0.attention.q", "wrong_slice"},
                      Table{"heads_of_latent_attention", testing::deepseek,
                            [](EditedTables& tables, const Plan&) {
                              on_rank(tables, 1, [](LayerLayout& kind) { kind.heads.begin = 0; });
                            },
                            "layer.0.attention.q", "wrong_slice"},
                      Table{"slice_of_experts", plain,
                            [](EditedTables& tables, const Plan&) {
                              on_rank(tables, 1, [](LayerLayout& kind) { kind.intermediate_size.begin = 0; });
                            },
                            "layer.0.moe.output", "wrong_slice"},
                      Table{"slice_of_the_shared_expert", testing::deepseek,
                            [](EditedTables& tables, const Plan&) {
                              on_rank(tables, 1, [](LayerLayout& kind) { kind.mlp_size.begin = 0; });
                            },
                            "layer.0.mlp.output", "wrong_slice"},
                      Table{"experts", plain,
                            [](EditedTables& tables, const Plan&) {
                              on_rank(tables, 1, [](LayerLayout& kind) { kind.experts.begin = 2; });
                            },
                            "layer.0.moe.output", "expert_map"},
                      Table{"owners", plain, owners_swapped<-1>, "layer.0.moe.output", "expert_map"},
                      Table{"owners_on_one_rank", plain, owners_swapped<0>, "layer.0.moe.output", "expert_map"},
                      Table{"owners_deepseek", testing::deepseek, owners_swapped<-1>, "layer.0.moe.output",
                            "expert_map"},
                      Table{"owners_of_gathered_tokens", testing::gathered_tokens, owners_swapped<-1>,
                            "layer.0.moe.output", "expert_map"},
                      Table{"owners_of_tokens_everywhere", testing::tokens_everywhere, owners_swapped<-1>,
                            "layer.0.moe.output", "expert_map"},
                      Table{"vocabulary", plain,
                            [](EditedTables& tables, const Plan&) {
                              tables.layouts = [](std::vector<Layout>& layouts) { layouts[1].vocabulary.begin -= 1; };
                            },
                            "embedding", "counted_n_times"}));

INSTANTIATE_TEST_SUITE_P(
    TokenMaps, WrongTables,
    ::testing::Values(
        Table{"positions", plain, positions_shifted, "layer.0.attention.q", "positions"},
        Table{"positions_deepseek", testing::deepseek, positions_shifted, "layer.0.attention.q", "positions"},
        Table{"positions_gpt_oss", testing::gpt_oss, positions_shifted, "layer.0.attention.q", "positions"},
        Table{"positions_olmoe", testing::olmoe, positions_shifted, "layer.0.attention.q", "positions"},
        Table{"positions_ring", testing::ring, positions_shifted, "layer.0.attention.q", "positions"},
        Table{"sequences", plain, sequences_merged, "layer.0.attention.context", "sequence_boundaries"},
        Table{"sequences_deepseek", testing::deepseek, sequences_merged, "layer.0.attention.context",
              "sequence_boundaries"},
        Table{"sequences_gpt_oss", testing::gpt_oss, sequences_merged, "layer.0.attention.context",
              "sequence_boundaries"},
        Table{"own_rows", plain, own_rows_swapped, "layer.0.moe.output", "rows_permuted"},
        Table{"own_rows_deepseek", testing::deepseek, own_rows_swapped, "layer.0.moe.output", "rows_permuted"},
        Table{"own_rows_olmoe", testing::olmoe, own_rows_swapped, "layer.0.moe.router_logits", "rows_permuted"},
        Table{"rows", plain, rows_transposed, "embedding", "rows_permuted"},
        Table{"rows_deepseek", testing::deepseek, rows_transposed, "embedding", "rows_permuted"}));

INSTANTIATE_TEST_SUITE_P(
    Weights, WrongTables,
    ::testing::Values(
        Table{"experts_swapped", plain, experts_swapped, "layer.1.moe.output", "expert_map"},
        Table{"experts_swapped_deepseek", testing::deepseek, experts_swapped, "layer.1.moe.output", "expert_map"},
        Table{"experts_swapped_gpt_oss", testing::gpt_oss, experts_swapped, "layer.1.moe.output", "expert_map"},
        Table{"experts_swapped_gathered", testing::gathered_tokens, experts_swapped, "layer.1.moe.output",
              "expert_map"},
        Table{"experts_swapped_everywhere", testing::tokens_everywhere, experts_swapped, "layer.1.moe.output",
              "expert_map"},
        Table{"experts_swapped_replicas", with_replicas, experts_swapped, "layer.1.moe.output", "expert_map"},
        Table{"experts_one_on_granite", testing::granite, experts_one_on, "layer.1.moe.output", "expert_map"},
        Table{"experts_one_on_phimoe", testing::phimoe, experts_one_on, "layer.1.moe.output", "expert_map"},
        Table{"slice_of_q_deepseek", testing::deepseek, slice_of_neighbour<Weight::attention_q, false>,
              "layer.1.attention.q", "heads_permuted"},
        Table{"slice_of_kv_deepseek", testing::deepseek, slice_of_neighbour<Weight::attention_kv, false>,
              "layer.1.attention.k", "heads_permuted"},
        Table{"slice_of_output_deepseek", testing::deepseek, slice_of_neighbour<Weight::attention_output, true>,
              "layer.1.attention.output", "wrong_slice"},
        Table{"slice_of_down_deepseek", testing::deepseek, slice_of_neighbour<Weight::mlp_down, true>,
              "layer.1.mlp.output", "wrong_slice"},
        Table{"slice_of_up_deepseek", testing::deepseek, slice_of_neighbour<Weight::mlp_up, false>,
              "layer.1.mlp.output", "wrong_slice"},
        Table{"slice_of_sinks", testing::gpt_oss, slice_of_neighbour<Weight::attention_sinks, true>,
              "layer.1.attention.context", "sinks_of_another_head"},
        Table{"slice_of_q_bias", testing::gpt_oss, slice_of_neighbour<Weight::attention_q_bias, true>,
              "layer.1.attention.q", "wrong_slice"},
        Table{"slice_of_gate_bias", testing::gpt_oss, slice_of_neighbour<Weight::expert_gate_bias, true>,
              "layer.1.moe.output", "wrong_slice"},
        Table{"slice_of_experts_up", plain, slice_of_neighbour<Weight::expert_up, false>, "layer.1.moe.output",
              "wrong_slice"},
        Table{"slice_of_q_norm_olmoe", testing::olmoe, slice_of_neighbour<Weight::attention_q_norm, true>,
              "layer.1.attention.q", "norm_of_another_head"}));

}  // namespace
}  // namespace shardproof
