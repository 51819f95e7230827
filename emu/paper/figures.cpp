#include "emu/paper/figures.h"

#include <algorithm>
#include <map>

#include "collectives/traffic.h"
#include "emu/plan/layout.h"
#include "emu/plan/token_map.h"
#include "emu/run/activations.h"
#include "emu/run/dry_run.h"

namespace shardproof {
namespace {

double sent_elements(const OpRecord& call) {
  const auto in = static_cast<double>(call.elements);
  switch (call.operation) {
    case Operation::all_reduce:
      return in * bus_bandwidth_factor(Operation::all_reduce, call.group_size);
    case Operation::all_gather:
      return in * (call.group_size - 1);
    case Operation::reduce_scatter:
    case Operation::all_to_all:
      return in - static_cast<double>(call.kept);
    default:
      return in;
  }
}

void add_traffic(const OpRecord& call, PassFigures& pass) {
  // A message counts where it is sent.
  if (call.operation == Operation::recv) return;
  const auto alike = [&](const TrafficTotal& total) {
    return total.axis == call.axis && total.operation == call.operation && total.element_bytes == call.width;
  };
  auto total = std::ranges::find_if(pass.traffic, alike);
  if (total == pass.traffic.end()) {
    pass.traffic.push_back(
        {.axis = call.axis, .operation = call.operation, .group_size = call.group_size, .element_bytes = call.width});
    total = std::prev(pass.traffic.end());
  }
  total->calls += 1;
  total->elements += static_cast<double>(call.elements);
  total->sent_bytes += sent_elements(call) * call.width;
}

void add_memory(const Plan& plan, const Layout& layout, const RankTrace& trace, RankFigures& figures) {
  const int bytes = dtype_bytes(plan.model);
  const Activations activations = activations_of(trace, plan.model, layout);
  figures.activation_bytes = activations.alive * bytes;
  // Under 1F1B.
  const auto in_flight = std::min<double>(activations.microbatches, plan.parallel.pp - figures.at.pp);
  figures.training_activation_bytes = activations.kept * bytes * in_flight;
  for (const OpRecord& record : trace.ops) {
    if (!record.call) continue;
    figures.communication_buffer_bytes = std::max(
        figures.communication_buffer_bytes, static_cast<double>((record.elements + record.received) * record.width));
  }
}

void add_cache(const Plan& plan, const Layout& layout, std::int64_t longest, RankFigures& figures) {
  double bytes_of_token = 0;
  for (std::int64_t layer = layout.layers.begin; layer < layout.layers.end(); ++layer) {
    bytes_of_token += 2.0 * static_cast<double>(layout.layer(plan.model, layer).kv_heads.count *
                                                plan.model.layers[layer].attention.head_dim);
  }
  bytes_of_token *= static_cast<double>(dtype_bytes(plan.model)) / plan.parallel.cp;
  figures.kv_cache_bytes = bytes_of_token * static_cast<double>(figures.tokens);
  figures.kv_cache_reserved_bytes = bytes_of_token * static_cast<double>(figures.sequences * longest);
}

void fill_layout(const Plan& plan, const Layout& layout, RankFigures& figures) {
  figures.at = layout.at;
  figures.layers = layout.layers;
  const LayerLayout& layer = layout.layer(plan.model, layout.layers.begin);
  figures.heads = layer.heads;
  figures.kv_heads = layer.kv_heads;
  figures.experts = layer.experts;
  figures.intermediate_size = layer.intermediate_size;
  figures.vocabulary = layout.vocabulary;
}

}  // namespace

double PassFigures::flops() const {
  double sum = 0;
  for (const OpTotal& total : ops) sum += total.flops;
  return sum;
}

double PassFigures::sent_bytes() const {
  double sum = 0;
  for (const TrafficTotal& total : traffic) sum += total.sent_bytes;
  return sum;
}

ops::Format format_of(const ModelConfig& model) {
  if (model.dtype == "float64") return ops::Format::fp64;
  if (model.dtype == "float32") return ops::Format::fp32;
  return model.dtype == "float16" ? ops::Format::fp16 : ops::Format::bf16;
}

int dtype_bytes(const ModelConfig& model) {
  return ops::bytes_per_element(format_of(model));
}

PassFigures pass_figures(const RankTrace& trace) {
  PassFigures pass;
  std::vector<double> flops(kOps, 0.0);
  std::vector<bool> seen(kOps, false);
  for (const OpRecord& record : trace.ops) {
    if (record.call) {
      add_traffic(record, pass);
    } else {
      flops[static_cast<std::size_t>(record.op)] += record.flops;
      seen[static_cast<std::size_t>(record.op)] = true;
    }
  }
  for (std::size_t op = 0; op < flops.size(); ++op) {
    if (seen[op]) pass.ops.push_back({static_cast<Op>(op), flops[op]});
  }
  return pass;
}

std::vector<RankFigures> rank_figures(const Plan& plan) {
  const StatedRouting routing = StatedRouting::of(plan);
  const DryTraces prefill = dry_run(plan, format_of(plan.model), DryPass::prefill, routing);
  const DryTraces decode = dry_run(plan, format_of(plan.model), DryPass::decode, routing);
  const Mesh mesh(plan.parallel);
  const TokenMap tokens(plan.parallel, plan.workload);
  const std::int64_t longest = *std::max_element(plan.workload.lengths.begin(), plan.workload.lengths.end());
  // Ranks that share their records share what is folded from them.
  std::map<const RankTrace*, PassFigures> folded;
  const auto pass_of = [&](const RankTrace& trace) -> const PassFigures& {
    const auto [at, is_new] = folded.try_emplace(&trace);
    if (is_new) at->second = pass_figures(trace);
    return at->second;
  };
  std::vector<RankFigures> all(static_cast<std::size_t>(mesh.world()));
  for (int rank = 0; rank < mesh.world(); ++rank) {
    RankFigures& figures = all[static_cast<std::size_t>(rank)];
    figures.rank = rank;
    const Layout layout = make_layout(plan.model, mesh, rank);
    fill_layout(plan, layout, figures);
    figures.parameters = held_parameters(layout, plan.model);
    const Range sequences = tokens.sequences(figures.at.dp);
    figures.sequences = sequences.count;
    for (std::int64_t s = sequences.begin; s < sequences.end(); ++s) {
      figures.tokens += plan.workload.lengths[static_cast<std::size_t>(s)];
    }
    add_cache(plan, layout, longest, figures);
    add_memory(plan, layout, prefill.of(rank), figures);
    figures.prefill = pass_of(prefill.of(rank));
    figures.decode = pass_of(decode.of(rank));
  }
  return all;
}

}  // namespace shardproof
