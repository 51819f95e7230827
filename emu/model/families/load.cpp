#include "emu/model/families/load.h"

#include <fmt/format.h>

#include <initializer_list>
#include <string_view>

#include "emu/input/object_reader.h"
#include "emu/model/families/family.h"
#include "emu/model/fields.h"

namespace shardproof {
namespace {

using Kind = JsonValue::Kind;

/// Keys of Hugging Face configs that say nothing about the forward pass of a decoder in evaluation.
constexpr std::string_view kIrrelevant[] = {"auto_map",
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
                                            "cross_attention_hidden_size"};

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

/// "layer_types" may only say of every layer what it is anyway.
void refuse_other_layer_types(ObjectReader& reader) {
  const auto found = reader.find({"layer_types"});
  if (!found) return;
  if (!found->value->is(Kind::array)) {
    reader.problem(found->field, fmt::format("{} where an array of names is needed", describe(*found->value)));
    return;
  }
  for (std::size_t i = 0; i < found->value->items.size(); ++i) {
    const JsonValue& type = found->value->items[i];
    if (type.is(Kind::string) && type.text == "full_attention") continue;
    reader.problem(fmt::format("{}[{}]", found->field, i),
                   fmt::format("{}: only \"full_attention\" is computed", describe(type)));
    return;
  }
}

void refuse_other_mathematics(ObjectReader& reader) {
  refuse_other_layer_types(reader);
  refuse_unless_zero(reader, {"add_cross_attention"}, "attention to an encoder is not computed");
  refuse_unless_zero(reader, {"is_encoder_decoder"}, "encoders are not computed");
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
std::optional<double> read_rope_theta(ObjectReader& reader, const FieldInfo& field, std::vector<Problem>& problems) {
  std::optional<double> theta = reader.number({field.key, field.aliases[0]}, field.least_number, field.most_number);
  const auto nested = reader.find({"rope_parameters", "rope_scaling"});
  if (!nested) return theta;
  ObjectReader rope(*nested->value, nested->field, problems, ObjectReader::Null::absent);
  const auto type = rope.find({"rope_type", "type"});
  const bool linear = type && type->value->is(Kind::string) && type->value->text == "linear";
  // Positions over a factor of one are the positions.
  if (linear && !rope.find({"factor"})) rope.missing("factor", "\"linear\" needs one");
  if (!linear) {
    refuse_unless_text(rope, {"rope_type", "type"}, {"default"},
                       "only unscaled rotary embeddings (\"default\", or \"linear\" with factor 1) are computed");
  }
  refuse_unless_one(rope, {"factor"}, "scaled rotary embeddings are not computed");
  refuse_unless_one(rope, {"partial_rotary_factor"}, "rotary embeddings over part of a head are not computed");
  const std::optional<double> inner = rope.number({field.key}, field.least_number, field.most_number);
  rope.finish();
  if (theta && inner && *theta != *inner) {
    reader.problem(rope.field(field.key),
                   fmt::format("{} contradicts {} = {}", *inner, reader.field(field.key), *theta));
  }
  return inner ? inner : theta;
}

/// "architectures": the name of the class that the config was saved from. It says which family the config is of where
/// model_type is missing, and must not contradict it.
/// None: it says nothing. Null: no family that is known, which is reported.
std::optional<const Family*> read_architecture(ObjectReader& reader, const Family* by_type) {
  const auto found = reader.find({"architectures"});
  if (!found || !found->value->is(Kind::array) || found->value->items.empty()) return std::nullopt;
  const JsonValue& first = found->value->items.front();
  if (!first.is(Kind::string)) return std::nullopt;
  const Family* named = family_of_architecture(first.text);
  if (named == nullptr) {
    reader.problem(found->field, fmt::format("{}: {}; the layers computed are those of \"mixtral\" (and of "
                                             "\"qwen3_moe\" without its query and key norms)",
                                             in_quotes(first.text),
                                             by_type == nullptr ? "there is no model_type, and this is another family's"
                                                                : "another family's than model_type says"));
    return nullptr;
  }
  if (by_type != nullptr && named != by_type) {
    reader.problem(found->field, fmt::format("{} is of the family {}, model_type says {}", in_quotes(first.text),
                                             in_quotes(named->model_type), in_quotes(by_type->model_type)));
  }
  return named;
}

void read_type(ObjectReader& reader, LoadedModel& loaded) {
  const Family* family = nullptr;
  if (const auto found = reader.find({"model_type"})) {
    if (found->value->is(Kind::string)) {
      loaded.model.model_type = found->value->text;
      family = find_family(found->value->text);
    } else {
      family = nullptr;
    }
    if (family == nullptr) {
      reader.problem(found->field,
                     fmt::format("{}: the layers computed are those of \"mixtral\" (and of \"qwen3_moe\" without "
                                 "its query and key norms)",
                                 describe(*found->value)));
      reader.ignore({"architectures"});
    } else {
      family = read_architecture(reader, family).value_or(family);
    }
  } else {
    family = read_architecture(reader, nullptr).value_or(find_family(loaded.model.model_type));
    if (family != nullptr) loaded.model.model_type = family->model_type;
  }
  loaded.model.layers = LayerList(1, family != nullptr ? family->layer : LayerSpec{});
  if (family != nullptr && !family->left_out.empty()) {
    loaded.notes.push_back(fmt::format("{}: {}", family->model_type, family->left_out));
  }
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

/// Hands the field's names to `use`, as a list.
template <class Use>
auto with_names(const FieldInfo& field, const Use& use) {
  if (field.aliases[0].empty()) return use({field.key});
  if (field.aliases[1].empty()) return use({field.key, field.aliases[0]});
  return use({field.key, field.aliases[0], field.aliases[1]});
}

/// Reads the fields of a model whose layers are all alike.
class FieldReader {
 public:
  FieldReader(ObjectReader& reader, const JsonValue& config, const Family& family, std::vector<Problem>& problems)
      : reader_(reader), config_(config), family_(family), problems_(problems) {}

  void operator()(const FieldInfo& field, std::int64_t& value) const {
    if (field.key == fields::kIntermediateSize.key && config_.find("moe_intermediate_size") != nullptr &&
        family_.moe_intermediate_size) {
      // Where both stand, intermediate_size is the width of dense layers, of which there are none.
      value = reader_.integer({"moe_intermediate_size"}, 1, field.most).value_or(0);
      reader_.ignore({field.key});
      return;
    }
    // A width that is absent is one problem; a present one that cannot be used has been reported already.
    const std::size_t before = problems_.size();
    const auto read =
        with_names(field, [&](ObjectReader::Names names) { return reader_.integer(names, 1, field.most); });
    if (!read && !field.needed.empty() && problems_.size() == before) reader_.missing(field.key, field.needed);
    value = read.value_or(0);
  }

  void operator()(const FieldInfo& field, double& value) const {
    const auto read = field.key == fields::kRopeTheta.key
                          ? read_rope_theta(reader_, field, problems_)
                          : with_names(field, [&](ObjectReader::Names names) {
                              return reader_.number(names, field.least_number, field.most_number);
                            });
    value = read.value_or(value);
  }

  void operator()(const FieldInfo& field, bool& value) const {
    if (field.from_family) return;
    value = with_names(field, [&](ObjectReader::Names names) { return reader_.boolean(names); }).value_or(value);
  }

 private:
  ObjectReader& reader_;
  const JsonValue& config_;
  const Family& family_;
  std::vector<Problem>& problems_;
};

/// Key-value heads and head_dim have defaults that depend on other fields.
void set_derived(ObjectReader& reader, const JsonValue& config, ModelConfig& model) {
  model.layers.edit([&](LayerSpec& layer) {
    AttentionSpec& attention = layer.attention;
    if (attention.kv_heads == 0) attention.kv_heads = attention.heads;
    if (attention.head_dim != 0 || attention.heads == 0 || model.hidden_size == 0) return;
    const JsonValue* const given = config.find("head_dim");
    if (given != nullptr && !given->is(Kind::null)) return;
    if (model.hidden_size % attention.heads != 0) {
      reader.missing("head_dim", fmt::format("and hidden_size {} / num_attention_heads {} = {} remainder {}",
                                             model.hidden_size, attention.heads, model.hidden_size / attention.heads,
                                             model.hidden_size % attention.heads));
    }
    attention.head_dim = model.hidden_size / attention.heads;
  });
}

}  // namespace

LoadedModel read_model(const JsonValue& config, const std::string& path, std::vector<Problem>& problems) {
  LoadedModel loaded;
  ObjectReader reader(config, path, problems, ObjectReader::Null::absent);
  if (!config.is(Kind::object)) return loaded;
  for (const std::string_view key : kIrrelevant) reader.ignore({key});
  read_type(reader, loaded);
  const Family* const known = find_family(loaded.model.model_type);
  const Family& family = known != nullptr ? *known : families().front();
  if (!family.moe_intermediate_size) {
    if (const auto width = reader.find({"moe_intermediate_size"})) {
      reader.problem(width->field, fmt::format("{}: \"{}\" has no such key; the width of its experts is "
                                               "intermediate_size",
                                               describe(*width->value), family.model_type));
    }
  }
  visit_fields(loaded.model, FieldReader(reader, config, family, problems));
  set_derived(reader, config, loaded.model);
  read_dtype(reader, loaded.model);
  refuse_other_mathematics(reader);
  const bool window_used = reader.boolean({"use_sliding_window"}).value_or(true);
  const auto window = reader.integer({"sliding_window"}, 1, INT64_MAX);
  if (window_used) loaded.sliding_window = window;
  reader.finish();
  return loaded;
}

}  // namespace shardproof
