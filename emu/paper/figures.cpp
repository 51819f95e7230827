#include "emu/paper/figures.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "collectives/traffic.h"
#include "emu/plan/layout.h"
#include "emu/plan/schedule.h"
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

void add_traffic(const OpRecord& call, double times, PassFigures& pass) {
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
  total->calls += times;
  total->elements += times * static_cast<double>(call.elements);
  total->sent_bytes += times * sent_elements(call) * call.width;
}

/// What is folded from a list of records, for all ranks that have it.
struct ListFigures {
  PassFigures pass;
  Activations activations;
  double buffer_bytes = 0;  ///< of the largest call, in and out
};

ListFigures list_figures(const Plan& plan, const Mesh& mesh, int rank, const RankTrace& trace) {
  ListFigures figures;
  figures.pass = pass_figures(trace);
  figures.activations = activations_of(trace, plan.model, make_layout(plan.model, mesh, rank));
  for (const OpRecord& record : trace.ops) {
    if (!record.call) continue;
    figures.buffer_bytes =
        std::max(figures.buffer_bytes, static_cast<double>((record.elements + record.received) * record.width));
  }
  return figures;
}

/// By list, and which of them is a rank's.
struct AllLists {
  std::vector<ListFigures> lists;
  std::vector<int> of_rank;

  const ListFigures& of(std::size_t rank) const { return lists[static_cast<std::size_t>(of_rank[rank])]; }
};

AllLists all_lists(const Plan& plan, DryPass pass) {
  const Mesh mesh(plan.parallel);
  AllLists all;
  const auto fold = [&](int rank, const std::shared_ptr<const RankTrace>& trace) {
    all.lists.push_back(list_figures(plan, mesh, rank, *trace));
  };
  all.of_rank = fold_dry_run(plan, format_of(plan.model), pass, StatedRouting::of(plan), fold);
  return all;
}

AllLists all_lists(const Plan& plan, const DryTraces& traces) {
  const Mesh mesh(plan.parallel);
  AllLists all;
  std::map<const RankTrace*, int> known;
  for (int rank = 0; rank < mesh.world(); ++rank) {
    const RankTrace& trace = traces.of(rank);
    const auto [at, is_new] = known.try_emplace(&trace, static_cast<int>(std::ssize(known)));
    if (is_new) all.lists.push_back(list_figures(plan, mesh, rank, trace));
    all.of_rank.push_back(at->second);
  }
  return all;
}

void add_memory(const Plan& plan, const ListFigures& folded, RankFigures& figures) {
  const int bytes = dtype_bytes(plan.model);
  figures.activation_bytes = folded.activations.alive * bytes;
  // Under 1F1B.
  const auto in_flight = std::min<double>(folded.activations.microbatches, plan.parallel.pp - figures.at.pp);
  figures.training_activation_bytes = folded.activations.kept * bytes * in_flight;
  figures.communication_buffer_bytes = folded.buffer_bytes;
}

void add_cache(const Plan& plan, const Layout& layout, RankFigures& figures) {
  double bytes_of_token = 0;
  for (std::int64_t layer = layout.layers.begin; layer < layout.layers.end(); ++layer) {
    bytes_of_token += static_cast<double>(
        cached_elements(plan.model.layers[layer].attention, layout.layer(plan.model, layer).kv_heads.count));
  }
  bytes_of_token *= static_cast<double>(cache_bytes(plan)) / (plan.parallel.cp * plan.parallel.dcp);
  figures.kv_cache_bytes = bytes_of_token * static_cast<double>(figures.tokens);
  figures.kv_cache_reserved_bytes = bytes_of_token * static_cast<double>(figures.kv_cache_reserved_tokens);
}

void fill_layout(const Plan& plan, const Layout& layout, RankFigures& figures) {
  figures.at = layout.at;
  figures.layers = layout.layers;
  // What stages have of layers with experts, where they have such layers.
  std::int64_t index = layout.layers.begin;
  for (std::int64_t i = layout.layers.end() - 1; i >= layout.layers.begin; --i) {
    if (plan.model.layers[i].feed_forward.dense()) continue;
    ++figures.expert_layers;
    index = i;
  }
  const LayerLayout& layer = layout.layer(plan.model, index);
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

int cache_bytes(const Plan& plan) {
  return cache_element_bytes(plan.workload, dtype_bytes(plan.model));
}

int dtype_bytes(const ModelConfig& model) {
  return ops::bytes_per_element(format_of(model));
}

PassFigures pass_figures(const RankTrace& trace) {
  PassFigures pass;
  std::vector<double> flops(kOps, 0.0);
  std::vector<bool> seen(kOps, false);
  for (const RecordRun& run : trace.all_runs()) {
    for (std::size_t i = run.begin; i < run.end; ++i) {
      const OpRecord& record = trace.ops[i];
      if (record.phase == CallPhase::awaited) continue;
      if (record.call) {
        add_traffic(record, run.layers, pass);
      } else {
        flops[static_cast<std::size_t>(record.op)] += run.layers * record.flops;
        seen[static_cast<std::size_t>(record.op)] = true;
      }
    }
  }
  for (std::size_t op = 0; op < flops.size(); ++op) {
    if (seen[op]) pass.ops.push_back({static_cast<Op>(op), flops[op]});
  }
  return pass;
}

namespace {

std::vector<RankFigures> with_prefill(const Plan& plan, const AllLists& prefill) {
  const Mesh mesh(plan.parallel);
  const std::int64_t longest = *std::max_element(plan.workload.lengths.begin(), plan.workload.lengths.end());
  std::vector<std::int64_t> served_tokens;  // by replica
  if (const std::optional<Serving>& serving = plan.workload.serving) {
    for (const std::int64_t blocks : kv_blocks_by_replica(plan.parallel, plan.workload)) {
      served_tokens.push_back(blocks * serving->tokens_of_block(plan.parallel.dcp));
    }
  }
  std::vector<RankFigures> all(static_cast<std::size_t>(mesh.world()));
  for (int rank = 0; rank < mesh.world(); ++rank) {
    RankFigures& figures = all[static_cast<std::size_t>(rank)];
    figures.rank = rank;
    const Layout layout = make_layout(plan.model, mesh, rank);
    fill_layout(plan, layout, figures);
    figures.parameters = held_parameters(layout, plan.model);
    figures.weights = held_weight_bytes(layout, plan.model, dtype_bytes(plan.model));
    const Range sequences = sequences_of_replica(plan.parallel, plan.workload.batch(), figures.at.dp);
    figures.sequences = sequences.count;
    for (std::int64_t s = sequences.begin; s < sequences.end(); ++s) {
      figures.tokens += plan.workload.lengths[static_cast<std::size_t>(s)];
    }
    figures.kv_cache_reserved_tokens =
        plan.workload.serving ? served_tokens[static_cast<std::size_t>(figures.at.dp)] : figures.sequences * longest;
    add_cache(plan, layout, figures);
    const ListFigures& folded = prefill.of(static_cast<std::size_t>(rank));
    add_memory(plan, folded, figures);
    figures.prefill = folded.pass;
  }
  return all;
}

}  // namespace

std::vector<RankFigures> rank_figures(const Plan& plan) {
  std::vector<RankFigures> all = with_prefill(plan, all_lists(plan, DryPass::prefill));
  const AllLists decode = all_lists(plan, DryPass::decode);
  for (std::size_t rank = 0; rank < all.size(); ++rank) all[rank].decode = decode.of(rank).pass;
  return all;
}

std::vector<RankFigures> prefill_figures(const Plan& plan, const DryTraces& prefill) {
  return with_prefill(plan, all_lists(plan, prefill));
}

}  // namespace shardproof
