#include "emu/plan/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "emu/plan/save.h"
#include "emu/plan/scale.h"

namespace shardproof {
namespace {

using ::testing::HasSubstr;

constexpr const char* kModel =
    R"("model": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 96,
                 "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 100 %s})";

/// A plan with more keys in its model, and other top-level members instead of the usual `parallel`.
std::string plan_text(const std::string& model_more = "", const std::string& rest = R"("parallel": {"tp": 2})") {
  std::string model = kModel;
  model.replace(model.find("%s"), 2, model_more.empty() ? "" : ", " + model_more);
  return "{" + model + ", " + rest + "}";
}

LoadedPlan parse(const std::string& text) {
  return parse_plan(text, "plan.json", ".");
}

Plan parsed(const std::string& text) {
  const LoadedPlan loaded = parse(text);
  for (const Problem& problem : loaded.problems) ADD_FAILURE() << problem.field << ": " << problem.message;
  return loaded.plan.value_or(Plan{});
}

/// The text is refused with a problem at the field whose message contains the words.
void expect_refused(const std::string& text, const std::string& field, const std::string& words) {
  const LoadedPlan loaded = parse(text);
  EXPECT_FALSE(loaded.plan) << text.substr(0, 300);
  const bool found = std::any_of(loaded.problems.begin(), loaded.problems.end(), [&](const Problem& problem) {
    return problem.field == field && problem.message.find(words) != std::string::npos;
  });
  if (found) return;
  std::string all;
  for (const Problem& problem : loaded.problems) all += "  " + problem.field + ": " + problem.message + "\n";
  ADD_FAILURE() << "no problem at " << field << " with \"" << words << "\" among:\n" << all;
}

TEST(LoadPlan, ReadsMixtralKeysAndDerivesTheRest) {
  const Plan plan = parsed(plan_text());

  EXPECT_EQ(plan.model.hidden_size, 64);
  EXPECT_EQ(plan.model.layers[0].attention.kv_heads, 8);
  EXPECT_EQ(plan.model.layers[0].attention.head_dim, 8);
  EXPECT_EQ(plan.model.layers[0].feed_forward.intermediate_size, 96);
  EXPECT_TRUE(plan.model.layers[0].feed_forward.norm_topk_prob);
  EXPECT_EQ(plan.parallel, (Parallel{.tp = 2, .edp = 2}));
  EXPECT_EQ(plan.workload.lengths, std::vector<std::int64_t>{128});
  EXPECT_EQ(plan.name, "plan");
}

TEST(LoadPlan, TakesAliasesOfOtherMixtureOfExpertsConfigs) {
  const Plan plan = parsed(R"({"model": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
      "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 999, "moe_intermediate_size": 48, "num_experts": 6,
      "num_experts_per_tok": 2, "vocab_size": 100, "model_type": "qwen3_moe", "dtype": "float16", "mlp_only_layers": [],
      "decoder_sparse_step": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.5}}, "parallel": {}})");

  EXPECT_EQ(plan.model.layers[0].feed_forward.intermediate_size, 48);
  EXPECT_EQ(plan.model.layers[0].feed_forward.num_experts, 6);
  EXPECT_EQ(plan.model.layers[0].attention.rope.theta, 5000.5);
  EXPECT_EQ(plan.model.dtype, "float16");
  EXPECT_FALSE(plan.model.layers[0].feed_forward.norm_topk_prob);
  EXPECT_EQ(plan.model.layers[0].attention.query_key_norm, QueryKeyNorm::head);
  EXPECT_TRUE(plan.notes.empty());
}

TEST(LoadPlan, TakesMegatronsAndVllmsNamesOfDegrees) {
  const Plan megatron =
      parsed(plan_text("", R"("parallel": {"tensor_model_parallel_size": 2, "context_parallel_size": 2,
      "pipeline_model_parallel_size": 2, "data_parallel_size": 3, "expert_model_parallel_size": 4,
      "expert_tensor_parallel_size": 3, "sequence_parallel": true})"));
  const Plan vllm = parsed(plan_text("", R"("parallel": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2,
      "data_parallel_size": 2, "expert_parallel_size": 4})"));

  EXPECT_EQ(megatron.parallel, (Parallel{.tp = 2, .cp = 2, .dp = 3, .pp = 2, .ep = 4, .etp = 3, .edp = 1, .sp = true}));
  EXPECT_EQ(vllm.parallel, (Parallel{.tp = 2, .dp = 2, .pp = 2, .ep = 4}));
}

TEST(LoadPlan, ReadsHowKeysAndValuesComeOverCp) {
  const auto comm = [](const std::string& parallel) {
    return parsed(plan_text("", R"("parallel": {"cp": 2)" + parallel + "}")).parallel.cp_comm;
  };

  EXPECT_EQ(comm(""), CpComm::p2p);
  EXPECT_EQ(comm(R"(, "cp_comm": "p2p")"), CpComm::p2p);
  EXPECT_EQ(comm(R"(, "cp_comm": "all_gather")"), CpComm::all_gather);
  EXPECT_EQ(comm(R"(, "cp_comm_type": "a2a")"), CpComm::a2a);
  expect_refused(plan_text("", R"("parallel": {"cp": 2, "cp_comm": "ring"})"), "parallel.cp_comm", "\"ring\"; \"p2p\"");
  expect_refused(plan_text("", R"("parallel": {"cp": 2, "cp_comm": ["p2p", "a2a"]})"), "parallel.cp_comm", "string");
}

TEST(LoadPlan, ReadsHowRanksOfCpAreGroupedInARing) {
  const auto refused = [](const std::string& keys, const std::string& message) {
    expect_refused(plan_text("", R"("parallel": {"cp": 4)" + keys + "}"), "parallel.cp_sizes", message);
  };
  const Plan plan = parsed(
      plan_text("", R"("parallel": {"cp": 4, "cp_comm": "a2a+p2p", "hierarchical_context_parallel_sizes": [2, 2]})"));

  EXPECT_EQ(plan.parallel.cp_comm, CpComm::a2a_p2p);
  EXPECT_EQ(plan.parallel.cp_a2a, 2);
  EXPECT_EQ(parsed(plan_json(plan)).parallel, plan.parallel);
  refused(R"(, "cp_comm": "a2a+p2p")", "[ranks of an all-to-all, members of the ring] are needed");
  refused(R"(, "cp_comm": "a2a+p2p", "cp_sizes": [2, 3])", "2 * 3 = 6 ranks, but cp is 4");
  refused(R"(, "cp_comm": "a2a+p2p", "cp_sizes": 2)", "[ranks of an all-to-all, members of the ring] is needed");
  refused(R"(, "cp_sizes": [2, 2])", "is of \"a2a+p2p\", and cp_comm is \"p2p\"; leave it out");
  expect_refused(plan_text("", R"("parallel": {"cp": 4, "cp_comm": "a2a+p2p", "cp_sizes": [4, 1]})"),
                 "parallel.cp_sizes[1]", "1");
}

TEST(LoadPlan, TakesHowTokensComeToTheirExperts) {
  const auto parallel = [](const std::string& keys) {
    return parsed(plan_text("", R"("parallel": {"tp": 2, "ep": 2)" + keys + "}")).parallel;
  };

  EXPECT_EQ(parallel("").dispatch, DispatchComm::all_to_all);
  EXPECT_EQ(parallel(R"(, "dispatch": "all_gather")").dispatch, DispatchComm::all_gather);
  EXPECT_EQ(parallel(R"(, "dispatch": "all_reduce")").dispatch, DispatchComm::all_reduce);
  EXPECT_EQ(parallel("").overlap, Overlap::none);
  EXPECT_EQ(parallel(R"(, "overlap": "two_batch")").overlap, Overlap::two_batch);
  expect_refused(plan_text("", R"("parallel": {"ep": 2, "dispatch": "deepep"})"), "parallel.dispatch",
                 "\"all_gather\"");
  expect_refused(plan_text("", R"("parallel": {"ep": 2, "overlap": true})"), "parallel.overlap", "string");
  expect_refused(plan_text("", R"("parallel": {"ep": 2, "overlap": "all"})"), "parallel.overlap", "\"shared_expert\"");
}

TEST(LoadPlan, CountsContextParallelRanksAmongThoseThatVllmsExpertsSpan) {
  const Plan plan = parsed(plan_text("", R"("parallel": {"tensor_parallel_size": 2, "prefill_context_parallel_size": 3,
      "data_parallel_size": 2, "enable_expert_parallel": true})"));

  EXPECT_EQ(plan.parallel, (Parallel{.tp = 2, .cp = 3, .dp = 2, .ep = 12}));
  ASSERT_EQ(plan.defaults.size(), 1U);
  EXPECT_THAT(plan.defaults[0], HasSubstr("ep = tp 2 * cp 3 * dp 2 = 12"));
}

TEST(LoadPlan, TakesTheDefaultsOfTheSystemWhoseNamesAreUsed) {
  const auto parallel = [](const char* degrees) {
    return parsed(plan_text("", std::string(R"("parallel": )") + degrees));
  };

  const Plan vllm = parallel(R"({"tensor_parallel_size": 4, "data_parallel_size": 2})");
  const Plan vllm_ep =
      parallel(R"({"tensor_parallel_size": 2, "data_parallel_size": 2, "enable_expert_parallel": true})");
  const Plan megatron = parallel(R"({"tensor_model_parallel_size": 2, "data_parallel_size": 4,
                                     "expert_model_parallel_size": 2})");
  const Plan ours = parallel(R"({"tp": 4, "dp": 2})");
  const Plan stated = parallel(R"({"tensor_parallel_size": 4, "etp": 1})");

  EXPECT_EQ(vllm.parallel, (Parallel{.tp = 4, .dp = 2, .etp = 8, .edp = 1}));
  ASSERT_EQ(vllm.defaults.size(), 1U);
  EXPECT_THAT(vllm.defaults[0], HasSubstr("etp = tp 4 * dp 2 = 8, edp = 1: vLLM"));
  EXPECT_EQ(vllm_ep.parallel, (Parallel{.tp = 2, .dp = 2, .ep = 4}));
  EXPECT_THAT(vllm_ep.defaults[0], HasSubstr("ep = tp 2 * dp 2 = 4"));
  EXPECT_EQ(megatron.parallel, (Parallel{.tp = 2, .dp = 4, .ep = 2, .etp = 2, .edp = 2}));
  EXPECT_THAT(megatron.defaults[0], HasSubstr("etp = tp = 2: Megatron"));
  EXPECT_EQ(ours.parallel, (Parallel{.tp = 4, .dp = 2, .edp = 8}));
  EXPECT_TRUE(ours.defaults.empty());
  EXPECT_EQ(stated.parallel.etp, 1);
  EXPECT_TRUE(stated.defaults.empty());
}

TEST(LoadPlan, ReadsTheLayersOfEachStageInThreeWays) {
  const auto stages = [](const char* more) {
    return parsed(plan_text("", std::string(R"("parallel": {"pp": 3, )") + more + "}")).parallel.layers_per_stage;
  };
  const auto refuse = [](const char* more, const char* field, const char* words) {
    expect_refused(plan_text("", std::string(R"("parallel": {"pp": 3, )") + more + "}"), field, words);
  };
  using Layers = std::vector<std::int64_t>;

  EXPECT_EQ(stages(R"("tp": 1)"), Layers());
  EXPECT_EQ(stages(R"("layers_per_stage": [1, 2, 1])"), Layers({1, 2, 1}));
  EXPECT_EQ(stages(R"("num_layers_in_first_pipeline_stage": 2)"), Layers({2, 1, 1}));
  EXPECT_EQ(stages(R"("decoder_first_pipeline_num_layers": 1, "decoder_last_pipeline_num_layers": 1)"),
            Layers({1, 2, 1}));
  refuse(R"("num_layers_in_last_pipeline_stage": 1)", "parallel.num_layers_in_last_pipeline_stage",
         "4 layers - 0 - 1 = 3 do not spread evenly over the other 2 stages");
  refuse(R"("layers_per_stage": [1, 0, 3])", "parallel.layers_per_stage[1]", "0");
  refuse(R"("layers_per_stage": [4], "num_layers_in_first_pipeline_stage": 2)", "parallel.layers_per_stage",
         "keep one");
  refuse(R"("layers_per_stage": 4)", "parallel.layers_per_stage", "array");
}

TEST(LoadPlan, RefusesAnArchitectureOfAnotherFamilyWhetherOrNotThereIsAModelType) {
  expect_refused(plan_text(R"("architectures": ["DbrxForCausalLM"])"), "model.architectures", "there is no model_type");
  expect_refused(plan_text(R"("model_type": "mixtral", "architectures": ["DbrxForCausalLM"])"), "model.architectures",
                 "than model_type says");
  expect_refused(plan_text(R"("model_type": "mixtral", "architectures": ["Qwen3MoeForCausalLM"])"),
                 "model.architectures", "of the family \"qwen3_moe\"");
  EXPECT_EQ(parsed(plan_text(R"("architectures": ["MixtralForCausalLM"])")).model.model_type, "mixtral");
  EXPECT_EQ(parsed(plan_text(R"("architectures": [])")).model.model_type, "mixtral");
  EXPECT_TRUE(parsed(plan_text(R"("architectures": ["Qwen3MoeForCausalLM"], "moe_intermediate_size": 8)"))
                  .model.layers[0]
                  .attention.query_key_norm == QueryKeyNorm::head);
}

TEST(LoadPlan, RefusesKeysThatBelongToAnotherFamilyAndTakesThoseThatChangeNothing) {
  expect_refused(plan_text(R"("moe_intermediate_size": 48)"), "model.moe_intermediate_size", "has no such key");
  expect_refused(plan_text(R"("add_cross_attention": true)"), "model.add_cross_attention", "encoder");
  expect_refused(plan_text(R"("is_encoder_decoder": true)"), "model.is_encoder_decoder", "encoders");
  expect_refused(plan_text(R"("layer_types": ["full_attention", "sliding_attention"])"), "model.layer_types[1]",
                 "only \"full_attention\"");
  EXPECT_EQ(
      parsed(plan_text(R"("rope_scaling": {"type": "linear", "factor": 2.0})")).model.layers[0].attention.rope.factor,
      2.0);
  expect_refused(plan_text(R"("rope_scaling": {"type": "linear"})"), "model.rope_scaling.factor", "needs one");
  const Plan plain = parsed(plan_text());
  EXPECT_EQ(
      parsed(
          plan_text(
              R"("layer_types": ["full_attention", "full_attention", "full_attention", "full_attention"], "is_encoder_decoder": false,
                                "rope_scaling": {"type": "linear", "factor": 1.0})"))
          .model,
      plain.model);
}

TEST(LoadPlan, TakesAbsenceAndNullAsTheFamilyDoes) {
  const auto model = [](const std::string& type, const std::string& more) {
    return parsed(R"({"model": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 100,
        "intermediate_size": 96, "model_type": ")" +
                  type + "\", " + more + R"(}, "parallel": {}})")
        .model;
  };
  const std::string moe = R"("moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 2)";
  const std::string small = moe + R"(, "n_group": 1, "topk_group": 1)";

  const ModelConfig v3 = model("deepseek_v3", small), v2 = model("deepseek_v2", small);
  const ModelConfig direct = model("deepseek_v2", small + R"(, "q_lora_rank": null)");
  const ModelConfig plain_oss = model("gpt_oss", R"("num_local_experts": 4)");
  const ModelConfig said_oss =
      model("gpt_oss", R"("num_local_experts": 4, "rope_scaling": {"rope_type": "yarn", "factor": 32.0,
          "original_max_position_embeddings": 4096, "truncate": false})");
  const ModelConfig no_window = model("qwen3", R"("use_sliding_window": true, "sliding_window": null)");

  EXPECT_EQ(v3.layers[0].attention.q_lora_rank, 1536);
  EXPECT_EQ(direct.layers[0].attention.q_lora_rank, 0);
  EXPECT_TRUE(v3.layers[2].feed_forward.dense());
  EXPECT_EQ(v3.experts().shared_intermediate_size, 16);
  EXPECT_FALSE(v2.layers[0].feed_forward.dense());
  EXPECT_EQ(v2.experts().shared_intermediate_size, 32);
  EXPECT_DOUBLE_EQ(plain_oss.layers[0].attention.rope.amplitude, said_oss.layers[0].attention.rope.amplitude);
  EXPECT_EQ(plain_oss.layers[0].attention.rope.type, RopeType::yarn);
  EXPECT_EQ(no_window.layers[3].attention.sliding_window, 0);
}

TEST(PlanJson, KeepsEveryPublishedModel) {
  int models = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(SHARDPROOF_SOURCE_DIR) + "/plans/models")) {
    if (entry.path().extension() != ".json") continue;
    const LoadedPlan loaded = load_plan(entry.path());
    ASSERT_TRUE(loaded.plan.has_value()) << entry.path();
    ++models;

    EXPECT_EQ(parsed(plan_json(*loaded.plan)).model, loaded.plan->model) << entry.path();
  }
  EXPECT_EQ(models, 11);
}

TEST(LoadPlan, SlicesNoExpertsOfAModelThatHasNone) {
  const Plan plan = parsed(R"({"model": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
      "intermediate_size": 96, "vocab_size": 100, "model_type": "llama"}, "parallel": {"tensor_parallel_size": 4}})");

  EXPECT_EQ(plan.parallel, (Parallel{.tp = 4, .edp = 4}));
  EXPECT_TRUE(plan.defaults.empty());
  EXPECT_TRUE(plan.model.dense());
}

TEST(LoadPlan, DataParallelDegreeFollowsFromTheGpus) {
  const auto dp = [](const char* gpus, const char* degrees) {
    return parsed(plan_text("", std::string(R"("hardware": {"gpus": )") + gpus + R"(}, "parallel": )" + degrees))
        .parallel.dp;
  };

  EXPECT_EQ(dp("16", R"({"tp": 2, "pp": 2})"), 4);
  EXPECT_EQ(dp("19", R"({"tp": 2, "pp": 2})"), 4);
  EXPECT_EQ(dp("2", R"({"tp": 4})"), 1);
  EXPECT_EQ(dp("16", R"({"tp": 2, "dp": 3})"), 3);
}

TEST(LoadPlan, ReadsSequenceParallelismAsAFlagOrAsTheTensorDegree) {
  const auto sp = [](const char* value) {
    return parsed(plan_text("", std::string(R"("parallel": {"tp": 2, "sp": )") + value + "}")).parallel.sp;
  };

  EXPECT_TRUE(sp("true"));
  EXPECT_TRUE(sp("2"));
  EXPECT_FALSE(sp("false"));
  EXPECT_FALSE(sp("1"));
  expect_refused(plan_text("", R"("parallel": {"tp": 2, "sp": 4})"), "parallel.sp", "tp = 2");
}

TEST(LoadPlan, ReadsLengthsOrBatchAndSequence) {
  const auto lengths = [](const char* workload) {
    return parsed(plan_text("", std::string(R"("parallel": {}, "workload": )") + workload)).workload.lengths;
  };

  EXPECT_EQ(lengths(R"({"lengths": [3, 1, 2]})"), (std::vector<std::int64_t>{3, 1, 2}));
  EXPECT_EQ(lengths(R"({"batch": 2, "sequence": 5})"), (std::vector<std::int64_t>{5, 5}));
  const std::string rest = R"("parallel": {}, "workload": )";
  expect_refused(plan_text("", rest + R"({"lengths": [1], "sequence": 2})"), "workload.sequence", "keep one");
  expect_refused(plan_text("", rest + R"({"lengths": [1], "batch": 2})"), "workload.batch", "1 entries");
  expect_refused(plan_text("", rest + R"({"lengths": []})"), "workload.lengths", "empty");
  expect_refused(plan_text("", rest + R"({"lengths": [1, 0]})"), "workload.lengths[1]", "0 is out of range");
  expect_refused(plan_text("", rest + R"({"batch": 0})"), "workload.batch", "0 is out of range");
}

TEST(LoadPlan, ReadsWhereTokensAreSaidToGo) {
  const std::string rest = R"("parallel": {}, "workload": {"routing": )";
  const auto routing = [&](const std::string& value) {
    return parsed(plan_text("", rest + value + "}")).workload.routing;
  };

  EXPECT_TRUE(routing(R"("even")").is_even());
  EXPECT_EQ(routing(R"({"zipf": 1.25})").zipf, 1.25);
  EXPECT_EQ(routing(R"({"counts": [[1, 2], [3, 4]]})").counts,
            (std::vector<std::vector<std::int64_t>>{{1, 2}, {3, 4}}));
  expect_refused(plan_text("", rest + R"("odd"})"), "workload.routing", "\"even\"");
  expect_refused(plan_text("", rest + R"({}})"), "workload.routing", "is needed");
  expect_refused(plan_text("", rest + R"({"zipf": -1}})"), "workload.routing.zipf", "out of range");
  expect_refused(plan_text("", rest + R"({"zipf": 1, "counts": [[1]]}})"), "workload.routing", "is needed");
  expect_refused(plan_text("", rest + R"({"power": 1}})"), "workload.routing.power", "");
  expect_refused(plan_text("", rest + R"({"counts": []}})"), "workload.routing.counts", "array of counts");
  expect_refused(plan_text("", rest + R"({"counts": [[1], 2]}})"), "workload.routing.counts[1]", "array of counts");
  expect_refused(plan_text("", rest + R"({"counts": [[1, -2]]}})"), "workload.routing.counts[0][1]", "-2");
}

TEST(LoadPlan, KeepsClaimsAsWritten) {
  const Plan plan = parsed(plan_text("", R"("parallel": {}, "claims": [{"document": "000", "text": "t",
      "quantity": "world", "relation": "<=", "stated": 1.5, "unit": "GPUs"}])"));

  ASSERT_EQ(plan.claims.size(), 1u);
  EXPECT_EQ(plan.claims[0].quantity, "world");
  EXPECT_EQ(plan.claims[0].relation, "<=");
  EXPECT_EQ(plan.claims[0].stated, 1.5);
}

TEST(LoadPlan, ReadsTheModelFromAFileBesideThePlan) {
  const std::filesystem::path folder = std::filesystem::path(::testing::TempDir()) / "load_plan_beside";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json") << R"({"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
      "intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 100, "use_cache": true,
      "sliding_window": null, "architectures": ["MixtralForCausalLM"], "hidden_act": "silu"})";
  std::ofstream(folder / "plan.json") << R"({"model": "config.json", "parallel": {"tp": 2}})";
  std::ofstream(folder / "broken.json") << R"({"model": "nowhere.json", "parallel": {"tp": 2}})";

  const LoadedPlan loaded = load_plan(folder / "plan.json");
  const LoadedPlan broken = load_plan(folder / "broken.json");

  ASSERT_TRUE(loaded.plan) << loaded.problems[0].message;
  EXPECT_EQ(loaded.plan->model.hidden_size, 64);
  ASSERT_EQ(broken.problems.size(), 1u);
  EXPECT_EQ(broken.problems[0].field, "model");
  EXPECT_THAT(broken.problems[0].message, HasSubstr("no such file"));
  std::filesystem::remove_all(folder);
}

TEST(LoadPlan, RefusesKeysThatChangeTheMathematics) {
  expect_refused(plan_text(R"("hidden_act": "gelu")"), "model.hidden_act", "only silu");
  expect_refused(plan_text(R"("attention_bias": true)"), "model.attention_bias", "no biases");
  expect_refused(plan_text(R"("n_shared_experts": 1)"), "model.n_shared_experts", "shared experts");
  expect_refused(plan_text(R"("rope_scaling": {"type": "yarn", "factor": 4.0})"),
                 "model.rope_scaling.original_max_position_embeddings", "before it was stretched");
  expect_refused(plan_text(R"("rope_scaling": {"type": "dynamic", "factor": 4.0})"), "model.rope_scaling.type",
                 "not computed");
  expect_refused(plan_text(R"("model_type": "dbrx")"), "model.model_type", "\"mixtral\", \"qwen3_moe\"");
  expect_refused(plan_text(R"("first_k_dense_replace": 1)"), "model.first_k_dense_replace", "every layer");
  expect_refused(plan_text(R"("scoring_func": "sigmoid")"), "model.scoring_func", "softmax");
  expect_refused(plan_text(R"("quantization_config": {"bits": 4})"), "model.quantization_config", "quant_method");
  expect_refused(plan_text(R"("torch_dtype": "int8")"), "model.torch_dtype", "bfloat16");
  EXPECT_TRUE(parse(plan_text(R"("sliding_window": 4096)")).plan);
  EXPECT_TRUE(parse(plan_text(R"("sliding_window": 4, "use_sliding_window": false)")).plan);
  EXPECT_TRUE(parse(plan_text(R"("rope_scaling": null, "attention_bias": false, "hidden_act": "silu")")).plan);
}

TEST(LoadPlan, TakesKeysOfOtherClassesAsTheModelsOwnClassDoes) {
  const auto loaded = [](const std::string& model) { return parse(plan_text("\"model_type\": " + model)); };
  const LoadedPlan mixtral = parse(plan_text(R"("norm_topk_prob": false)"));
  const LoadedPlan clipped = loaded(R"("olmoe", "clip_qkv": 8.0)");

  ASSERT_TRUE(mixtral.plan);
  EXPECT_FALSE(mixtral.plan->model.layers[0].feed_forward.norm_topk_prob);
  EXPECT_THAT(mixtral.plan->model_notes, ::testing::Contains(HasSubstr("has no such key")));
  expect_refused(plan_text(R"("model_type": "gpt_oss", "norm_topk_prob": false)"), "model.norm_topk_prob",
                 "no such key");
  expect_refused(plan_text(R"("clip_qkv": 8)"), "model.clip_qkv", "clips nothing");
  ASSERT_TRUE(clipped.plan);
  EXPECT_EQ(clipped.plan->model.layers[0].attention.clip_qkv, 8);
  EXPECT_EQ(parsed(plan_json(*clipped.plan)).model, clipped.plan->model);
}

TEST(LoadPlan, RefusesUnknownKeysAndGuessesWhatWasMeant) {
  expect_refused(plan_text(R"("hiden_size": 3)"), "model.hiden_size", "did you mean \"hidden_size\"");
  expect_refused(plan_text("", R"("parallel": {"tpp": 3})"), "parallel.tpp", "unknown key");
  expect_refused(plan_text("", R"("parallel": {}, "hardware": {"gpus": 1, "gpu": 1})"), "hardware.gpu", "unknown key");
  expect_refused(plan_text("", R"("parallel": {}, "workload": {"sequences": 1})"), "workload.sequences",
                 "\"sequence\"");
  expect_refused(
      plan_text("", R"("parallel": {}, "claims": [{"quantity": "world", "relation": "=", "stated": 1, "x": 1}])"),
      "claims[0].x", "unknown key");
  expect_refused(plan_text("", R"("parallel": {}, "paralel": {})"), "paralel", "did you mean \"parallel\"");
}

TEST(LoadPlan, RefusesAKeyTogetherWithItsAlias) {
  expect_refused(plan_text("", R"("parallel": {"tp": 2, "tensor_parallel_size": 2})"), "parallel.tensor_parallel_size",
                 "together with \"tp\"");
  expect_refused(plan_text(R"("num_experts": 8)"), "model.num_experts", "together with \"num_local_experts\"");
  expect_refused(plan_text(R"("rope_theta": 10.0, "rope_parameters": {"rope_theta": 20.0})"),
                 "model.rope_parameters.rope_theta", "contradicts");
}

TEST(LoadPlan, RefusesDuplicateKeysWhereverTheyStand) {
  expect_refused(R"({"parallel": {"tp": 1, "tp": 2}})", "parallel.tp", "twice");
  expect_refused(R"({"claims": [{}, {"text": "a", "text": "b"}]})", "claims[1].text", "twice");
  expect_refused(R"({"name": "a", "name": "b"})", "name", "twice");
}

TEST(LoadPlan, RefusesWrongTypes) {
  expect_refused("3", "plan", "3 where an object is needed");
  expect_refused(R"({"model": 3, "parallel": {}})", "model", "3 where an object is needed");
  expect_refused(plan_text("", R"("parallel": [])"), "parallel", "an array of 0");
  expect_refused(plan_text("", R"("parallel": {"tp": "2"})"), "parallel.tp", "\"2\" is not a number");
  expect_refused(plan_text("", R"("parallel": {"tp": 2.5})"), "parallel.tp", "2.5 is not an integer");
  expect_refused(plan_text("", R"("parallel": {"tp": null})"), "parallel.tp", "null is not a number");
  expect_refused(plan_text("", R"("parallel": {}, "name": 7)"), "name", "7 where a string is needed");
  expect_refused(plan_text("", R"("parallel": {}, "notes": [1])"), "notes[0]", "1 where a string is needed");
  expect_refused(plan_text("", R"("parallel": {}, "claims": {})"), "claims", "where an array is needed");
  expect_refused(plan_text("", R"("parallel": {}, "claims": [{"quantity": "world", "relation": "==", "stated": 1}])"),
                 "claims[0].relation", "\"==\"");
}

TEST(LoadPlan, RefusesNumbersOutOfRange) {
  for (const char* value : {"0", "-1", "1000000000", "99999999999999999999", "1e300"}) {
    expect_refused(plan_text("", std::string(R"("parallel": {"tp": )") + value + "}"), "parallel.tp", "out of range");
  }
  expect_refused(plan_text("", R"("parallel": {}, "hardware": {"gpus": 0})"), "hardware.gpus", "out of range");
  expect_refused(plan_text("", R"("parallel": {}, "hardware": {"gpus": 1, "mfu": 1.5})"), "hardware.mfu",
                 "out of range");
  expect_refused(plan_text("", R"("parallel": {}, "workload": {"batch": 1000000000})"), "workload.batch",
                 "out of range");
}

TEST(LoadPlan, NamesWhatIsMissing) {
  expect_refused("{}", "model", "is missing");
  expect_refused("{}", "parallel", "is missing");
  expect_refused(R"({"model": {}, "parallel": {}})", "model.vocab_size", "is missing");
  expect_refused(plan_text("", R"("parallel": {}, "hardware": {})"), "hardware.gpus", "is missing");
  expect_refused(plan_text("", R"("parallel": {}, "claims": [{"relation": "="}])"), "claims[0].quantity", "is missing");
  expect_refused(R"({"model": {"hidden_size": 65, "num_attention_heads": 8}, "parallel": {}})", "model.head_dim",
                 "65 / num_attention_heads 8 = 8 remainder 1");
}

TEST(LoadPlan, PlacesSyntaxErrors) {
  expect_refused("{\n  \"name\": \"a\",\n  \"model\" 3}", "plan.json:3:11", "is not JSON from here on: \"3\"");
  expect_refused("", "plan.json:1:1", "is empty; JSON is needed");
  expect_refused(R"({"name": NaN})", "plan.json:1:10", "is not JSON from here on: \"NaN\" was not expected");
  expect_refused(R"({"name": 1e999})", "plan.json:1:14", "the number \"1e999\" is beyond what a double holds");
  expect_refused(R"({"name": "a"} x)", "plan.json:1:15", "is not JSON");
  expect_refused("{\"name\": \"\xff\"}", "plan.json:1:11", "unexpected byte 0xff; strings must be UTF-8");
  expect_refused(R"({"name": "a)", "plan.json:1:12", "the text ends in the middle");
}

TEST(LoadPlan, ReportsARepeatedKeyOnce) {
  std::string keys;
  for (int i = 0; i < 70; ++i) keys += R"("tp": 2, )";

  const LoadedPlan loaded = parse(plan_text("", "\"parallel\": {" + keys + "\"pp\": 1, \"pp\": 1}"));

  ASSERT_EQ(loaded.problems.size(), 2U);
  EXPECT_EQ(loaded.problems[0].field, "parallel.tp");
  EXPECT_EQ(loaded.problems[1].field, "parallel.pp");
}

TEST(LoadPlan, SaysOfAModelFileThatItIsItsOwn) {
  const std::filesystem::path folder = ::testing::TempDir();
  const std::string model = (folder / "wrong_model.json").string();
  const auto problems_of = [&](const std::string& text) {
    std::ofstream(model) << text;
    return parse_plan(R"({"model": "wrong_model.json", "parallel": {"zp": 1}})", "plan.json", folder).problems;
  };

  const auto wrong_value = problems_of(R"({"hidden_size": -1})");
  const auto no_json = problems_of("{,}");
  std::filesystem::remove(model);

  ASSERT_GE(wrong_value.size(), 2U);
  EXPECT_EQ(wrong_value.front().file, model);
  EXPECT_EQ(wrong_value.front().field, "hidden_size");
  EXPECT_EQ(wrong_value.back().file, "");
  EXPECT_EQ(wrong_value.back().field, "parallel.zp");
  ASSERT_EQ(no_json.size(), 2U);
  EXPECT_EQ(no_json.front().file, model);
  EXPECT_EQ(no_json.front().field, model + ":1:2");
}

TEST(LoadPlan, CutsNoPathAtANul) {
  expect_refused(R"({"model": "config.json\u0000.txt", "parallel": {}})", "model", "holds no NUL");
}

TEST(LoadPlan, RefusesEveryTruncation) {
  const std::string text = plan_text("", R"("parallel": {"tp": 2}, "workload": {"lengths": [1, 2]}, "notes": ["a"])");
  ASSERT_TRUE(parse(text).plan);

  for (std::size_t length = 0; length < text.size(); ++length) {
    const LoadedPlan loaded = parse(text.substr(0, length));
    ASSERT_FALSE(loaded.plan) << length;
    ASSERT_EQ(loaded.problems.size(), 1u) << length;
  }
}

TEST(LoadPlan, RefusesDeepNestingWithoutRecursing) {
  expect_refused(std::string(1'000'000, '['), "[0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0]", "deeper than 16");
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += R"({"a":)";
  expect_refused(objects, "a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a", "deeper than 16");
}

TEST(LoadPlan, RefusesFilesItCannotReadWithOneProblem) {
  const auto problem = [](const std::filesystem::path& path) {
    const LoadedPlan loaded = load_plan(path);
    EXPECT_FALSE(loaded.plan);
    EXPECT_EQ(loaded.problems.size(), 1u);
    return loaded.problems.empty() ? "" : loaded.problems[0].message;
  };
  const std::filesystem::path large = std::filesystem::path(::testing::TempDir()) / "large_plan.json";
  std::ofstream(large).put('{');
  std::filesystem::resize_file(large, 100'000'000);

  EXPECT_THAT(problem("/no/such/plan.json"), HasSubstr("no such file"));
  EXPECT_THAT(problem(::testing::TempDir()), HasSubstr("is a directory"));
  EXPECT_THAT(problem(large), HasSubstr("100000000 bytes, larger than the limit"));
  EXPECT_THAT(problem("/dev/zero"), HasSubstr("is a device"));
  EXPECT_THAT(problem(std::filesystem::path(std::string("/no\0/such", 9))), HasSubstr("holds no NUL"));
  std::filesystem::remove(large);
}

TEST(LoadPlan, ReportsManyProblemsAtOnce) {
  const LoadedPlan loaded =
      parse(R"({"model": {"hidden_size": -1}, "parallel": {"tp": 0, "pp": "x", "q": 1}, "z": 0})");

  EXPECT_FALSE(loaded.plan);
  EXPECT_GE(loaded.problems.size(), 10u);
}

TEST(PlanJson, KeepsHowKeysAndValuesComeOverCp) {
  for (const char* comm : {"p2p", "all_gather", "a2a"}) {
    const Plan plan = parsed(plan_text("", std::string(R"("parallel": {"cp": 2, "cp_comm": ")") + comm + "\"}"));

    EXPECT_EQ(parsed(plan_json(plan)).parallel, plan.parallel);
  }
}

TEST(PlanJson, IsReadBackAsTheSamePlan) {
  LoadedPlan loaded = load_plan(std::string(SHARDPROOF_SOURCE_DIR) + "/plans/ep4_tp2_pp2_sp.json");
  ASSERT_TRUE(loaded.plan);
  loaded.plan->workload.routing.counts = {{1, 2, 3}};

  const std::string text = plan_json(*loaded.plan);
  const LoadedPlan again = parse(text);

  ASSERT_TRUE(again.plan) << again.problems[0].field << again.problems[0].message;
  EXPECT_EQ(again.plan->model, loaded.plan->model);
  EXPECT_EQ(again.plan->parallel, loaded.plan->parallel);
  EXPECT_EQ(again.plan->workload.lengths, loaded.plan->workload.lengths);
  EXPECT_EQ(again.plan->workload.routing, loaded.plan->workload.routing);
  EXPECT_EQ(again.plan->notes, loaded.plan->notes);
  EXPECT_EQ(plan_json(*again.plan), text);
}

TEST(LoadPlan, ReadsTokenIdsWhichSayHowLongTheSequencesAre) {
  const std::string rest = R"("parallel": {}, "workload": {"tokens": )";
  const Workload workload = parsed(plan_text("", rest + "[[5, 0, 9], [1]]}")).workload;

  EXPECT_EQ(workload.token_ids, (std::vector<std::vector<std::int32_t>>{{5, 0, 9}, {1}}));
  EXPECT_EQ(workload.lengths, (std::vector<std::int64_t>{3, 1}));
  Plan plan = parsed(plan_text("", rest + "[[5, 0, 9], [1]]}"));
  EXPECT_EQ(parsed(plan_json(plan)).workload.token_ids, workload.token_ids);
  EXPECT_EQ(scaled(plan, {.mode = ScaleOptions::Mode::full}).workload.token_ids, workload.token_ids);
  EXPECT_TRUE(scaled(plan, {.mode = ScaleOptions::Mode::full, .sequence = 2}).workload.token_ids.empty());

  expect_refused(plan_text("", rest + "[]}"), "workload.tokens", "is needed");
  expect_refused(plan_text("", rest + "[[1], []]}"), "workload.tokens[1]", "an array of token ids is needed");
  expect_refused(plan_text("", rest + "[[1, -1]]}"), "workload.tokens[0][1]", "out of range");
  expect_refused(plan_text("", rest + "[[1, 2]], \"lengths\": [2]}"), "workload.lengths", "says how long");
  expect_refused(plan_text("", rest + "[[1, 2]], \"batch\": 2}"), "workload.batch", "has 1 sequences");
}

TEST(LoadPlan, TakesTheDirectoryOfACheckpointAsTheModel) {
  const std::string directory = SHARDPROOF_SOURCE_DIR "/tests/golden/families/olmoe";

  const LoadedPlan loaded = parse(R"({"model": ")" + directory + R"(", "parallel": {"tp": 2}})");

  ASSERT_TRUE(loaded.plan.has_value()) << loaded.problems.front().message;
  EXPECT_EQ(loaded.plan->model.model_type, "olmoe");
  EXPECT_EQ(loaded.model_directory, directory);
  EXPECT_EQ(loaded.model_file, directory + "/config.json");
}

TEST(LoadPlan, RefusesADirectoryThatIsNoCheckpoint) {
  const std::filesystem::path golden = SHARDPROOF_SOURCE_DIR "/tests/golden/families/olmoe";
  const std::filesystem::path folder = std::filesystem::path(::testing::TempDir()) / "shardproof_no_checkpoint";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const std::string text = R"({"model": ")" + folder.string() + R"(", "parallel": {"tp": 2}})";

  expect_refused(text, "model", "no config.json");
  std::filesystem::copy(golden / "config.json", folder / "config.json");
  expect_refused(text, "model", "no .safetensors");

  std::filesystem::remove_all(folder);
}

TEST(LoadPlan, RefusesAHeadDimThatLatentAttentionDoesNotHave) {
  const std::string latent =
      R"("model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "q_lora_rank": 16, "kv_lora_rank": 12,
         "qk_nope_head_dim": 6, "qk_rope_head_dim": 8, "v_head_dim": 10, "moe_intermediate_size": 16, "n_group": 1,
         "topk_group": 1, "first_k_dense_replace": 1, "head_dim": )";

  EXPECT_TRUE(parse(plan_text(latent + "8")).problems.empty());
  expect_refused(plan_text(latent + "9"), "model.head_dim", "qk_rope_head_dim, 8");
}

}  // namespace
}  // namespace shardproof
