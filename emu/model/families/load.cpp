#include "emu/model/families/load.h"

#include <fmt/format.h>

#include <initializer_list>
#include <string_view>

#include "emu/input/object_reader.h"

namespace shardproof {
namespace {

using Kind = JsonValue::Kind;

constexpr std::int64_t kMaxWidth = 1 << 20;
constexpr std::int64_t kMaxCount = 1 << 16;
constexpr std::int64_t kMaxLayers = 10'000;
constexpr std::int64_t kMaxVocabulary = 1 << 24;

/// Keys of Hugging Face configs that say nothing about the forward pass of a decoder in evaluation.
void skip_irrelevant(ObjectReader& reader) {
  reader.ignore({"architectures",
                 "auto_map",
                 "transformers_version",
                 "_name_or_path",
                 "_commit_hash",
                 "name_or_path",
                 "model_max_length",
                 "max_position_embeddings",
                 "initializer_range",
                 "use_cache",
                 "cache_implementation",
                 "bos_token_id",
                 "eos_token_id",
                 "pad_token_id",
                 "sep_token_id",
                 "decoder_start_token_id",
                 "attention_dropout",
                 "hidden_dropout",
                 "embd_pdrop",
                 "resid_pdrop",
                 "router_jitter_noise",
                 "router_aux_loss_coef",
                 "aux_loss_alpha",
                 "seq_aux",
                 "output_router_logits",
                 "output_attentions",
                 "output_hidden_states",
                 "return_dict",
                 "return_dict_in_generate",
                 "torchscript",
                 "use_bfloat16",
                 "_attn_implementation",
                 "attn_implementation",
                 "_attn_implementation_autoset",
                 "pretraining_tp",
                 "ep_size",
                 "max_window_layers",
                 "gradient_checkpointing",
                 "use_flash_attn",
                 "is_decoder",
                 "id2label",
                 "label2id",
                 "num_labels",
                 "finetuning_task",
                 "task_specific_params",
                 "problem_type",
                 "tokenizer_class",
                 "prefix",
                 "tie_encoder_decoder",
                 "chunk_size_feed_forward",
                 "pruned_heads",
                 "tf_legacy_loss",
                 "architecture",
                 "bad_words_ids",
                 "begin_suppress_tokens",
                 "suppress_tokens",
                 "forced_bos_token_id",
                 "forced_eos_token_id",
                 "temperature",
                 "top_p",
                 "typical_p",
                 "do_sample",
                 "early_stopping",
                 "num_beams",
                 "num_beam_groups",
                 "num_return_sequences",
                 "max_length",
                 "min_length",
                 "length_penalty",
                 "repetition_penalty",
                 "no_repeat_ngram_size",
                 "encoder_no_repeat_ngram_size",
                 "diversity_penalty",
                 "exponential_decay_length_penalty",
                 "output_scores",
                 "remove_invalid_values",
                 "cross_attention_hidden_size",
                 "add_cross_attention",
                 "is_encoder_decoder"});
}

/// The keys may be absent, null or 0; anything else adds a part to the layer that is not computed.
void refuse_unless_zero(ObjectReader& reader, ObjectReader::Names names, std::string_view why) {
  const auto found = reader.find(names);
  if (!found) return;
  const JsonValue& value = *found->value;
  const bool none = (value.is(Kind::integer) && value.integer == 0) || (value.is(Kind::boolean) && !value.boolean) ||
                    (value.is(Kind::array) && value.items.empty());
  if (!none) reader.problem(found->field, fmt::format("{}: {}", describe(value), why));
}

void refuse_unless_one(ObjectReader& reader, ObjectReader::Names names, std::string_view why) {
  const auto found = reader.find(names);
  if (!found) return;
  const JsonValue& value = *found->value;
  const bool one = (value.is(Kind::integer) || value.is(Kind::number)) && value.number == 1.0;
  if (!one) reader.problem(found->field, fmt::format("{}: {}", describe(value), why));
}

void refuse_unless_text(ObjectReader& reader, ObjectReader::Names names,
                        std::initializer_list<std::string_view> allowed, std::string_view why) {
  const auto found = reader.find(names);
  if (!found) return;
  if (found->value->is(Kind::string)) {
    for (const std::string_view text : allowed) {
      if (found->value->text == text) return;
    }
  }
  reader.problem(found->field, fmt::format("{}: {}", describe(*found->value), why));
}

void refuse_other_mathematics(ObjectReader& reader) {
  refuse_unless_text(reader, {"hidden_act", "hidden_activation"}, {"silu", "swish"},
                     "only silu is computed (SwiGLU experts)");
  refuse_unless_zero(reader, {"attention_bias", "qkv_bias", "use_qkv_bias"}, "biases in attention are not computed");
  refuse_unless_zero(reader, {"mlp_bias", "use_bias"}, "biases in the experts are not computed");
  refuse_unless_zero(reader, {"lm_head_bias"}, "a bias of the output head is not computed");
  refuse_unless_zero(reader, {"n_shared_experts", "num_shared_experts", "shared_expert_intermediate_size"},
                     "shared experts are not computed");
  refuse_unless_zero(reader, {"mlp_only_layers", "first_k_dense_replace", "moe_num_dense_layers"},
                     "every layer must have experts; dense layers are not computed");
  refuse_unless_one(reader, {"decoder_sparse_step", "moe_layer_freq"}, "every layer must have experts");
  refuse_unless_text(reader, {"scoring_func", "moe_router_score_function"}, {"softmax"},
                     "only softmax routing is computed");
  refuse_unless_text(reader, {"topk_method"}, {"greedy"}, "only plain top-k routing is computed");
  refuse_unless_one(reader, {"n_group"}, "grouped routing is not computed");
  refuse_unless_one(reader, {"topk_group"}, "grouped routing is not computed");
  refuse_unless_one(reader, {"routed_scaling_factor"}, "a scale on the experts' output is not computed");
  refuse_unless_one(reader, {"partial_rotary_factor"}, "rotary embeddings over part of a head are not computed");
  refuse_unless_zero(reader, {"use_qk_norm", "qk_norm", "qk_layernorm"}, "norms of queries and keys are not computed");
  refuse_unless_zero(reader, {"clip_qkv", "attn_logit_softcapping", "final_logit_softcapping"},
                     "clipping and soft caps are not computed");
  if (const auto found = reader.find({"quantization_config"})) {
    reader.problem(found->field,
                   "quantised weights are not emulated; state the formats bfloat16, float16, float32 or "
                   "float64 in torch_dtype");
  }
}

/// rope_theta stands at the top level, or inside rope_parameters or rope_scaling, whose type must change nothing.
std::optional<double> read_rope_theta(ObjectReader& reader, std::vector<Problem>& problems) {
  std::optional<double> theta = reader.number({"rope_theta", "rotary_emb_base"}, 1.0, 1e12);
  const auto nested = reader.find({"rope_parameters", "rope_scaling"});
  if (!nested) return theta;
  ObjectReader rope(*nested->value, nested->field, problems, ObjectReader::Null::absent);
  refuse_unless_text(rope, {"rope_type", "type"}, {"default"},
                     "only unscaled rotary embeddings (\"default\") are computed");
  refuse_unless_one(rope, {"factor"}, "scaled rotary embeddings are not computed");
  refuse_unless_one(rope, {"partial_rotary_factor"}, "rotary embeddings over part of a head are not computed");
  const std::optional<double> inner = rope.number({"rope_theta"}, 1.0, 1e12);
  rope.finish();
  if (theta && inner && *theta != *inner) {
    reader.problem(rope.field("rope_theta"),
                   fmt::format("{} contradicts {} = {}", *inner, reader.field("rope_theta"), *theta));
  }
  return inner ? inner : theta;
}

void read_type(ObjectReader& reader, LoadedModel& loaded) {
  const auto found = reader.find({"model_type"});
  if (!found) return;
  if (found->value->is(Kind::string)) {
    const std::string& type = found->value->text;
    loaded.model.model_type = type;
    if (type == "mixtral") return;
    if (type == "qwen3_moe") {
      loaded.model.norm_topk_prob = false;
      loaded.notes.emplace_back(
          "qwen3_moe: the norms of queries and keys inside each head are left out of the emulation; they lie within "
          "one head and do not change how anything is sharded");
      return;
    }
  }
  reader.problem(found->field,
                 fmt::format("{}: the layers computed are those of \"mixtral\" (and of \"qwen3_moe\" without "
                             "its query and key norms)",
                             describe(*found->value)));
}

void read_dtype(ObjectReader& reader, ModelConfig& model) {
  const auto found = reader.find({"torch_dtype", "dtype"});
  if (!found) return;
  struct Name {
    std::string_view given, meant;
  };
  constexpr Name kNames[] = {{"bfloat16", "bfloat16"}, {"bf16", "bfloat16"},   {"float16", "float16"},
                             {"fp16", "float16"},      {"float32", "float32"}, {"fp32", "float32"},
                             {"float64", "float64"},   {"fp64", "float64"}};
  if (found->value->is(Kind::string)) {
    std::string_view given = found->value->text;
    if (given.starts_with("torch.")) given.remove_prefix(6);
    for (const Name& name : kNames) {
      if (given == name.given) {
        model.dtype = name.meant;
        return;
      }
    }
  }
  reader.problem(found->field,
                 fmt::format("{}; one of bfloat16, float16, float32, float64 is needed", describe(*found->value)));
}

}  // namespace

LoadedModel read_model(const JsonValue& config, const std::string& path, std::vector<Problem>& problems) {
  LoadedModel loaded;
  ModelConfig& model = loaded.model;
  ObjectReader reader(config, path, problems, ObjectReader::Null::absent);
  if (!config.is(Kind::object)) return loaded;
  // A width that is absent is one problem; a present one that cannot be used has been reported already.
  const auto require = [&](ObjectReader::Names names, std::int64_t most, std::string_view what) -> std::int64_t {
    const std::size_t before = problems.size();
    const auto value = reader.integer(names, 1, most);
    if (!value && problems.size() == before) reader.missing(*names.begin(), what);
    return value.value_or(0);
  };
  skip_irrelevant(reader);
  read_type(reader, loaded);
  model.hidden_size = require({"hidden_size"}, kMaxWidth, "the width of the residual stream is needed");
  model.num_layers = require({"num_hidden_layers", "num_layers"}, kMaxLayers, "the number of layers is needed");
  model.num_heads = require({"num_attention_heads"}, kMaxCount, "the number of query heads is needed");
  model.num_kv_heads = reader.integer({"num_key_value_heads"}, 1, kMaxCount).value_or(model.num_heads);
  model.head_dim = reader.integer({"head_dim"}, 1, kMaxWidth).value_or(0);
  if (model.head_dim == 0 && model.num_heads > 0 && model.hidden_size > 0 && config.find("head_dim") == nullptr) {
    if (model.hidden_size % model.num_heads != 0) {
      reader.missing("head_dim", fmt::format("and hidden_size {} / num_attention_heads {} = {} remainder {}",
                                             model.hidden_size, model.num_heads, model.hidden_size / model.num_heads,
                                             model.hidden_size % model.num_heads));
    }
    model.head_dim = model.hidden_size / model.num_heads;
  }
  // Where both stand, intermediate_size is the width of dense layers, of which there are none.
  const auto moe_width = reader.integer({"moe_intermediate_size"}, 1, kMaxWidth);
  const bool moe_given = config.find("moe_intermediate_size") != nullptr;
  model.expert_width =
      moe_given ? moe_width.value_or(0) : require({"intermediate_size"}, kMaxWidth, "the width of an expert is needed");
  if (moe_given) reader.ignore({"intermediate_size"});
  model.num_experts = require({"num_local_experts", "num_experts", "n_routed_experts"}, kMaxCount,
                              "the number of experts of a layer is needed");
  model.top_k = require({"num_experts_per_tok", "experts_per_token", "moe_topk"}, kMaxCount,
                        "the number of experts that serve a token is needed");
  model.vocab_size = require({"vocab_size"}, kMaxVocabulary, "the size of the vocabulary is needed");
  model.rms_norm_eps = reader.number({"rms_norm_eps", "rms_norm_epsilon"}, 0.0, 1.0).value_or(model.rms_norm_eps);
  model.rope_theta = read_rope_theta(reader, problems).value_or(model.rope_theta);
  model.norm_topk_prob = reader.boolean({"norm_topk_prob"}).value_or(model.norm_topk_prob);
  model.tie_word_embeddings = reader.boolean({"tie_word_embeddings"}).value_or(model.tie_word_embeddings);
  read_dtype(reader, model);
  refuse_other_mathematics(reader);
  const bool window_used = reader.boolean({"use_sliding_window"}).value_or(true);
  const auto window = reader.integer({"sliding_window"}, 1, INT64_MAX);
  if (window_used) loaded.sliding_window = window;
  reader.finish();
  return loaded;
}

}  // namespace shardproof
