#include "tools/rank_ops.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "emu/model/tensors.h"
#include "emu/plan/cache_share.h"
#include "emu/plan/layout.h"
#include "emu/plan/token_map.h"
#include "emu/run/dry_deployment.h"

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

/// Its bias, where the model has one.
std::optional<Weight> bias_of(Op op) {
  switch (op) {
    case Op::attention_q:
      return Weight::attention_q_bias;
    case Op::attention_k:
      return Weight::attention_k_bias;
    case Op::attention_v:
      return Weight::attention_v_bias;
    case Op::attention_output:
      return Weight::attention_output_bias;
    case Op::router_logits:
      return Weight::router_bias;
    case Op::logits:
      return Weight::head_bias;
    default:
      return std::nullopt;
  }
}

/// The kernel of what is the same in every model.
std::optional<Kernel> kernel_of(Op op) {
  if (weight_of(op)) return Kernel::linear;
  switch (op) {
    case Op::embedding:
      return Kernel::embed;
    case Op::embedding_scale:
      return Kernel::scale;
    case Op::attention_norm:
    case Op::attention_q_latent_norm:
    case Op::attention_kv_latent_norm:
    case Op::moe_norm:
    case Op::final_norm:
    case Op::attention_q_norm:
    case Op::attention_k_norm:
      return Kernel::rms_norm;
    case Op::attention_squares:
      return Kernel::sum_squares;
    case Op::attention_heads:
    case Op::attention_cached_heads:
      return Kernel::split_heads;
    case Op::attention_rope_q:
    case Op::attention_rope_k:
      return Kernel::rope;
    case Op::attention_absorb:
      return Kernel::absorb_queries;
    case Op::attention_latent_context:
      return Kernel::latent_attention;
    case Op::attention_expand:
      return Kernel::expand_context;
    case Op::attention_context:
      return Kernel::attention;
    case Op::attention_ring_part:
    case Op::attention_dcp_part:
      return Kernel::attention_part;
    case Op::attention_ring_merge:
    case Op::attention_dcp_merge:
      return Kernel::merge_parts;
    case Op::attention_residual:
    case Op::moe_residual:
    case Op::moe_sum:
      return Kernel::add;
    case Op::shared_output:
      return Kernel::gate_rows;
    case Op::router_choice:
      return Kernel::route;
    case Op::attention_cache_write:
    case Op::attention_cache_read:
    case Op::attention_split_heads:
    case Op::attention_in_order:
    case Op::attention_out_of_order:
    case Op::attention_join_heads:
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
  Reader(const Plan& plan, int rank, DryPass pass)
      : plan_(plan),
        layout_(make_layout(plan.model, Mesh(plan.parallel), rank)),
        tokens_(deployment_of(plan, pass).tokens) {}

  OpShape shape_of(const OpRecord& record, Kernel kernel) {
    OpShape shape{.kernel = kernel, .rows = record.rows, .cols = record.cols};
    const ModelConfig& model = plan_.model;
    switch (kernel) {
      case Kernel::embed:
        shape.inner = layout_.vocabulary.count;
        break;
      case Kernel::scale:
        shape.factor = model.embedding_multiplier;
        break;
      case Kernel::linear: {
        const WeightSpec spec = weight_spec(model, *weight_of(record.op), record.layer);
        shape.inner = part_of(layout_, model, spec.col_split, record.layer, spec.cols).count;
        const std::optional<Weight> bias = bias_of(record.op);
        // Of a product that is summed over tp, one rank adds it.
        const bool adds = record.op != Op::attention_output || layout_.at.tp == 0;
        shape.bias = bias && adds && has_weight(model, *bias, record.layer);
        break;
      }
      case Kernel::rms_norm:
        set_norm(record, shape);
        break;
      case Kernel::sum_squares:
        shape.cols = static_cast<std::int64_t>(record.flops) / (2 * record.rows);
        break;
      case Kernel::add:
        // The sum with the shared expert is plain in every model.
        if (record.op != Op::moe_sum && model.residual_multiplier != 1) {
          shape.kernel = Kernel::add_scaled;
          shape.factor = model.residual_multiplier;
        }
        break;
      default:
        break;
    }
    if (record.layer >= 0) add_layer(record, shape);
    return shape;
  }

 private:
  void set_norm(const OpRecord& record, OpShape& shape) const {
    const bool of_heads = record.op == Op::attention_q_norm || record.op == Op::attention_k_norm;
    const bool of_stream = record.op == Op::attention_norm || record.op == Op::moe_norm || record.op == Op::final_norm;
    if (of_stream && plan_.model.layer_norm) shape.kernel = Kernel::layer_norm;
    if (!of_heads) return;
    const AttentionSpec& spec = plan_.model.layers[record.layer].attention;
    if (spec.query_key_norm == QueryKeyNorm::full) {
      const Weight weight = record.op == Op::attention_q_norm ? Weight::attention_q_norm : Weight::attention_k_norm;
      shape.kernel = Kernel::rms_norm_part;
      shape.inner = weight_spec(plan_.model, weight, record.layer).cols;
    } else {
      shape.rows = record.rows * record.cols / spec.head_dim;
      shape.cols = spec.head_dim;
    }
  }

  void add_layer(const OpRecord& record, OpShape& shape) {
    const LayerSpec& spec = plan_.model.layers[record.layer];
    const LayerLayout& held = layout_.layer(plan_.model, record.layer);
    switch (shape.kernel) {
      case Kernel::rope:
        // The end of a key that heads share turns alone.
        shape.head_dim = std::min(spec.attention.head_dim, record.cols);
        shape.rope_dim = spec.attention.rope_dim();
        shape.interleaved = spec.attention.rope.interleaved;
        return;
      case Kernel::split_heads:
        shape.head_dim = spec.attention.head_dim;
        shape.value_dim = spec.attention.value_dim();
        shape.kv_heads = held.heads.count;
        shape.inner = spec.attention.rope.dim;
        return;
      case Kernel::absorb_queries:
      case Kernel::expand_context:
        shape.head_dim = spec.attention.head_dim;
        shape.value_dim = spec.attention.value_dim();
        shape.rope_dim = spec.attention.rope.dim;
        shape.kv_heads = held.heads.count;
        shape.inner = spec.attention.kv_lora_rank;
        return;
      case Kernel::latent_attention:
        return see_latents(record, spec.attention, shape);
      case Kernel::attention:
      case Kernel::attention_part:
      case Kernel::merge_parts:
        return add_attention(record, spec.attention, held, shape);
      case Kernel::route:
        return add_route(spec.feed_forward, shape);
      case Kernel::combine:
        shape.inner = spec.feed_forward.top_k;
        shape.present = static_cast<std::int64_t>(record.flops) / (2 * record.cols);
        return;
      case Kernel::expert:
        shape.inner = record.op == Op::mlp ? held.mlp_size.count : held.intermediate_size.count;
        if (record.op == Op::mlp) return;
        shape.bias = spec.feed_forward.expert_bias;
        shape.limit = spec.feed_forward.swiglu_limit;
        return;
      default:
        return;
    }
  }

  static void add_route(const FeedForwardSpec& spec, OpShape& shape) {
    shape.inner = spec.num_experts;
    shape.normalise = spec.norm_topk_prob;
    shape.sigmoid = spec.scoring == Scoring::sigmoid;
    shape.sparsemixer = spec.scoring == Scoring::sparsemixer;
    shape.jitter = spec.router_jitter;
    shape.bias = spec.selection_bias;
    shape.groups = spec.groups;
    shape.top_groups = spec.top_groups;
    shape.factor = spec.routed_scaling_factor;
  }

  void add_attention(const OpRecord& record, const AttentionSpec& spec, const LayerLayout& held, OpShape& shape) {
    const Parallel& parallel = plan_.parallel;
    const int dealt = parallel.heads_dealt();
    shape.head_dim = spec.head_dim;
    shape.value_dim = spec.value_dim();
    shape.kv_heads = held.kv_heads.count / dealt;
    if (spec.latent() && (record.op == Op::attention_dcp_part || record.op == Op::attention_dcp_merge)) {
      shape.head_dim = spec.kv_lora_rank + spec.rope.dim;
      shape.value_dim = spec.kv_lora_rank;
      shape.kv_heads = 1;
    }
    const RankTokens tokens = tokens_.rank_shapes(layout_.at, record.microbatch);
    switch (record.op) {
      case Op::attention_context:
        shape.window = spec.sliding_window;
        shape.sinks = spec.sinks;
        return see_all(tokens, dealt > 1 ? tokens.chunks : tokens.pieces, shape);
      case Op::attention_ring_part:
        return see_part(tokens, record, shape);
      case Op::attention_dcp_part:
        return see_kept(tokens, shape);
      default:
        shape.kv_heads = 0;
        shape.inner = record.op == Op::attention_ring_merge ? parallel.ring() : parallel.dcp;
    }
  }

  /// The queries of absorbed tokens among the latents of their sequences.
  void see_latents(const OpRecord& record, const AttentionSpec& spec, OpShape& shape) const {
    shape.head_dim = spec.kv_lora_rank + spec.rope.dim;
    shape.value_dim = spec.kv_lora_rank;
    shape.kv_heads = 1;
    const RankTokens tokens = tokens_.rank_shapes(layout_.at, record.microbatch);
    for (std::size_t i = 0; i < tokens.chunks.size(); ++i) {
      const Chunk& chunk = tokens.chunks[i];
      const std::int64_t plain = tokens.plain[i];
      if (plain == chunk.count) continue;
      shape.spans.push_back(
          {.queries = chunk.count - plain, .first_key = shape.keys, .keys = chunk.begin + plain + 1, .causal = true});
      shape.keys += chunk.end();
    }
  }

  /// The queries of some pieces among the keys of all tokens of their sequences.
  static void see_all(const RankTokens& tokens, const std::vector<Chunk>& pieces, OpShape& shape) {
    auto piece = pieces.begin();
    for (const Chunk& chunk : tokens.chunks) {
      for (; piece != pieces.end() && piece->sequence == chunk.sequence; ++piece) {
        shape.spans.push_back(
            {.queries = piece->count, .first_key = shape.keys, .keys = piece->begin + 1, .causal = true});
      }
      shape.keys += chunk.end();
    }
  }

  /// Those of the rank's member of the ring among the keys that came in that step of it. What came before the pass is
  /// the queries' own.
  void see_part(const RankTokens& tokens, const OpRecord& record, OpShape& shape) {
    const int members = plan_.parallel.ring(), dealt = plan_.parallel.heads_dealt(), mine = tokens.cp / dealt;
    const int step = steps_[{record.layer, record.microbatch}]++ % members;
    const int keys_of = (mine + members - step) % members;
    const std::vector<Chunk> queries = tokens.of_member(mine, dealt);
    const bool decodes = std::ranges::any_of(tokens.chunks, [](const Chunk& chunk) { return chunk.begin > 0; });
    if (decodes && keys_of == mine) return see_all({.chunks = queries}, queries, shape);
    const std::vector<Chunk> held = tokens.of_member(keys_of, dealt);
    shape.spans = key_spans(queries, held);
    for (const Chunk& chunk : held) shape.keys += chunk.count;
  }

  /// Those of every rank of dcp among the keys that the rank keeps.
  void see_kept(const RankTokens& tokens, OpShape& shape) const {
    const CacheShare share = cache_share(plan_.parallel, layout_.at);
    for (const Chunk& chunk : tokens.chunks) {
      for (std::int64_t token = chunk.begin; token < chunk.end(); ++token) {
        const std::int64_t seen = share.count_of(token + 1);
        const bool alike = token > chunk.begin && shape.spans.back().keys == seen;
        if (alike) {
          ++shape.spans.back().queries;
        } else {
          shape.spans.push_back({.queries = 1, .first_key = shape.keys, .keys = seen});
        }
      }
      shape.keys += share.count_of(chunk.end());
    }
    const std::vector<KeySpan> of_rank = shape.spans;
    for (int rank = 1; rank < share.ranks; ++rank) {
      shape.spans.insert(shape.spans.end(), of_rank.begin(), of_rank.end());
    }
  }

  const Plan& plan_;
  Layout layout_;
  TokenMap tokens_;
  std::map<std::pair<std::int32_t, std::int32_t>, int> steps_;  ///< of the ring, by layer and microbatch
};

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
  Reader reader(plan, rank, pass);
  RankOps result;
  for (const OpRecord& record : trace.ops) {
    if (record.call) {
      ++result.calls;
      continue;
    }
    const std::optional<Kernel> kernel = kernel_of(record.op);
    if (!kernel) {
      leave_out(record.op, "not among the ops that are timed yet", result);
    } else if (record.rows > 0 && record.cols > 0) {
      count(reader.shape_of(record, *kernel), record.op, result);
    }
  }
  return result;
}

}  // namespace

RankOps rank_ops(const Plan& plan, int rank, ops::Format format, DryPass pass) {
  const StatedRouting routing = StatedRouting::of(plan);
  const DryTraces traces = dry_run(plan, format, pass, routing);
  return counted(plan, rank, pass, traces.of(rank));
}

}  // namespace shardproof::tools
