#include "emu/weights/checkpoint_names.h"

#include <fmt/format.h>

#include <string_view>

#include "emu/model/families/family.h"

namespace shardproof {
namespace {

std::string in_layer(const WeightSpec& spec, std::string_view rest) {
  return fmt::format("model.layers.{}.{}", spec.layer, rest);
}

/// The names of weights that all families but Mixtral's relatives have below mlp.
std::string name_below_mlp(const WeightSpec& spec) {
  const auto expert = [&](std::string_view part) {
    return in_layer(spec, fmt::format("mlp.experts.{}.{}.weight", spec.expert, part));
  };
  switch (spec.weight) {
    case Weight::router:
      return in_layer(spec, "mlp.gate.weight");
    case Weight::router_bias:
      return in_layer(spec, "mlp.gate.bias");
    case Weight::router_selection_bias:
      return in_layer(spec, "mlp.gate.e_score_correction_bias");
    case Weight::expert_gate:
      return expert("gate_proj");
    case Weight::expert_up:
      return expert("up_proj");
    case Weight::expert_down:
      return expert("down_proj");
    default:
      break;
  }
  return spec.name;
}

/// Of the MLP beside the experts; that of a dense layer has the names of the table.
std::string shared_name(const Family& family, const WeightSpec& spec) {
  const std::string_view part = spec.weight == Weight::mlp_gate ? "gate_proj"
                                : spec.weight == Weight::mlp_up ? "up_proj"
                                                                : "down_proj";
  return in_layer(spec, fmt::format("mlp.{}.{}.weight", family.shared_name, part));
}

/// gpt-oss: [experts, in, out], gate and up in turns.
TensorPlace stacked_columns(const ModelConfig& model, const WeightSpec& spec) {
  const FeedForwardSpec& experts = model.layers[spec.layer].feed_forward;
  const std::int64_t width = experts.intermediate_size, hidden = model.hidden_size, count = experts.num_experts;
  const auto gate_up = [&](std::int64_t begin) {
    return TensorPlace{
        in_layer(spec, "mlp.experts.gate_up_proj"), {count, hidden, 2 * width}, spec.expert, true, begin, 2};
  };
  const auto gate_up_bias = [&](std::int64_t begin) {
    return TensorPlace{
        in_layer(spec, "mlp.experts.gate_up_proj_bias"), {count, 2 * width}, spec.expert, false, begin, 2};
  };
  switch (spec.weight) {
    case Weight::router:
      return {in_layer(spec, "mlp.router.weight"), {count, hidden}};
    case Weight::router_bias:
      return {in_layer(spec, "mlp.router.bias"), {count}};
    case Weight::expert_gate:
      return gate_up(0);
    case Weight::expert_up:
      return gate_up(1);
    case Weight::expert_gate_bias:
      return gate_up_bias(0);
    case Weight::expert_up_bias:
      return gate_up_bias(1);
    case Weight::expert_down:
      return {in_layer(spec, "mlp.experts.down_proj"), {count, width, hidden}, spec.expert, true};
    case Weight::expert_down_bias:
      return {in_layer(spec, "mlp.experts.down_proj_bias"), {count, hidden}, spec.expert};
    default:
      return {};
  }
}

/// Granite: [experts, out, in], gate before up.
TensorPlace stacked_linear(const ModelConfig& model, const WeightSpec& spec) {
  const FeedForwardSpec& experts = model.layers[spec.layer].feed_forward;
  const std::int64_t width = experts.intermediate_size, hidden = model.hidden_size, count = experts.num_experts;
  const auto input = [&](std::int64_t begin) {
    return TensorPlace{
        in_layer(spec, "block_sparse_moe.input_linear.weight"), {count, 2 * width, hidden}, spec.expert, false, begin};
  };
  switch (spec.weight) {
    case Weight::router:
      return {in_layer(spec, "block_sparse_moe.router.layer.weight"), {count, hidden}};
    case Weight::expert_gate:
      return input(0);
    case Weight::expert_up:
      return input(width);
    case Weight::expert_down:
      return {in_layer(spec, "block_sparse_moe.output_linear.weight"), {count, hidden, width}, spec.expert};
    default:
      return {};
  }
}

}  // namespace

TensorPlace place_in_checkpoint(const ModelConfig& model, const WeightSpec& spec) {
  const Family* const family = find_family(model.model_type);
  TensorPlace place;
  if (family != nullptr && spec.layer >= 0) {
    if (family->names == TensorNames::stacked_columns) place = stacked_columns(model, spec);
    if (family->names == TensorNames::stacked_linear) place = stacked_linear(model, spec);
    if (!place.name.empty()) return place;
    const LayerSpec& layer = model.layers[spec.layer];
    const bool of_mlp =
        spec.weight == Weight::mlp_gate || spec.weight == Weight::mlp_up || spec.weight == Weight::mlp_down;
    if (of_mlp && !layer.feed_forward.dense()) {
      place.name = shared_name(*family, spec);
    } else if (spec.weight == Weight::attention_q && layer.attention.q_lora_rank > 0) {
      place.name = in_layer(spec, "self_attn.q_b_proj.weight");
    } else if (family->names == TensorNames::mlp) {
      place.name = name_below_mlp(spec);
    }
  }
  if (place.name.empty()) place.name = spec.name;
  place.shape = is_vector(spec.kind) ? std::vector{spec.cols} : std::vector{spec.rows, spec.cols};
  return place;
}

}  // namespace shardproof
