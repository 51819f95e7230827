#include "emu/model/families/internal/keys.h"

#include <fmt/format.h>

namespace shardproof::keys {
namespace {

using Kind = JsonValue::Kind;

/// Keys of Hugging Face configs that say nothing about the forward pass of a decoder in evaluation.
constexpr std::string_view kIrrelevant[] = {"auto_map",
                                            "transformers_version",
                                            "_name_or_path",
                                            "_commit_hash",
                                            "name_or_path",
                                            "model_max_length",
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
                                            "input_jitter_noise",
                                            "use_mrope",
                                            "initial_context_length",

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

}  // namespace

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

void refuse_unless(ObjectReader& reader, ObjectReader::Names names, bool value, std::string_view why) {
  const auto found = reader.find(names);
  if (!found) return;
  const bool same = found->value->is(Kind::boolean) && found->value->boolean == value;
  if (!same) reader.problem(found->field, fmt::format("{}: {}", describe(*found->value), why));
}

void ignore_irrelevant(ObjectReader& reader) {
  for (const std::string_view key : kIrrelevant) reader.ignore({key});
}

}  // namespace shardproof::keys
