// Kinds that leave the algebra right and round more often, or to a narrower format, than the plan's format says: the
// formats that compute in float store once what they have summed in fp32.
#include <algorithm>
#include <cmath>

#include "emu/mutate/internal/script.h"
#include "emu/mutate/internal/sites.h"
#include "emu/run/reduction.h"

namespace shardproof::mutations {
namespace {

using Instances = std::vector<Mutation>;
using ops::Format;

constexpr Format kInFloat[] = {Format::fp32, Format::bf16, Format::fp16};
/// In which bf16 is narrower than what is stored.
constexpr Format kWiderThanBf16[] = {Format::fp32, Format::fp16};
constexpr Format kStoredNarrow[] = {Format::bf16, Format::fp16};

using ResultEdit = void (*)(const Operands&, ops::MatrixView<float>);

float narrow(float value) {
  return ops::stored(value, Format::bf16);
}

void store_narrow(const Operands& /*operands*/, ops::MatrixView<float> result) {
  for (ops::Index row = 0; row < result.rows; ++row) {
    for (float& value : result.row(row)) value = narrow(value);
  }
}

/// The product summed in order, every sum stored in bf16.
void accumulate_narrow(const Operands& operands, ops::MatrixView<float> result) {
  for (ops::Index row = 0; row < operands.x.rows; ++row) {
    for (ops::Index col = 0; col < result.cols; ++col) {
      float sum = 0;
      for (ops::Index i = 0; i < operands.x.cols; ++i) sum = narrow(sum + operands.x(row, i) * operands.w(col, i));
      result(row, col) = sum;
    }
  }
}

/// The combination's terms added one after another, each sum stored.
template <Format format>
void combine_rounding_between(const Operands& operands, ops::MatrixView<float> result) {
  for (ops::Index row = 0; row < result.rows; ++row) {
    for (ops::Index col = 0; col < result.cols; ++col) {
      float sum = 0;
      for (ops::Index slot = 0; slot < operands.w.cols; ++slot) {
        const float term = operands.w(row, slot) * operands.x(operands.positions(row, slot), col);
        sum = ops::stored(sum + ops::stored(term, format), format);
      }
      result(row, col) = sum;
    }
  }
}

/// On every rank that runs the layer; an op outside the layers has layer -1.
Mutation edited(Op op, int layer, TapId tap, Format format, ResultEdit edit) {
  return {.layer = layer,
          .tap = to_string(tap),
          .format = format,
          .causes = {"rounding"},
          .make = script([=](Script& made) {
            made.result = [=](const Rank&, Op at, const FaultSite& site, const Operands& operands,
                              ops::MatrixView<float> result) {
              if (at == op && site.layer == layer) edit(operands, result);
            };
          })};
}

bool has_tap(const MutablePlan& plan, int layer, TapKind tap) {
  return tap_width(plan.model, {.layer = layer, .kind = tap}) > 0;
}

/// In each format, in the first and the last layer that has the tap.
template <class Make>
Instances in_layers(const MutablePlan& plan, TapKind tap, std::span<const Format> formats, std::size_t limit,
                    const Make& make) {
  std::vector<int> layers;
  for (int layer = 0; layer < plan.model.layers.size(); ++layer) {
    if (has_tap(plan, layer, tap)) layers.push_back(layer);
  }
  Instances result;
  for (const Format format : layers.empty() ? std::span<const Format>() : formats) {
    result.push_back(make(layers.front(), format));
    if (limit > 1 && layers.size() > 1) result.push_back(make(layers.back(), format));
  }
  return result;
}

Instances queries_accumulated(const MutablePlan& plan, std::size_t limit) {
  return in_layers(plan, TapKind::attention_q, kInFloat, limit, [&](int layer, Format format) {
    // What is rotated afterwards shows before that, where it is tapped.
    const bool before = has_tap(plan, layer, TapKind::attention_q_projection);
    return edited(Op::attention_q, layer,
                  {.layer = layer, .kind = before ? TapKind::attention_q_projection : TapKind::attention_q}, format,
                  accumulate_narrow);
  });
}

/// In latent attention values come, with keys, of one product.
Instances values_accumulated(const MutablePlan& plan, std::size_t limit) {
  return in_layers(plan, TapKind::attention_v, kInFloat, limit, [&](int layer, Format format) {
    const bool latent = plan.model.layers[layer].attention.latent();
    const TapKind tap = latent ? TapKind::attention_kv_projection : TapKind::attention_v;
    return edited(latent ? Op::attention_kv : Op::attention_v, layer, {.layer = layer, .kind = tap}, format,
                  accumulate_narrow);
  });
}

Instances attention_output_accumulated(const MutablePlan& plan, std::size_t limit) {
  return in_layers(plan, TapKind::attention_partial, kInFloat, limit, [](int layer, Format format) {
    return edited(Op::attention_output, layer, {.layer = layer, .kind = TapKind::attention_partial, .part = 0}, format,
                  accumulate_narrow);
  });
}

Instances expert_accumulated(const MutablePlan& plan, std::size_t limit) {
  return in_layers(plan, TapKind::expert_partial, kInFloat, limit, [](int layer, Format format) {
    return edited(Op::moe_expert, layer, {.layer = layer, .kind = TapKind::expert_partial, .part = 0}, format,
                  accumulate_narrow);
  });
}

template <Op op, TapKind tap>
Instances stored_narrow(const MutablePlan& plan, std::size_t limit) {
  return in_layers(plan, tap, kWiderThanBf16, limit, [](int layer, Format format) {
    return edited(op, layer, {.layer = layer, .kind = tap}, format, store_narrow);
  });
}

Instances rounded_between(const MutablePlan& plan, std::size_t limit) {
  if (plan.model.experts().top_k < 2) return {};
  // Whose partial sum is the first to have two addends is for the routing to say.
  if (plan.parallel.sums_over_ep()) return {};
  return in_layers(plan, TapKind::moe_output, kStoredNarrow, limit, [](int layer, Format format) {
    return edited(
        Op::moe_combine, layer, {.layer = layer, .kind = TapKind::moe_output}, format,
        format == Format::bf16 ? combine_rounding_between<Format::bf16> : combine_rounding_between<Format::fp16>);
  });
}

enum class Narrowed { accumulation, wire };

template <Op op, Narrowed what>
Instances reduction_narrowed(const MutablePlan& plan, std::size_t limit) {
  constexpr bool kAttention = op == Op::attention_reduce;
  const int ranks = kAttention ? plan.parallel.tp : plan.parallel.etp;
  if (ranks < 2) return {};
  // Two addends of 16 bits: their sum is rounded once, whether as a sum or as a result.
  const bool three = ranks > 2;
  const std::span<const Format> formats =
      what == Narrowed::wire || !three ? std::span<const Format>(kWiderThanBf16) : std::span<const Format>(kInFloat);
  constexpr TapKind kTap = kAttention ? TapKind::attention_output : TapKind::expert_output;
  return in_layers(plan, kTap, formats, limit, [](int layer, Format format) {
    const Site site{.op = op, .layer = layer, .ranks = {}};
    return Mutation{.layer = layer,
                    .group = kAttention ? "tp" : "etp",
                    .tap = tap_name(layer, kTap),
                    .format = format,
                    .causes = {"rounding"},
                    .make = script([=](Script& made) {
                      made.before = [=](const Rank& rank, internal::Call& call) {
                        // In double nothing is narrowed: `exact` keeps every bit of a sum.
                        if (call.type != ElementType::f32 || !site.matches(rank, call)) return true;
                        (what == Narrowed::wire ? call.options.wire : call.options.accumulate) =
                            rounding_of(Format::bf16);
                        return true;
                      };
                    })};
  });
}

/// A sum of one product is rounded once in any case.
bool sums_one_product(const Plan& plan) {
  return std::ranges::any_of(plan.model.layers.kinds(), [&](const LayerSpec& layer) {
    return layer.feed_forward.intermediate_size <= plan.parallel.etp;
  });
}

constexpr auto kRounding = MutationClass::rounding;

constexpr MutationKind kRoundingKinds[] = {
    {"q_accumulated_in_bf16", "the query projection is summed in bf16", queries_accumulated, kRounding},
    {"v_accumulated_in_bf16", "the value projection is summed in bf16", values_accumulated, kRounding},
    {"attention_output_accumulated_in_bf16", "the partial sums of the attention's output are summed in bf16",
     attention_output_accumulated, kRounding},
    {"attention_reduction_in_bf16", "the attention's sum over tp is added in bf16",
     reduction_narrowed<Op::attention_reduce, Narrowed::accumulation>, kRounding},
    {"attention_wire_in_bf16", "the attention's partial sums are sent in bf16",
     reduction_narrowed<Op::attention_reduce, Narrowed::wire>, kRounding},
    {"attention_residual_in_bf16", "the residual stream after the attention is stored in bf16",
     stored_narrow<Op::attention_residual, TapKind::attention_residual>, kRounding},
    {"router_logits_in_bf16", "the router's logits are stored in bf16",
     stored_narrow<Op::router_logits, TapKind::router_logits>, kRounding},
    {"expert_accumulated_in_bf16", "an expert's down projection is summed in bf16", expert_accumulated, kRounding,
     sums_one_product},
    {"expert_reduction_in_bf16", "experts' sums over etp are added in bf16",
     reduction_narrowed<Op::expert_reduce, Narrowed::accumulation>, kRounding},
    {"expert_wire_in_bf16", "experts' partial sums are sent in bf16",
     reduction_narrowed<Op::expert_reduce, Narrowed::wire>, kRounding},
    {"combination_rounded_between", "the experts' outputs of a token are stored after each addition", rounded_between,
     kRounding},
    {"moe_residual_in_bf16", "the residual stream after the experts is stored in bf16",
     stored_narrow<Op::moe_residual, TapKind::moe_residual>, kRounding},
};

}  // namespace

std::span<const MutationKind> rounding_kinds() {
  return kRoundingKinds;
}

}  // namespace shardproof::mutations
