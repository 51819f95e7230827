// What the ops of a dry run's records ask of a GPU, and which of them one kernel does.
//
// The records count the program's own work, in the format of the run. Beyond them, of a real engine:
//   - quantised weights are read as they are stored, with their scales (emu/model/quantisation.h), and fp8 products run
//     at that rate. Quantised are the projections and MLPs that the model's config says; of a model that says nothing,
//     all in fp8 (one byte), the experts alone in four bits (17/32 of one: a scale for each 32). Never the embedding,
//     the router or the head.
//   - a decode step reads the cached keys and values of every token that a sequence has seen, once, in the width of the
//     cache. With latent attention it reads the latents, and works on them (kv_lora_rank + rope.dim for q.k,
//     kv_lora_rank for p.v), as records of the absorbed form do (emu/plan/latent_form.h): its two products read the
//     weight that keys and values are made with once between them. Where the plan decodes in the plain form, the one
//     product that makes keys and values stands for these, and the work of attention is the same.
//   - a prompt's chunk reads what is cached of its sequence once too (with latent attention it works on the latents'
//     keys and values, as the program does; making them anew is not counted).
//   - the experts of a rank are one grouped product: records of one layer's experts are one launch.
//   - what engines fuse into the kernel before is not launched again: keys and values with queries, rotation of keys
//     with that of queries, a norm with the residual before it, the router's choice with its logits.
//   - counts of rows travel with the rows: such calls are waited for, and take no time.
#pragma once

#include <string_view>

#include "emu/model/config.h"
#include "emu/run/dry_run.h"
#include "emu/run/trace.h"
#include "emu/timeline/hardware_model.h"
#include "ops/format.h"

namespace shardproof {

/// How weights are kept, as far as it decides the time.
enum class WeightFormat { as_run, fp8, four_bit };

struct WorkRules {
  const ModelConfig& model;
  ops::Format format{};
  DryPass pass{};
  WeightFormat weights = WeightFormat::as_run;
  int cache_bytes = 0;  ///< of an element that is cached; 0: as the format has
};

/// As the model's quantization_config names it.
WeightFormat weight_format_of(const ModelConfig& model);

/// One op, or several that one kernel does.
struct KernelWork {
  double flops = 0;
  double bytes = 0;
  Rate rate{};
  bool launched = true;  ///< false: part of the kernel before it
  bool grouped = false;  ///< products of several experts
};

/// A product of attention with a weight.
bool is_projection(Op op);
/// Of an expert, or of what serves every token.
bool is_mlp(Op op);
Rate rate_of(ops::Format format);
/// The record is a computation's.
KernelWork work_of(const OpRecord& record, const WorkRules& rules);
/// Of its flops, and of its bytes, alone.
double computing_seconds(const KernelWork& work, const HardwareModel& hardware);
double moving_seconds(const KernelWork& work, const HardwareModel& hardware);
/// max(flops, bytes, each at its share of the peak) + launch.
double seconds_of(const KernelWork& work, const HardwareModel& hardware);
/// Counts of rows travel with the rows.
constexpr bool rides_along(Op op) {
  return op == Op::dispatch_counts || op == Op::expert_counts;
}

}  // namespace shardproof
