#include "tools/rank_ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "emu/model/tensors.h"
#include "emu/plan/layout.h"
#include "emu/plan/token_map.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/expert.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/permute.h"
#include "ops/rope.h"
#include "ops/router.h"

namespace shardproof::tools {
namespace {

/// The weight of a product with one.
std::optional<Weight> weight_of(Op op) {
  switch (op) {
    case Op::attention_q_latent:
      return Weight::attention_q_latent;
    case Op::attention_kv_latent:
      return Weight::attention_kv_latent;
    case Op::attention_kv:
      return Weight::attention_kv;
    case Op::attention_q:
      return Weight::attention_q;
    case Op::attention_k:
      return Weight::attention_k;
    case Op::attention_v:
      return Weight::attention_v;
    case Op::attention_output:
      return Weight::attention_output;
    case Op::router_logits:
      return Weight::router;
    case Op::shared_gate:
      return Weight::shared_gate;
    case Op::logits:
      return Weight::head;
    default:
      return std::nullopt;
  }
}

std::optional<Kernel> kernel_of(Op op) {
  if (weight_of(op)) return Kernel::linear;
  switch (op) {
    case Op::embedding:
      return Kernel::embed;
    case Op::attention_norm:
    case Op::attention_q_latent_norm:
    case Op::attention_kv_latent_norm:
    case Op::moe_norm:
    case Op::final_norm:
      return Kernel::rms_norm;
    case Op::attention_rope_q:
    case Op::attention_rope_k:
      return Kernel::rope;
    case Op::attention_context:
      return Kernel::attention;
    case Op::attention_residual:
    case Op::moe_residual:
    case Op::moe_sum:
      return Kernel::add;
    case Op::router_choice:
      return Kernel::route;
    case Op::moe_permute:
    case Op::moe_sort:
    case Op::moe_unsort:
      return Kernel::gather_rows;
    case Op::moe_expert:
    case Op::mlp:
      return Kernel::expert;
    case Op::moe_combine:
      return Kernel::combine;
    default:
      return std::nullopt;
  }
}

/// Reads shapes out of the records of one rank.
class Reader {
 public:
  Reader(const Plan& plan, int rank)
      : plan_(plan),
        layout_(make_layout(plan.model, Mesh(plan.parallel), rank)),
        tokens_(plan.parallel, plan.workload) {}

  OpShape shape_of(const OpRecord& record, Kernel kernel) const {
    OpShape shape{.kernel = kernel, .rows = record.rows, .cols = record.cols};
    if (kernel == Kernel::embed) shape.inner = layout_.vocabulary.count;
    if (kernel == Kernel::linear) {
      const WeightSpec spec = weight_spec(plan_.model, *weight_of(record.op), record.layer);
      shape.inner = part_of(layout_, plan_.model, spec.col_split, record.layer, spec.cols).count;
    }
    if (record.layer >= 0) add_layer(record, shape);
    return shape;
  }

 private:
  void add_layer(const OpRecord& record, OpShape& shape) const {
    const LayerSpec& spec = plan_.model.layers[record.layer];
    const LayerLayout& held = layout_.layer(plan_.model, record.layer);
    switch (shape.kernel) {
      case Kernel::rope:
        shape.head_dim = spec.attention.head_dim;
        return;
      case Kernel::attention:
        shape.head_dim = spec.attention.head_dim;
        shape.kv_heads = held.kv_heads.count;
        shape.sequences = lengths(record.microbatch);
        return;
      case Kernel::route:
        shape.inner = spec.feed_forward.num_experts;
        shape.normalise = spec.feed_forward.norm_topk_prob;
        return;
      case Kernel::combine:
        shape.inner = spec.feed_forward.top_k;
        return;
      case Kernel::expert:
        shape.inner = record.op == Op::mlp ? held.mlp_size.count : held.intermediate_size.count;
        return;
      default:
        return;
    }
  }

  std::vector<std::int64_t> lengths(std::int64_t microbatch) const {
    const std::vector<std::int64_t> offsets = tokens_.rank_shapes(layout_.at, microbatch).offsets;
    std::vector<std::int64_t> result;
    for (std::size_t i = 1; i < offsets.size(); ++i) result.push_back(offsets[i] - offsets[i - 1]);
    return result;
  }

  const Plan& plan_;
  Layout layout_;
  TokenMap tokens_;
};

constexpr const char* kOtherMath = "what this model does there is not timed yet";

/// Of what depends on the layer: the plain kernel is timed, not another one in its name.
bool is_plain(const LayerSpec& spec, Kernel kernel) {
  const AttentionSpec& attention = spec.attention;
  const FeedForwardSpec& feed_forward = spec.feed_forward;
  switch (kernel) {
    case Kernel::rope:
      return attention.rope_dim() == attention.head_dim && !attention.rope.interleaved;
    case Kernel::attention:
      return attention.value_dim() == attention.head_dim && attention.sliding_window == 0 && !attention.sinks;
    case Kernel::route:
      return feed_forward.scoring == Scoring::softmax && feed_forward.groups == 1 && !feed_forward.selection_bias;
    case Kernel::expert:
      return feed_forward.swiglu_limit == 0 && !feed_forward.expert_bias;
    default:
      return true;
  }
}

/// Why a record is not timed, if so.
std::string reason_against(const Plan& plan, DryPass pass, const OpRecord& record, std::optional<Kernel> kernel) {
  if (!kernel) return "not among the ops that are timed yet";
  if (*kernel == Kernel::attention) {
    if (pass == DryPass::decode) return "no kernel attends from new tokens to cached keys yet";
    if (plan.parallel.cp > 1) return "no kernel attends to the keys of other context-parallel ranks yet";
  }
  if (*kernel == Kernel::combine && plan.parallel.sums_over_ep()) {
    return "no kernel combines only what a rank's own experts make yet";
  }
  if (*kernel == Kernel::rms_norm && plan.model.layer_norm) return kOtherMath;
  if (record.layer >= 0 && !is_plain(plan.model.layers[record.layer], *kernel)) return kOtherMath;
  return "";
}

void count(const OpShape& shape, Op op, RankOps& result) {
  auto known = std::ranges::find_if(result.ops, [&](const CountedOp& other) { return other.shape == shape; });
  if (known == result.ops.end()) {
    result.ops.push_back({.shape = shape, .names = {}});
    known = std::prev(result.ops.end());
  }
  ++known->count;
  if (std::ranges::find(known->names, op) == known->names.end()) known->names.push_back(op);
}

void leave_out(Op op, const std::string& why, RankOps& result) {
  const auto known = std::ranges::find_if(result.left_out, [&](const LeftOut& other) { return other.op == op; });
  if (known == result.left_out.end()) {
    result.left_out.push_back({op, 1, why});
  } else {
    ++known->count;
  }
}

RankOps counted(const Plan& plan, int rank, DryPass pass, const RankTrace& trace) {
  const Reader reader(plan, rank);
  RankOps result;
  for (const OpRecord& record : trace.ops) {
    if (record.call) {
      ++result.calls;
      continue;
    }
    const std::optional<Kernel> kernel = kernel_of(record.op);
    const std::string why = reason_against(plan, pass, record, kernel);
    if (!why.empty()) {
      leave_out(record.op, why, result);
    } else if (record.rows > 0 && record.cols > 0) {
      count(reader.shape_of(record, *kernel), record.op, result);
    }
  }
  return result;
}

}  // namespace

const char* to_string(Kernel kernel) {
  constexpr const char* kNames[] = {"embed", "rms_norm", "linear",      "rope",   "attention",
                                    "add",   "route",    "gather_rows", "expert", "combine"};
  return kNames[static_cast<std::size_t>(kernel)];
}

std::string describe(const OpShape& shape) {
  switch (shape.kernel) {
    case Kernel::linear:
      return fmt::format("m {}, n {}, k {}", shape.rows, shape.cols, shape.inner);
    case Kernel::expert:
      return fmt::format("tokens {}, hidden {}, width {}", shape.rows, shape.cols, shape.inner);
    case Kernel::attention: {
      const auto [least, most] = std::ranges::minmax(shape.sequences);
      const std::string lengths = least == most ? fmt::format("{}", most) : fmt::format("{}-{}", least, most);
      return fmt::format("{} x {} tokens, heads {}/{} x {}", shape.sequences.size(), lengths,
                         shape.cols / shape.head_dim, shape.kv_heads, shape.head_dim);
    }
    case Kernel::route:
      return fmt::format("tokens {}, experts {}, top {}", shape.rows, shape.inner, shape.cols);
    case Kernel::combine:
      return fmt::format("{} x {}, slots {}", shape.rows, shape.cols, shape.inner);
    default:
      return fmt::format("{} x {}", shape.rows, shape.cols);
  }
}

ops::Cost cost_of(const OpShape& shape, int bytes) {
  const std::int64_t rows = shape.rows, cols = shape.cols;
  switch (shape.kernel) {
    case Kernel::embed:
      return ops::embed_cost(rows, cols, bytes);
    case Kernel::rms_norm:
      return ops::rms_norm_cost(rows, cols, bytes);
    case Kernel::linear:
      return ops::linear_cost(rows, cols, shape.inner, bytes);
    case Kernel::rope:
      return ops::rope_cost(rows, cols, bytes);
    case Kernel::attention: {
      double pairs = 0;
      for (const std::int64_t length : shape.sequences) {
        const auto n = static_cast<double>(length);
        pairs += n * (n + 1) / 2;
      }
      return ops::attention_cost(pairs, rows, cols / shape.head_dim, shape.kv_heads, shape.head_dim, bytes);
    }
    case Kernel::add:
      return ops::add_cost(rows, cols, bytes);
    case Kernel::route:
      return ops::route_cost(rows, shape.inner, cols, bytes);
    case Kernel::gather_rows:
      return ops::gather_rows_cost(rows, cols, bytes);
    case Kernel::expert:
      return ops::expert_cost(rows, cols, shape.inner, bytes);
    case Kernel::combine:
      return ops::combine_cost(rows, shape.inner, cols, bytes);
  }
  return {};
}

RankOps rank_ops(const Plan& plan, int rank, ops::Format format, DryPass pass) {
  const StatedRouting routing = StatedRouting::of(plan);
  const DryTraces traces = dry_run(plan, format, pass, routing);
  return counted(plan, rank, pass, traces.of(rank));
}

}  // namespace shardproof::tools
