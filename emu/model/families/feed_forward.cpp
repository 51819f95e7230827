#include "emu/model/families/internal/feed_forward.h"

#include <fmt/format.h>

#include "emu/model/families/internal/keys.h"
#include "emu/model/fields.h"

namespace shardproof::family_config {
namespace {

using Kind = JsonValue::Kind;

constexpr std::int64_t kMostShared = 1 << 10;

std::int64_t width_of(ObjectReader& reader, std::string_view key, std::string_view needed,
                      const std::vector<Problem>& problems) {
  const std::size_t before = problems.size();
  const auto width = reader.integer({key}, 1, fields::kIntermediateSize.most);
  if (!width && !needed.empty() && problems.size() == before) reader.missing(key, needed);
  return width.value_or(0);
}

/// DeepSeek's keys: scoring_func, topk_method, n_group, topk_group, routed_scaling_factor.
void read_router(ObjectReader& reader, const Family& family, FeedForwardSpec& experts) {
  const bool sigmoid = experts.scoring == Scoring::sigmoid;
  if (experts.scoring == Scoring::sparsemixer) {
    // Others' noise is of training alone; here it says what is near the chosen logit.
    experts.router_jitter = reader.number({"router_jitter_noise"}, 0, 1e6).value_or(experts.router_jitter);
    if (experts.top_k != 2) {
      reader.problem(reader.field("num_experts_per_tok"),
                     fmt::format("{}: this family's router chooses two", experts.top_k));
    }
  }
  if (!family.counts_shared_experts) {
    keys::refuse_unless_text(reader, {"scoring_func", "moe_router_score_function"}, {"softmax"},
                             "this family's scores are a softmax");
    keys::refuse_unless_text(reader, {"topk_method"}, {"greedy"}, "this family has plain top-k routing");
    keys::refuse_unless_one(reader, {"n_group"}, "this family has no groups of experts");
    keys::refuse_unless_one(reader, {"topk_group"}, "this family has no groups of experts");
    keys::refuse_unless_one(reader, {"routed_scaling_factor"}, "this family's weights are not scaled");
    return;
  }
  keys::refuse_unless_text(reader, {"scoring_func"}, {sigmoid ? "sigmoid" : "softmax"},
                           fmt::format("this family's scores are a {}", sigmoid ? "sigmoid" : "softmax"));
  bool grouped = sigmoid;
  if (sigmoid) {
    keys::refuse_unless_text(reader, {"topk_method"}, {"noaux_tc"}, "this family chooses by \"noaux_tc\"");
  } else if (const auto method = reader.string({"topk_method"})) {
    grouped = *method == "group_limited_greedy";
    if (!grouped && *method != "greedy") {
      reader.problem(reader.field("topk_method"),
                     fmt::format("{}: \"greedy\" or \"group_limited_greedy\" is needed", in_quotes(*method)));
    }
    if (experts.norm_topk_prob) {
      reader.problem(reader.field("norm_topk_prob"), "true: this family's own implementation does not renormalise");
    }
  }
  const auto groups = reader.integer({"n_group"}, 0, kMaxCount);
  const auto top_groups = reader.integer({"topk_group"}, 0, kMaxCount);
  experts.groups = grouped ? std::max<std::int64_t>(groups.value_or(experts.groups), 1) : 1;
  experts.top_groups = grouped ? std::max<std::int64_t>(top_groups.value_or(experts.top_groups), 1) : 1;
  experts.routed_scaling_factor =
      reader.number({"routed_scaling_factor"}, 1e-6, 1e6).value_or(experts.routed_scaling_factor);
}

}  // namespace

FeedForwardSpec read_feed_forward(ObjectReader& reader, const Family& family, FeedForwardSpec& experts,
                                  std::vector<Problem>& problems) {
  FeedForwardSpec dense;
  if (family.mixture == Mixture::no_layer) {
    dense.intermediate_size = width_of(reader, "intermediate_size", "the width of the MLP is needed", problems);
    experts = dense;
    return dense;
  }
  if (family.moe_intermediate_size) {
    experts.intermediate_size = width_of(reader, "moe_intermediate_size", fields::kIntermediateSize.needed, problems);
    dense.intermediate_size = width_of(reader, "intermediate_size", "", problems);
  } else {
    experts.intermediate_size = width_of(reader, "intermediate_size", fields::kIntermediateSize.needed, problems);
    if (const auto width = reader.find({"moe_intermediate_size"})) {
      reader.problem(width->field, fmt::format("{}: \"{}\" has no such key; the width of its experts is "
                                               "intermediate_size",
                                               describe(*width->value), family.model_type));
    }
  }
  read_router(reader, family, experts);
  if (family.counts_shared_experts) {
    const std::int64_t shared = reader.integer({"n_shared_experts"}, 0, kMostShared).value_or(family.shared_experts);
    experts.shared_intermediate_size = shared * experts.intermediate_size;
  } else if (experts.shared_intermediate_size > 0) {
    experts.shared_intermediate_size =
        reader.integer({"shared_expert_intermediate_size"}, 1, kMaxWidth).value_or(experts.shared_intermediate_size);
  }
  if (experts.swiglu_limit > 0) {
    experts.swiglu_limit = reader.number({"swiglu_limit"}, 1e-6, 1e6).value_or(experts.swiglu_limit);
    if (const auto alpha = reader.number({"swiglu_alpha"}, 0, 1e6); alpha && *alpha != 1.702) {
      reader.problem(reader.field("swiglu_alpha"), fmt::format("{}: only 1.702 is computed", *alpha));
    }
  }
  return dense;
}

std::vector<bool> read_dense_layers(ObjectReader& reader, const Family& family, std::int64_t layers,
                                    std::vector<Problem>& problems) {
  std::vector<bool> dense(static_cast<std::size_t>(layers), family.mixture == Mixture::no_layer);
  constexpr std::string_view kAll = "every layer of this family has experts";
  if (family.mixture == Mixture::after_first) {
    const std::int64_t first = reader.integer({"first_k_dense_replace"}, 0, kMaxLayers).value_or(family.first_dense);
    for (std::int64_t i = 0; i < std::min(first, layers); ++i) dense[static_cast<std::size_t>(i)] = true;
    keys::refuse_unless_one(reader, {"moe_layer_freq"}, "all layers after the first dense ones have experts");
    keys::refuse_unless_zero(reader, {"mlp_only_layers"}, "this family's key is first_k_dense_replace");
  } else {
    keys::refuse_unless_zero(reader, {"first_k_dense_replace", "moe_num_dense_layers"},
                             family.mixture == Mixture::no_layer ? "this family has no experts" : kAll);
    keys::refuse_unless_one(reader, {"moe_layer_freq"}, kAll);
  }
  if (family.mixture == Mixture::sparse_step) {
    const std::int64_t step = reader.integer({"decoder_sparse_step"}, 1, kMaxLayers).value_or(1);
    for (std::int64_t i = 0; i < layers; ++i) dense[static_cast<std::size_t>(i)] = (i + 1) % step != 0;
    if (const auto listed = reader.find({"mlp_only_layers"})) {
      if (!listed->value->is(Kind::array)) {
        reader.problem(listed->field, fmt::format("{} where an array of layers is needed", describe(*listed->value)));
        return dense;
      }
      for (std::size_t i = 0; i < listed->value->items.size(); ++i) {
        const auto layer = integer_of(listed->value->items[i], fmt::format("{}[{}]", listed->field, i), 0,
                                      std::max<std::int64_t>(layers - 1, 0), problems);
        if (!layer) return dense;
        if (*layer < layers) dense[static_cast<std::size_t>(*layer)] = true;
      }
    }
  } else if (family.mixture != Mixture::after_first) {
    keys::refuse_unless_one(reader, {"decoder_sparse_step"}, kAll);
    keys::refuse_unless_zero(reader, {"mlp_only_layers"}, kAll);
  }
  return dense;
}

}  // namespace shardproof::family_config
