#include "emu/plan/save.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "emu/model/families/family.h"
#include "emu/model/fields.h"

namespace shardproof {
namespace {

using Json = nlohmann::ordered_json;

/// The first layer with experts, or without; null when there is none.
const LayerSpec* first_layer(const ModelConfig& model, bool dense) {
  const auto found = std::ranges::find_if(model.layers.kinds(),
                                          [&](const LayerSpec& kind) { return kind.feed_forward.dense() == dense; });
  return found == model.layers.kinds().end() ? nullptr : &*found;
}

void add_rope(const AttentionSpec& attention, bool stretches_by_default, Json& json) {
  const RopeSpec& rope = attention.rope;
  if (!attention.latent() && rope.dim > 0) {
    json["partial_rotary_factor"] = static_cast<double>(rope.dim) / static_cast<double>(attention.head_dim);
  }
  Json scaling = {{"rope_type", to_string(rope.type)}};
  switch (rope.type) {
    case RopeType::plain:
      // Some families stretch where nothing is said.
      if (!stretches_by_default) return;
      break;
    case RopeType::longrope:
      scaling["original_max_position_embeddings"] = rope.original_context;
      scaling["short_factor"] = rope.pair_factors;
      scaling["short_mscale"] = rope.amplitude;
      break;
    case RopeType::linear:
      scaling["factor"] = rope.factor;
      break;
    case RopeType::llama3:
      scaling["factor"] = rope.factor;
      scaling["low_freq_factor"] = rope.low_freq_factor;
      scaling["high_freq_factor"] = rope.high_freq_factor;
      scaling["original_max_position_embeddings"] = rope.original_context;
      break;
    case RopeType::yarn:
      scaling["factor"] = rope.factor;
      scaling["original_max_position_embeddings"] = rope.original_context;
      scaling["beta_fast"] = rope.beta_fast;
      scaling["beta_slow"] = rope.beta_slow;
      scaling["truncate"] = rope.truncate;
      scaling["attention_factor"] = rope.amplitude;
      if (attention.latent()) scaling["mscale_all_dim"] = rope.mscale_all_dim;
      break;
  }
  json["rope_scaling"] = scaling;
}

void add_attention(const Family& family, const AttentionSpec& attention, Json& json) {
  if (attention.latent()) {
    json["q_lora_rank"] = attention.q_lora_rank > 0 ? Json(attention.q_lora_rank) : Json(nullptr);
    json["kv_lora_rank"] = attention.kv_lora_rank;
    json["qk_nope_head_dim"] = attention.head_dim - attention.rope.dim;
    json["qk_rope_head_dim"] = attention.rope.dim;
    json["v_head_dim"] = attention.value_dim();
    json.erase("head_dim");
    if (family.layer.attention.rope.interleaved) json["rope_interleave"] = attention.rope.interleaved;
  }
  if (family.attention_bias == AttentionBias::qkv) {
    json["qkv_bias"] = attention.qkv_bias;
  } else if (family.attention_bias != AttentionBias::never) {
    json["attention_bias"] = attention.qkv_bias;
  }
  if (attention.clip_qkv > 0) json["clip_qkv"] = attention.clip_qkv;
  if (family.qk_norm_by_key) json["use_qk_norm"] = attention.query_key_norm != QueryKeyNorm::none;
  add_rope(attention, family.layer.attention.rope.type != RopeType::plain, json);
}

void add_windows(const Family& family, const ModelConfig& model, Json& json) {
  std::int64_t window = 0;
  for (const LayerSpec& kind : model.layers.kinds()) window = std::max(window, kind.attention.sliding_window);
  if (family.window == Window::none) return;
  json["sliding_window"] = window > 0 ? Json(window) : Json(nullptr);
  if (family.window == Window::every_layer) return;
  if (family.window != Window::alternating) json["use_sliding_window"] = window > 0;
  if (family.window == Window::with_switch) return;
  Json types = Json::array();
  for (std::int64_t i = 0; i < model.layers.size(); ++i) {
    types.push_back(model.layers[i].attention.sliding_window > 0 ? "sliding_attention" : "full_attention");
  }
  json["layer_types"] = types;
}

void add_dense_layers(const Family& family, const ModelConfig& model, Json& json) {
  if (family.mixture == Mixture::after_first) {
    std::int64_t first = 0;
    while (first < model.layers.size() && model.layers[first].feed_forward.dense()) ++first;
    json["first_k_dense_replace"] = first;
  } else if (family.mixture == Mixture::sparse_step) {
    Json dense = Json::array();
    for (std::int64_t i = 0; i < model.layers.size(); ++i) {
      if (model.layers[i].feed_forward.dense()) dense.push_back(i);
    }
    json["mlp_only_layers"] = dense;
  }
}

void add_experts(const Family& family, const FeedForwardSpec& experts, Json& json) {
  if (family.moe_intermediate_size) json["moe_intermediate_size"] = experts.intermediate_size;
  if (family.counts_shared_experts) {
    json["n_shared_experts"] = experts.shared_intermediate_size / experts.intermediate_size;
    json["n_group"] = experts.groups;
    json["topk_group"] = experts.top_groups;
    json["routed_scaling_factor"] = experts.routed_scaling_factor;
    if (experts.scoring == Scoring::softmax) {
      json["topk_method"] = experts.groups > 1 ? "group_limited_greedy" : "greedy";
    }
  } else if (experts.shared_intermediate_size > 0) {
    json["shared_expert_intermediate_size"] = experts.shared_intermediate_size;
  }
  if (experts.scoring == Scoring::sparsemixer) json["router_jitter_noise"] = experts.router_jitter;
  if (experts.swiglu_limit > 0) json["swiglu_limit"] = experts.swiglu_limit;
}

/// As its method's own files have it.
Json quantisation_json(const ModelConfig& model) {
  const Quantisation& quantisation = model.quantisation;
  const std::string& method = quantisation.method;
  const std::int64_t block = model.weight_block;
  Json json{{"quant_method", method}};
  if (method == "mxfp4") return json;
  const bool floats = quantisation.format == QuantisedFormat::fp8;
  if (quantisation.format == QuantisedFormat::none) return json;
  Json sizes = Json::object();
  if (floats && block > 0) sizes[method == "fp8" ? "weight_block_size" : "block_structure"] = {block, block};
  if (!floats) {
    sizes[method == "compressed-tensors" ? "num_bits" : "bits"] = quantisation.format == QuantisedFormat::int4 ? 4 : 8;
    sizes["group_size"] = block > 0 ? block : -1;
  }
  Json left_out = Json::array();
  if (!quantisation.attention) left_out.push_back("self_attn");
  if (!quantisation.mlp) left_out.push_back("mlp.gate_proj");
  if (!quantisation.experts) left_out.push_back("mlp.experts");
  if (method == "compressed-tensors") {
    sizes["type"] = floats ? "float" : "int";
    if (quantisation.zero_points) sizes["symmetric"] = false;
    if (!quantisation.kv_cache_dtype.empty()) {
      json["kv_cache_scheme"] = {{"num_bits", 8}, {"type", quantisation.kv_cache_dtype == "fp8" ? "float" : "int"}};
    }
    json["config_groups"]["group_0"]["weights"] = sizes;
    if (!left_out.empty()) json["ignore"] = left_out;
    return json;
  }
  json.update(sizes);
  if (method == "gptq") json["checkpoint_format"] = quantisation.packing;
  if (method == "awq") json["version"] = quantisation.packing;
  if (!left_out.empty()) json["modules_to_not_convert"] = left_out;
  return json;
}

/// As the config of its family, with every value written out.
Json model_json(const ModelConfig& model) {
  const Family* const known = find_family(model.model_type);
  const Family& family = known != nullptr ? *known : families().front();
  const LayerSpec *const experts = first_layer(model, false), *const dense = first_layer(model, true);
  Json json = {{"model_type", model.model_type}};
  visit_fields(model, [&](const FieldInfo& field, const auto& value) {
    using Value = std::decay_t<decltype(value)>;
    if constexpr (!std::is_enum_v<Value>) {
      const bool is_zero_size = std::is_same_v<Value, std::int64_t> && value == Value{};
      if (!field.from_family && !is_zero_size) json[std::string(field.key)] = value;
    }
  });
  if (family.mixture == Mixture::no_layer) json.erase(std::string(fields::kNormTopkProb.key));
  if (experts != nullptr) {
    json[std::string(fields::kNormTopkProb.key)] = experts->feed_forward.norm_topk_prob;
    json["intermediate_size"] = experts->feed_forward.intermediate_size;
    add_experts(family, experts->feed_forward, json);
  }
  if (family.moe_intermediate_size) json.erase("intermediate_size");
  if (dense != nullptr) json["intermediate_size"] = dense->feed_forward.intermediate_size;
  if (!model.layers.kinds().empty()) add_attention(family, model.layers.kinds().front().attention, json);
  add_windows(family, model, json);
  add_dense_layers(family, model, json);
  if (family.layer_norm) json["lm_head_bias"] = model.head_bias;
  if (family.multipliers) {
    json["embedding_multiplier"] = model.embedding_multiplier;
    json["residual_multiplier"] = model.residual_multiplier;
    json["logits_scaling"] = model.logits_scaling;
    json["attention_multiplier"] = model.layers[0].attention.attention_multiplier;
  }
  if (model.max_position_embeddings > 0) json["max_position_embeddings"] = model.max_position_embeddings;
  if (!model.quantisation.method.empty()) json["quantization_config"] = quantisation_json(model);
  json["torch_dtype"] = model.dtype;
  return json;
}

Json hardware_json(const Hardware& hardware) {
  Json json = {{"gpus", hardware.gpus}, {"gpus_per_node", hardware.gpus_per_node}};
  const auto stated = [&](const char* key, double value) {
    if (value != 0) json[key] = value;
  };
  stated("memory_gb", hardware.memory_gb);
  stated("tflops", hardware.tflops);
  stated("mfu", hardware.mfu);
  stated("memory_bandwidth_tbps", hardware.memory_bandwidth_tbps);
  stated("bandwidth_utilization", hardware.bandwidth_utilization);
  stated("link_gbps", hardware.link_gbps);
  stated("link_latency_us", hardware.link_latency_us);
  if (!hardware.preset.empty()) json["preset"] = hardware.preset;
  return json;
}

Json expert_placement_json(const ExpertPlacement& placement) {
  using Map = ExpertPlacement::Map;
  Json json = {{"redundant", placement.redundant}};
  switch (placement.map) {
    case Map::linear:
      json["map"] = "linear";
      break;
    case Map::round_robin:
      json["map"] = "round_robin";
      break;
    case Map::balanced:
      json["map"] = "balanced";
      break;
    case Map::given:
      json["map"] = placement.given;
      break;
  }
  const bool nearest = placement.replica == ExpertPlacement::Replica::nearest;
  json["replica"] = nearest ? "nearest" : "round_robin";
  return json;
}

void write_serving(const Serving& serving, Json& json) {
  json["requests"] = Json::array();
  for (const Request& request : serving.requests) {
    Json& one = json["requests"].emplace_back(Json{{"prompt", request.prompt}, {"output", request.output}});
    if (request.arrival_s > 0) {
      one["arrival_s"] = request.arrival_s;
    } else {
      one["arrival"] = request.arrival;
    }
    if (request.prefix > 0) one["prefix"] = request.prefix;
    if (request.prefix_group > 0) one["prefix_group"] = request.prefix_group;
  }
  const auto limit = [&](const char* key, std::int64_t value) {
    if (value > 0) json[key] = value;
  };
  limit("max_tokens_per_step", serving.max_tokens_per_step);
  limit("max_sequences", serving.max_sequences);
  limit("kv_block_size", serving.kv_block_size);
  limit("kv_blocks", serving.kv_blocks);
  const bool alike = std::ranges::any_of(serving.requests, [](const Request& request) { return request.prefix > 0; });
  if (serving.prefix_sharing != alike) json["prefix_sharing"] = serving.prefix_sharing;
  for (const std::vector<StatedChunk>& step : serving.steps) {
    Json chunks = Json::array();
    for (const StatedChunk& chunk : step) chunks.push_back({{"request", chunk.request}, {"tokens", chunk.tokens}});
    json["steps"].push_back(std::move(chunks));
  }
}

Json workload_json(const Workload& workload) {
  Json json = Json::object();
  const std::vector<std::int64_t>& lengths = workload.lengths;
  if (!workload.token_ids.empty()) json["tokens"] = workload.token_ids;
  if (workload.idle != Idle::zero) json["idle"] = to_string(workload.idle);
  if (workload.serving) {
    write_serving(*workload.serving, json);
  } else if (!workload.token_ids.empty()) {
    json["batch"] = lengths.size();
  } else if (json["batch"] = lengths.size();
             !lengths.empty() && std::all_of(lengths.begin(), lengths.end(), [&](auto l) { return l == lengths[0]; })) {
    json["sequence"] = lengths[0];
  } else {
    json["lengths"] = lengths;
  }
  if (!workload.kv_cache_dtype.empty()) json["kv_cache_dtype"] = workload.kv_cache_dtype;
  if (workload.latent_decode) json["latent_decode"] = to_string(*workload.latent_decode);
  json["microbatches"] = workload.microbatches;
  json["seed"] = workload.seed;
  // Even is what is meant without a word.
  if (!workload.routing.counts.empty()) {
    json["routing"]["counts"] = workload.routing.counts;
  } else if (!workload.routing.is_even()) {
    json["routing"]["zipf"] = workload.routing.zipf;
  }
  return json;
}

}  // namespace

std::string plan_json(const Plan& plan, int indent) {
  const Parallel& p = plan.parallel;
  Json json = {{"name", plan.name}, {"model", model_json(plan.model)}};
  if (plan.hardware) json["hardware"] = hardware_json(*plan.hardware);
  json["parallel"] = {{"tp", p.tp}, {"cp", p.cp},   {"dp", p.dp},   {"pp", p.pp},
                      {"ep", p.ep}, {"etp", p.etp}, {"edp", p.edp}, {"sp", p.sp}};
  if (p.cp > 1 || p.cp_comm != CpComm::p2p) json["parallel"]["cp_comm"] = to_string(p.cp_comm);
  if (p.cp_comm == CpComm::a2a_p2p) json["parallel"]["cp_sizes"] = {p.cp_a2a, p.cp / p.cp_a2a};
  if (p.dispatch != DispatchComm::all_to_all) json["parallel"]["dispatch"] = to_string(p.dispatch);
  if (p.overlap != Overlap::none) json["parallel"]["overlap"] = to_string(p.overlap);
  if (p.dcp > 1 || p.dcp_interleave > 1) {
    json["parallel"]["dcp"] = p.dcp;
    json["parallel"]["dcp_interleave"] = p.dcp_interleave;
  }
  if (p.make_vocab_size_divisible_by > 0) {
    json["parallel"]["make_vocab_size_divisible_by"] = p.make_vocab_size_divisible_by;
  }
  if (!(p.experts == ExpertPlacement{})) json["parallel"]["experts"] = expert_placement_json(p.experts);
  if (!p.layers_per_stage.empty()) json["parallel"]["layers_per_stage"] = p.layers_per_stage;
  json["workload"] = workload_json(plan.workload);
  json["notes"] = plan.notes;
  Json claims = Json::array();
  for (const Claim& claim : plan.claims) {
    claims.push_back({{"document", claim.document},
                      {"text", claim.text},
                      {"quantity", claim.quantity},
                      {"relation", claim.relation},
                      {"stated", claim.stated},
                      {"unit", claim.unit}});
  }
  json["claims"] = std::move(claims);
  // A name read from the file system need not be UTF-8; a report must not fail over it.
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace shardproof
