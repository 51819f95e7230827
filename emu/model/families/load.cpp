#include "emu/model/families/load.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "emu/input/object_reader.h"
#include "emu/model/families/family.h"
#include "emu/model/families/internal/feed_forward.h"
#include "emu/model/families/internal/keys.h"
#include "emu/model/families/internal/quantisation.h"
#include "emu/model/families/internal/rope.h"
#include "emu/model/families/internal/windows.h"
#include "emu/model/fields.h"

namespace shardproof {
namespace {

using Kind = JsonValue::Kind;

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
    reader.problem(found->field, fmt::format("{}: {}; the families known are {}", in_quotes(first.text),
                                             by_type == nullptr ? "there is no model_type, and this is another family's"
                                                                : "another family's than model_type says",
                                             family_names()));
    return nullptr;
  }
  if (by_type != nullptr && named != by_type) {
    reader.problem(found->field, fmt::format("{} is of the family {}, model_type says {}", in_quotes(first.text),
                                             in_quotes(named->model_type), in_quotes(by_type->model_type)));
  }
  return named;
}

const Family* read_type(ObjectReader& reader, LoadedModel& loaded) {
  const Family* family = nullptr;
  if (const auto found = reader.find({"model_type"})) {
    if (found->value->is(Kind::string)) {
      loaded.model.model_type = found->value->text;
      family = find_family(found->value->text);
    }
    if (family == nullptr) {
      reader.problem(found->field,
                     fmt::format("{}: the families known are {}", describe(*found->value), family_names()));
      reader.ignore({"architectures"});
    } else {
      family = read_architecture(reader, family).value_or(family);
    }
  } else {
    family = read_architecture(reader, nullptr).value_or(find_family(loaded.model.model_type));
    if (family != nullptr) loaded.model.model_type = family->model_type;
  }
  return family;
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

/// Reads the fields of a model whose layers are all alike, less what its family reads.
class FieldReader {
 public:
  FieldReader(ObjectReader& reader, const Family& family, std::vector<Problem>& problems)
      : reader_(reader), family_(family), problems_(problems) {}

  void operator()(const FieldInfo& field, std::int64_t& value) const {
    if (field.from_family || field.key == fields::kIntermediateSize.key) return;
    const bool of_experts = field.key == fields::kExperts.key || field.key == fields::kTopK.key;
    if (of_experts && family_.mixture == Mixture::no_layer) return;
    // A width that is absent is one problem; a present one that cannot be used has been reported already.
    const std::size_t before = problems_.size();
    const auto read =
        with_names(field, [&](ObjectReader::Names names) { return reader_.integer(names, 1, field.most); });
    if (!read && !field.needed.empty() && problems_.size() == before) {
      // The default of the family's class, where it is not another model's size.
      if (field.key == fields::kTopK.key && value > 0) return;
      reader_.missing(field.key, field.needed);
    }
    value = read.value_or(value);
  }

  void operator()(const FieldInfo& field, double& value) const {
    if (field.from_family || field.key == fields::kRopeTheta.key) return;
    const auto read = with_names(
        field, [&](ObjectReader::Names names) { return reader_.number(names, field.least_number, field.most_number); });
    value = read.value_or(value);
  }

  void operator()(const FieldInfo& field, bool& value) const {
    if (field.from_family) return;
    if (field.key == fields::kNormTopkProb.key) {
      if (family_.mixture == Mixture::no_layer) return;
      // Plans of Mixtral may say it: read_model() says that its own class does not know the key.
      if (!family_.norm_topk_by_key && family_.names != TensorNames::block_sparse_moe) {
        return keys::refuse_unless(reader_, {field.key}, value, "this family's class has no such key");
      }
    }
    value = with_names(field, [&](ObjectReader::Names names) { return reader_.boolean(names); }).value_or(value);
  }

  template <class Enumeration>
  void operator()(const FieldInfo& /*field*/, Enumeration& /*value*/) const {}

 private:
  ObjectReader& reader_;
  const Family& family_;
  std::vector<Problem>& problems_;
};

/// The ranks and dims of latent attention; head_dim and rope.dim follow from them.
void read_latent(ObjectReader& reader, AttentionSpec& attention) {
  const auto size = [&](std::string_view key, std::int64_t otherwise) {
    return reader.integer({key}, 1, kMaxWidth).value_or(otherwise);
  };
  // Null says that queries take no detour.
  attention.q_lora_rank = reader.says_null("q_lora_rank") ? 0 : size("q_lora_rank", attention.q_lora_rank);
  attention.kv_lora_rank = size("kv_lora_rank", attention.kv_lora_rank);
  attention.rope.dim = size("qk_rope_head_dim", attention.rope.dim);
  attention.head_dim = size("qk_nope_head_dim", 128) + attention.rope.dim;
  attention.v_head_dim = size("v_head_dim", 128);
  if (attention.v_head_dim == attention.head_dim) attention.v_head_dim = 0;
  attention.rope.interleaved = reader.boolean({"rope_interleave"}).value_or(attention.rope.interleaved);
  // The family's class gives it this value, and turns so many elements of a head.
  if (const auto head_dim = reader.integer({"head_dim"}, 1, kMaxWidth); head_dim && *head_dim != attention.rope.dim) {
    reader.problem(reader.field("head_dim"),
                   fmt::format("{}; with latent attention it is qk_rope_head_dim, {}", *head_dim, attention.rope.dim));
  }
  reader.ignore({"qk_head_dim"});
  if (attention.kv_heads != attention.heads) {
    reader.problem(reader.field("num_key_value_heads"),
                   fmt::format("{} with {} query heads; latent attention makes keys and values for each of them",
                               attention.kv_heads, attention.heads));
  }
}

/// Key-value heads and head_dim have defaults that depend on other fields.
void set_derived(ObjectReader& reader, const JsonValue& config, std::int64_t hidden, AttentionSpec& attention) {
  const JsonValue* const kv_heads = config.find(fields::kKvHeads.key);
  const bool null = kv_heads != nullptr && kv_heads->is(Kind::null);
  if (attention.kv_heads == 0 || null) attention.kv_heads = attention.heads;
  if (attention.latent()) return read_latent(reader, attention);
  if (attention.head_dim != 0 || attention.heads == 0 || hidden == 0) return;
  const JsonValue* const given = config.find(fields::kHeadDim.key);
  if (given != nullptr && !given->is(Kind::null)) return;
  if (hidden % attention.heads != 0) {
    reader.missing("head_dim", fmt::format("and hidden_size {} / num_attention_heads {} = {} remainder {}", hidden,
                                           attention.heads, hidden / attention.heads, hidden % attention.heads));
  }
  attention.head_dim = hidden / attention.heads;
}

void read_biases(ObjectReader& reader, const Family& family, AttentionSpec& attention) {
  switch (family.attention_bias) {
    case AttentionBias::never:
      keys::refuse_unless_zero(reader, {"attention_bias", "qkv_bias", "use_qkv_bias"},
                               "this family's attention has no biases");
      return;
    case AttentionBias::qkv:
      attention.qkv_bias = reader.boolean({"qkv_bias"}).value_or(attention.qkv_bias);
      keys::refuse_unless(reader, {"attention_bias"}, attention.qkv_bias, "this family's key is qkv_bias");
      return;
    case AttentionBias::qkv_by_key:
    case AttentionBias::all_by_key: {
      const bool all = family.attention_bias == AttentionBias::all_by_key;
      attention.qkv_bias = reader.boolean({"attention_bias"}).value_or(attention.qkv_bias);
      attention.output_bias = all && attention.qkv_bias;
      keys::refuse_unless(reader, {"qkv_bias", "use_qkv_bias"}, attention.qkv_bias,
                          "this family's key is attention_bias");
      return;
    }
  }
}

void read_query_key_norm(ObjectReader& reader, const Family& family, AttentionSpec& attention) {
  if (family.qk_norm_by_key) {
    if (reader.boolean({"use_qk_norm", "qk_norm", "qk_layernorm"}).value_or(false))
      attention.query_key_norm = QueryKeyNorm::head;
    return;
  }
  const bool has = attention.query_key_norm != QueryKeyNorm::none;
  keys::refuse_unless(reader, {"use_qk_norm", "qk_norm", "qk_layernorm"}, has,
                      has ? "this family always has them" : "this family has none");
}

void read_multipliers(ObjectReader& reader, const Family& family, ModelConfig& model, AttentionSpec& attention) {
  constexpr double kMost = 1e6;
  if (!family.multipliers) return;
  const auto number = [&](std::string_view key) { return reader.number({key}, 1e-6, kMost).value_or(1); };
  model.embedding_multiplier = number("embedding_multiplier");
  model.residual_multiplier = number("residual_multiplier");
  model.logits_scaling = number("logits_scaling");
  attention.attention_multiplier = number("attention_multiplier");
}

void refuse_other_mathematics(ObjectReader& reader, const Family& family) {
  keys::refuse_unless_zero(reader, {"add_cross_attention"}, "attention to an encoder is not computed");
  keys::refuse_unless_zero(reader, {"is_encoder_decoder"}, "encoders are not computed");
  keys::refuse_unless_text(reader, {"hidden_act", "hidden_activation"}, {"silu", "swish"}, "only silu is computed");
  keys::refuse_unless_zero(reader, {"mlp_bias", "use_bias"}, "biases in the MLPs of this family are not computed");
  if (!family.clips_qkv) keys::refuse_unless_zero(reader, {"clip_qkv"}, "this family clips nothing");
  keys::refuse_unless_zero(reader, {"attn_logit_softcapping", "final_logit_softcapping"}, "soft caps are not computed");
  if (!family.counts_shared_experts && family.layer.feed_forward.shared_intermediate_size == 0) {
    keys::refuse_unless_zero(reader, {"n_shared_experts", "num_shared_experts", "shared_expert_intermediate_size"},
                             "this family has no shared experts");
  }
}

/// Heads of further tokens' prediction (MTP): the family's own implementation does not run them either.
void read_prediction_layers(ObjectReader& reader, const Family& family, LoadedModel& loaded) {
  if (!family.skips_prediction_layers) {
    keys::refuse_unless_zero(reader, {"num_nextn_predict_layers", "num_mtp_layers"},
                             "layers that predict further tokens are not computed");
    return;
  }
  const std::int64_t layers = reader.integer({"num_nextn_predict_layers", "num_mtp_layers"}, 0, kMaxLayers).value_or(0);
  if (layers == 0) return;
  loaded.notes.push_back(
      fmt::format("{} layer{} that predict{} further tokens (MTP) {} left out, as the model's own forward pass does",
                  layers, layers == 1 ? "" : "s", layers == 1 ? "s" : "", layers == 1 ? "is" : "are"));
}

/// A model for text and other things says in text_config what its decoder of text is.
const JsonValue* wrapped_text(const JsonValue& config) {
  const JsonValue* const text = config.find("text_config");
  return text != nullptr && text->is(Kind::object) ? text : nullptr;
}

LoadedModel read_wrapped(const JsonValue& config, const JsonValue& text, const std::string& path,
                         std::vector<Problem>& problems) {
  ObjectReader reader(config, path, problems, ObjectReader::Null::absent);
  keys::ignore_irrelevant(reader);
  for (const std::string_view key :
       {"model_type", "architectures", "text_config", "vision_config", "audio_config", "image_token_id",
        "video_token_id", "vision_start_token_id", "vision_end_token_id", "image_token_index", "boi_token_index",
        "eoi_token_index", "torch_dtype", "dtype", "projector_hidden_act", "multimodal_projector_bias",
        "spatial_merge_size", "vision_feature_layer"}) {
    reader.ignore({key});
  }
  LoadedModel loaded = read_model(text, reader.field("text_config"), problems);
  loaded.model.tie_word_embeddings = reader.boolean({"tie_word_embeddings"}).value_or(loaded.model.tie_word_embeddings);
  loaded.notes.emplace_back("the decoder of text_config alone: what is not text does not pass through it");
  reader.finish();
  return loaded;
}

}  // namespace

LoadedModel read_model(const JsonValue& config, const std::string& path, std::vector<Problem>& problems) {
  LoadedModel loaded;
  if (config.is(Kind::object)) {
    if (const JsonValue* const text = wrapped_text(config)) return read_wrapped(config, *text, path, problems);
  }
  ObjectReader reader(config, path, problems, ObjectReader::Null::absent);
  if (!config.is(Kind::object)) return loaded;
  ModelConfig& model = loaded.model;
  keys::ignore_irrelevant(reader);
  const Family* const known = read_type(reader, loaded);
  const Family& family = known != nullptr ? *known : families().front();
  LayerSpec layer = family.layer;
  model.layers = LayerList(1, layer);
  model.rms_norm_eps = family.rms_norm_eps;
  model.max_position_embeddings = reader.integer({"max_position_embeddings"}, 1, std::int64_t{1} << 40).value_or(0);
  model.layer_norm = family.layer_norm;
  visit_fields(model, FieldReader(reader, family, problems));
  layer = model.layers.kinds().front();
  if (family.mixture != Mixture::no_layer && !family.norm_topk_by_key && !layer.feed_forward.norm_topk_prob &&
      family.layer.feed_forward.norm_topk_prob) {
    loaded.notes.emplace_back("norm_topk_prob false: the family's own class has no such key, and renormalises");
  }
  set_derived(reader, config, model.hidden_size, layer.attention);
  read_biases(reader, family, layer.attention);
  read_query_key_norm(reader, family, layer.attention);
  family_config::read_rope(reader, family, layer.attention, problems);
  if (family.clips_qkv) layer.attention.clip_qkv = reader.number({"clip_qkv"}, 1e-6, 1e6).value_or(0);
  read_multipliers(reader, family, model, layer.attention);
  read_dtype(reader, model);
  if (family.layer_norm) model.head_bias = reader.boolean({"lm_head_bias"}).value_or(false);
  if (!family.layer_norm)
    keys::refuse_unless_zero(reader, {"lm_head_bias"}, "a bias of the output head is not computed");
  const FeedForwardSpec dense = family_config::read_feed_forward(reader, family, layer.feed_forward, problems);
  const std::vector<bool> is_dense = family_config::read_dense_layers(reader, family, model.layers.size(), problems);
  if (family.mixture != Mixture::no_layer && dense.intermediate_size == 0 &&
      std::ranges::find(is_dense, true) != is_dense.end() && reader.find({"intermediate_size"}) == std::nullopt) {
    reader.missing("intermediate_size", "the width of the dense layers is needed");
  }
  const std::vector<bool> windowed = family_config::read_windows(reader, family, model.layers.size(), layer.attention);
  refuse_other_mathematics(reader, family);
  read_prediction_layers(reader, family, loaded);
  family_config::read_quantisation(reader, loaded);
  LayerList layers;
  for (std::size_t i = 0; i < is_dense.size(); ++i) {
    LayerSpec spec = layer;
    if (is_dense[i]) spec.feed_forward = dense;
    if (!windowed[i]) spec.attention.sliding_window = 0;
    layers.push_back(spec);
  }
  if (!is_dense.empty()) model.layers = layers;
  reader.finish();
  return loaded;
}

}  // namespace shardproof
