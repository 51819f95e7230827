#include "emu/timeline/work.h"

#include <algorithm>

#include "ops/swiglu.h"

namespace shardproof {
namespace {

constexpr double kFourBitBytes = 0.5 + 1.0 / 32;

bool fused(Op op) {
  switch (op) {
    case Op::attention_k:
    case Op::attention_v:
    case Op::attention_kv_latent:
    case Op::attention_k_norm:
    case Op::attention_rope_k:
    case Op::attention_norm:
    case Op::moe_norm:
    case Op::final_norm:
    case Op::router_choice:
      return true;
    default:
      return false;
  }
}

/// Elements of the weights that the op reads, from its flops: 2 rows * elements of a product; of a gated MLP of width w
/// over h, three matrices of w h and an activation of w.
double weight_elements(const OpRecord& record) {
  if (record.rows <= 0) return 0;
  const double of_row = record.flops / static_cast<double>(record.rows);
  if (!is_mlp(record.op)) return of_row / 2;
  const auto hidden = static_cast<double>(record.cols);
  const double width = of_row / (6 * hidden + ops::swiglu_cost(1, 1, 1).flops);
  return 3 * hidden * width;
}

/// The rules' weights are those of the model's own config.
bool as_published(const WorkRules& rules) {
  return rules.weights != WeightFormat::as_run && weight_format_of(rules.model) == rules.weights;
}

bool is_quantised(const OpRecord& record, const WorkRules& rules) {
  if (rules.weights == WeightFormat::as_run) return false;
  const Quantisation& own = rules.model.quantisation;
  const bool published = as_published(rules), all = rules.weights == WeightFormat::fp8;
  if (record.op == Op::moe_expert) return !published || own.experts;
  if (record.op == Op::mlp) return published ? own.mlp : all;
  return is_projection(record.op) && (published ? own.attention : all);
}

void quantise(const OpRecord& record, const WorkRules& rules, KernelWork& work) {
  if (!is_quantised(record, rules)) return;
  const double kept = as_published(rules) ? quantised_bytes_of_value(rules.model.quantisation, rules.model.weight_block)
                      : rules.weights == WeightFormat::fp8 ? 1
                                                           : kFourBitBytes;
  work.bytes += weight_elements(record) * (kept - ops::bytes_per_element(rules.format));
  if (rules.weights == WeightFormat::fp8) work.rate = Rate::fp8;
}

double cache_bytes(const WorkRules& rules) {
  return rules.cache_bytes > 0 ? rules.cache_bytes : ops::bytes_per_element(rules.format);
}

/// Elements that the rank has cached of a token, in the record's layer.
double cached_of_token(const OpRecord& record, const ModelConfig& model) {
  const AttentionSpec& spec = model.layers[record.layer].attention;
  const double heads = static_cast<double>(record.cols) / static_cast<double>(spec.value_dim());
  const double kv_heads = std::max(1.0, static_cast<double>(spec.kv_heads) * heads / static_cast<double>(spec.heads));
  return static_cast<double>(cached_elements(spec, 1)) * (spec.latent() ? 1 : kv_heads);
}

/// What the record reads of so many cached tokens, in the run's format, is as wide as it is cached.
void as_cached(const OpRecord& record, double tokens, const WorkRules& rules, KernelWork& work) {
  const double elements = tokens * cached_of_token(record, rules.model);
  work.bytes += elements * (cache_bytes(rules) - ops::bytes_per_element(rules.format));
}

/// One token of each sequence reads what its sequence has cached. Of the record, 2 (head_dim + value_dim) flops are a
/// pair of a query and a key in a head.
void read_cache(const OpRecord& record, const WorkRules& rules, KernelWork& work) {
  const AttentionSpec& spec = rules.model.layers[record.layer].attention;
  const double heads = static_cast<double>(record.cols) / static_cast<double>(spec.value_dim());
  if (heads <= 0) return;
  const double pairs = record.flops / (2 * heads * static_cast<double>(spec.head_dim + spec.value_dim()));
  const double cached = cached_of_token(record, rules.model);
  const auto rows = static_cast<double>(record.rows);
  double touched = rows * heads * static_cast<double>(spec.head_dim + spec.value_dim());
  if (spec.latent()) {
    const auto latent = static_cast<double>(spec.kv_lora_rank), turned = static_cast<double>(spec.rope.dim);
    work.flops = 2 * pairs * heads * (2 * latent + turned);
    touched = rows * heads * (2 * latent + turned);
  }
  work.bytes =
      std::max(record.bytes, pairs * cached * cache_bytes(rules) + touched * ops::bytes_per_element(rules.format));
}

}  // namespace

bool is_projection(Op op) {
  switch (op) {
    case Op::attention_q_latent:
    case Op::attention_q:
    case Op::attention_k:
    case Op::attention_v:
    case Op::attention_kv_latent:
    case Op::attention_kv:
    case Op::attention_absorb:
    case Op::attention_expand:
    case Op::attention_output:
      return true;
    default:
      return false;
  }
}

bool is_mlp(Op op) {
  return op == Op::moe_expert || op == Op::mlp;
}

WeightFormat weight_format_of(const ModelConfig& model) {
  switch (model.quantisation.format) {
    case QuantisedFormat::fp8:
      return WeightFormat::fp8;
    case QuantisedFormat::mxfp4:
    case QuantisedFormat::int4:
      return WeightFormat::four_bit;
    default:
      return WeightFormat::as_run;
  }
}

Rate rate_of(ops::Format format) {
  switch (format) {
    case ops::Format::fp64:
    case ops::Format::exact:
      return Rate::fp64;
    case ops::Format::fp32:
      return Rate::fp32;
    default:
      return Rate::bf16;
  }
}

KernelWork work_of(const OpRecord& record, const WorkRules& rules) {
  KernelWork work{.flops = record.flops,
                  .bytes = record.bytes,
                  .rate = rate_of(rules.format),
                  .launched = !fused(record.op),
                  .grouped = record.op == Op::moe_expert};
  quantise(record, rules, work);
  if (record.op == Op::attention_latent_context) {
    as_cached(record, record.past + static_cast<double>(record.rows), rules, work);
  }
  if (record.op == Op::attention_dcp_part) as_cached(record, record.past, rules, work);
  if (record.op != Op::attention_context) return work;
  if (rules.pass == DryPass::decode) {
    read_cache(record, rules, work);
  } else if (record.past > 0) {
    work.bytes += record.past * cached_of_token(record, rules.model) * cache_bytes(rules);
  }
  return work;
}

double computing_seconds(const KernelWork& work, const HardwareModel& hardware) {
  const double peak = hardware.peak(work.rate) * (work.grouped ? hardware.grouped_share : 1);
  return hardware.compute.effective(work.flops) / peak;
}

double moving_seconds(const KernelWork& work, const HardwareModel& hardware) {
  return hardware.memory.effective(work.bytes) / hardware.memory_bytes_per_second;
}

double seconds_of(const KernelWork& work, const HardwareModel& hardware) {
  if (work.flops <= 0 && work.bytes <= 0) return 0;
  return std::max(computing_seconds(work, hardware), moving_seconds(work, hardware)) +
         (work.launched ? hardware.launch_seconds : 0);
}

}  // namespace shardproof
