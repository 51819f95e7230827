#include "emu/run/dry_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <utility>

#include "emu/run/dry_deployment.h"
#include "emu/run/internal/dry_keys.h"
#include "emu/run/internal/record_lists.h"

namespace shardproof {
namespace {

/// Of every pass of a rank through its stage, the experts of each kind of layer are counted, or of each layer where the
/// routing has layers of its own.
void require_few(const Plan& plan, const StatedRouting& routing) {
  const LayerList& layers = plan.model.layers;
  const std::int64_t passes = plan.world() * plan.workload.microbatches;
  if (passes > kMostPasses) {
    throw TooManyRecords(fmt::format("{} on each of {} ranks: {} passes through a stage; at most {} are taken",
                                     plan.workload.microbatches, plan.world(), passes, kMostPasses));
  }
  std::int64_t experts = 0;
  for (const LayerSpec& kind : layers.kinds()) experts = std::max(experts, kind.feed_forward.num_experts);
  if (experts == 0) return;
  const std::int64_t counted =
      routing.same_in_every_layer() ? std::ssize(layers.kinds()) : layers.size() / plan.parallel.pp;
  if (passes * counted > kMostCounts / experts) {
    const char* advice =
        routing.same_in_every_layer() ? "" : ", or with one row of workload.routing.counts for all layers";
    throw TooManyRecords(fmt::format(
        "{} on each of {} ranks, in {} {} the slots of {} experts: more than {} counts; fewer microbatches "
        "do{}",
        plan.workload.microbatches, plan.world(), counted,
        routing.same_in_every_layer() ? "kinds of layers" : "layers of a stage", experts, kMostCounts, advice));
  }
}

}  // namespace

namespace dry {

void require_kept(std::size_t records, const ModelConfig& model, std::int64_t microbatches) {
  if (records <= kMostRecords) return;
  throw TooManyRecords(fmt::format("{} of {} layers: more than {} ops to keep at once; fewer microbatches do",
                                   microbatches, model.layers.size(), kMostRecords));
}

}  // namespace dry

DryRun::DryRun(const ModelConfig& model, const Mesh& mesh, const Deployment& deployment, const StatedRouting& routing)
    : model_(model), mesh_(mesh), deployment_(deployment), routing_(routing) {}

DryRun::Sent& DryRun::sent_by_ranks(int layer, std::int64_t microbatch) const {
  return of_stage(sent_, layer, microbatch);
}

std::vector<std::int64_t>& DryRun::remembered(int layer, std::int64_t microbatch, const Coordinates& at) const {
  Sent& known = of_stage(remembered_, layer, microbatch);
  return known[static_cast<std::size_t>(mesh_.rank_at(at)) % known.size()];
}

DryRun::Sent& DryRun::of_stage(std::map<std::pair<int, std::int64_t>, Sent>& all, int layer,
                               std::int64_t microbatch) const {
  Sent& known = all[{same_in_every_layer() ? model_.layers.kind_of(layer) : layer, microbatch}];
  if (known.empty()) known.resize(static_cast<std::size_t>(mesh_.world() / mesh_.degree(Axis::pp)));
  return known;
}

const std::vector<std::int64_t>& DryRun::sent_by(Sent& known, int layer, std::int64_t microbatch, int rank) const {
  // Stages are the slowest axis, and have the same tokens.
  std::vector<std::int64_t>& sent = known[static_cast<std::size_t>(rank) % known.size()];
  if (!sent.empty()) return sent;
  const Layout& layout = deployment_.layouts[static_cast<std::size_t>(rank)];
  const LayerLayout& held = layout.layer(model_, layer);
  const TokenRows rows = deployment_.tokens.run_own(layout.at, microbatch);
  const std::int64_t experts = model_.layers[layer].feed_forward.num_experts;
  const std::vector<std::int64_t> slots =
      layout.expert_maps == nullptr
          ? routing_.slots(layer, rows, experts)
          : routing_.physical_slots(layer, rows, experts, (*layout.expert_maps)[static_cast<std::size_t>(layer)],
                                    held.experts, mesh_.parallel().experts.replica);
  return sent = by_owner(slots, held.expert_owner, mesh_.degree(Axis::ep));
}

const std::vector<std::int64_t>& DryRun::sent(int layer, std::int64_t microbatch, const Coordinates& at) const {
  return sent_by(sent_by_ranks(layer, microbatch), layer, microbatch, mesh_.rank_at(at));
}

std::vector<int> DryRun::senders_to(int rank) const {
  return mesh_.parallel().routes_alike() ? std::vector{rank} : mesh_.group(Axis::ep, rank);
}

std::vector<std::int64_t> DryRun::arriving(int layer, std::int64_t microbatch, const Coordinates& at) const {
  Sent& known = sent_by_ranks(layer, microbatch);
  std::vector<std::int64_t> counts;
  for (const int sender : senders_to(mesh_.rank_at(at))) {
    const std::vector<std::int64_t>& sent = sent_by(known, layer, microbatch, sender);
    const std::int64_t experts = std::ssize(sent) / mesh_.degree(Axis::ep);
    const auto begin = sent.begin() + at.ep * experts;
    counts.insert(counts.end(), begin, begin + experts);
  }
  return counts;
}

std::vector<std::int64_t> DryRun::rows_of_experts(int layer, std::int64_t microbatch, const Coordinates& at) const {
  Sent& known = sent_by_ranks(layer, microbatch);
  const std::int64_t buckets = std::ssize(sent(layer, microbatch, at)), experts = buckets / mesh_.degree(Axis::ep);
  std::vector<std::int64_t> rows(static_cast<std::size_t>(experts), 0);
  for (const int member : mesh_.group(Axis::etp, mesh_.rank_at(at))) {
    for (const int sender : senders_to(member)) {
      const std::vector<std::int64_t>& sent = sent_by(known, layer, microbatch, sender);
      const auto begin = sent.begin() + at.ep * experts;
      std::transform(rows.begin(), rows.end(), begin, rows.begin(), std::plus<>());
    }
  }
  return rows;
}

std::vector<std::int64_t> DryRun::arriving_over_etp(int layer, std::int64_t microbatch, const Coordinates& at) const {
  if (mesh_.parallel().routes_alike()) return arriving(layer, microbatch, at);
  std::vector<std::int64_t> counts;
  const int rank = mesh_.rank_at(at);
  for (const int member : mesh_.group(Axis::etp, rank)) {
    const std::vector<std::int64_t> of_member = arriving(layer, microbatch, mesh_.coordinates(member));
    counts.insert(counts.end(), of_member.begin(), of_member.end());
  }
  return counts;
}

Deployment deployment_of(const Plan& plan, DryPass pass) {
  Workload workload = plan.workload.prompts();
  if (pass == DryPass::decode) std::ranges::fill(workload.lengths, 1);
  Deployment deployment = deploy(plan.model, plan.parallel, workload);
  if (pass == DryPass::decode) deployment.tokens.set_past(plan.workload.lengths);
  return deployment;
}

namespace {

using UseTrace = std::function<void(int rank, std::shared_ptr<const RankTrace> trace)>;

std::vector<int> fold(const Plan& plan, const Deployment& deployment, ops::Format format, const StatedRouting& routing,
                      DryLists lists, const UseTrace& use) {
  const Mesh mesh(plan.parallel);
  const DryRun run(plan.model, mesh, deployment, routing);
  dry::RecordLists records(plan.model, deployment, run, format);
  std::vector<int> list_of_rank;
  std::map<dry::Key, int> known;
  for (int rank = 0; rank < mesh.world(); ++rank) {
    const auto [at, is_new] = known.try_emplace(dry::key_of_rank(plan.model, deployment, run, rank), std::ssize(known));
    if (is_new) use(rank, lists == DryLists::folded ? records.folded(rank) : records.whole(rank));
    list_of_rank.push_back(at->second);
  }
  return list_of_rank;
}

DryTraces kept(const Plan& plan, const Deployment& deployment, ops::Format format, const StatedRouting& routing,
               DryLists as = DryLists::whole) {
  std::vector<std::shared_ptr<const RankTrace>> lists;
  std::size_t records = 0;
  const auto keep = [&](int /*rank*/, std::shared_ptr<const RankTrace> trace) {
    for (const RecordRun& run : trace->all_runs()) records += run.records();
    dry::require_kept(records, plan.model, plan.workload.microbatches);
    lists.push_back(std::move(trace));
  };
  const std::vector<int> list_of_rank = fold(plan, deployment, format, routing, as, keep);
  DryTraces traces;
  for (const int list : list_of_rank) traces.ranks.push_back(lists[static_cast<std::size_t>(list)]);
  traces.distinct = lists.size();
  return traces;
}

}  // namespace

std::vector<int> fold_dry_run(const Plan& plan, ops::Format format, DryPass pass, const StatedRouting& routing,
                              const UseTrace& use) {
  require_few(plan, routing);
  return fold(plan, deployment_of(plan, pass), format, routing, DryLists::whole, use);
}

DryTraces dry_run(const Plan& plan, ops::Format format, DryPass pass, const StatedRouting& routing, DryLists lists) {
  require_few(plan, routing);
  return kept(plan, deployment_of(plan, pass), format, routing, lists);
}

DryTraces dry_run_step(const Plan& plan, ops::Format format, const std::vector<std::vector<StepChunk>>& step,
                       const StatedRouting& routing) {
  // Every chunk is of a sequence of its own, which ends with it.
  Workload workload = plan.workload.whole();
  workload.lengths.clear();
  workload.token_ids.clear();
  Serving serving;
  std::vector<ReplicaSchedule> schedule;
  for (const std::vector<StepChunk>& of_replica : step) {
    std::vector<Chunk>& chunks = schedule.emplace_back().emplace_back();
    for (const StepChunk& chunk : of_replica) {
      chunks.push_back({.sequence = std::ssize(workload.lengths), .begin = chunk.begin, .count = chunk.count});
      workload.lengths.push_back(chunk.begin + chunk.count);
      serving.requests.push_back({.prompt = chunk.begin + chunk.of_prompt});
    }
  }
  workload.serving = std::move(serving);
  const Deployment deployment =
      deploy(plan.model, plan.parallel, TokenMap(plan.parallel, workload, schedule), plan.workload);
  return kept(plan, deployment, format, routing);
}

}  // namespace shardproof
