#include "emu/run/dry_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <map>
#include <utility>

#include "emu/plan/cache_share.h"
#include "emu/plan/key_spans.h"
#include "emu/run/context.h"
#include "emu/run/dry_deployment.h"
#include "emu/run/program.h"

namespace shardproof {
namespace {

/// What the records of a layer's dispatch depend on: not which rank sends how much, but what comes of it.
void add_counts(const ModelConfig& model, const DryRun& run, int layer, std::int64_t microbatch, const Layout& layout,
                std::vector<std::int64_t>& key) {
  const std::int64_t experts = layout.layer(model, layer).most_experts;
  const auto own_part = [&](const std::vector<std::int64_t>& counts) {
    return sum_of(
        std::span(counts).subspan(static_cast<std::size_t>(layout.at.ep * experts), static_cast<std::size_t>(experts)));
  };
  const std::vector<std::int64_t>& sent = run.sent(layer, microbatch, layout.at);
  const std::vector<std::int64_t> arriving = run.arriving(layer, microbatch, layout.at);
  for (const std::int64_t n : {sum_of(sent), own_part(sent), sum_of(arriving), own_part(arriving)}) key.push_back(n);
  const std::vector<std::int64_t> rows = run.rows_of_experts(layer, microbatch, layout.at);
  key.insert(key.end(), rows.begin(), rows.end());
}

/// With context parallelism: what the others of the group hold, and what the rank's queries see of it.
void add_share_of_cp(const ModelConfig& model, const Layout& layout, const TokenMap& tokens, std::int64_t microbatch,
                     std::vector<std::int64_t>& key) {
  if (layout.parallel.cp == 1) return;
  key.push_back(layout.at.cp);
  Coordinates other = layout.at;
  if (const int dealt = layout.parallel.heads_dealt(); layout.parallel.in_ring() && dealt > 1) {
    const RankTokens held = tokens.rank_shapes(layout.at, microbatch);
    for (int member = 0; member < layout.parallel.ring(); ++member) {
      key.push_back(std::bit_cast<std::int64_t>(held.pairs_of_part(member, dealt)));
    }
  }
  for (other.cp = 0; other.cp < layout.parallel.cp; ++other.cp) {
    key.push_back(tokens.rows(other, microbatch).count());
    const double seen = pairs_between(tokens.pieces(layout.at, microbatch), tokens.pieces(other, microbatch));
    for (const double pairs : {seen, tokens.pairs(other, microbatch)}) {
      key.push_back(std::bit_cast<std::int64_t>(pairs));
    }
    for (const LayerSpec& kind : model.layers.kinds()) {
      key.push_back(std::bit_cast<std::int64_t>(tokens.pairs(other, microbatch, kind.attention.sliding_window)));
    }
  }
}

/// With decode context parallelism: what the rank keeps of what is cached, and who sees it.
void add_share_of_dcp(const Layout& layout, std::span<const Chunk> chunks, std::vector<std::int64_t>& key) {
  if (layout.parallel.dcp == 1) return;
  const CacheShare share = cache_share(layout.parallel, layout.at), first{share.ranks, share.interleave, 0};
  std::int64_t kept = 0, most = 0, tokens = 0;
  double pairs = 0;
  for (const Chunk& chunk : chunks) {
    kept += share.count_of(chunk.end());
    most += first.count_of(chunk.end());
    tokens += chunk.end();
    pairs += share.pairs_of(chunk.end()) - share.pairs_of(chunk.begin);
  }
  for (const std::int64_t n : {kept, most, tokens, std::bit_cast<std::int64_t>(pairs)}) key.push_back(n);
}

/// Where the rows of the whole ep group are gathered: how many they are.
void add_gathered(const DryRun& run, const Layout& layout, std::int64_t microbatch, std::vector<std::int64_t>& key) {
  if (layout.parallel.dispatch != DispatchComm::all_gather) return;
  std::int64_t rows = 0;
  for (const int member : run.mesh().group(Axis::ep, run.mesh().rank_at(layout.at))) {
    rows += run.tokens().run_own(run.mesh().coordinates(member), microbatch).count();
  }
  key.push_back(rows);
}

/// What the records of an item's microbatch depend on.
void add_microbatch(const ModelConfig& model, const Deployment& deployment, const DryRun& run, const Layout& layout,
                    const WorkItem& item, std::int64_t m, std::vector<std::int64_t>& key) {
  const TokenMap& tokens = deployment.tokens;
  for (const std::int64_t n : {item.layers.begin, item.layers.count, tokens.run_rows(layout.at, m).count(),
                               tokens.run_own(layout.at, m).count(), tokens.stream(layout.at, m).count(),
                               std::bit_cast<std::int64_t>(tokens.pairs(layout.at, m))}) {
    key.push_back(n);
  }
  for (const LayerSpec& kind : model.layers.kinds()) {
    const std::int64_t window = kind.attention.sliding_window;
    key.push_back(std::bit_cast<std::int64_t>(tokens.past(layout.at, m, window)));
    if (window > 0) key.push_back(std::bit_cast<std::int64_t>(tokens.pairs(layout.at, m, window)));
  }
  add_share_of_cp(model, layout, tokens, m, key);
  add_share_of_dcp(layout, tokens.chunks(layout.at.dp, m), key);
  add_gathered(run, layout, m, key);
  // Layers of one kind are alike where the routing is; else each is asked.
  std::vector<bool> asked(layout.kinds.size(), false);
  for (std::int64_t layer = item.layers.begin; layer < item.layers.end(); ++layer) {
    const auto kind = static_cast<std::size_t>(model.layers.kind_of(layer));
    if (model.layers[layer].feed_forward.dense()) continue;
    if (run.same_in_every_layer() && asked[kind]) continue;
    asked[kind] = true;
    add_counts(model, run, static_cast<int>(layer), m, layout, key);
  }
}

/// Everything of a rank that its records depend on: ranks with equal keys have equal records.
std::vector<std::int64_t> key_of(const ModelConfig& model, const Deployment& deployment, const DryRun& run, int rank) {
  const Layout& layout = deployment.layouts[static_cast<std::size_t>(rank)];
  std::vector<std::int64_t> key{layout.at.pp, layout.vocabulary.count};
  for (const LayerLayout& kind : layout.kinds) {
    for (const Range& part : {kind.heads, kind.kv_heads, kind.experts, kind.intermediate_size, kind.mlp_size}) {
      key.push_back(part.count);
    }
  }
  for (const WorkItem& item : deployment.timetable[static_cast<std::size_t>(rank)]) {
    add_microbatch(model, deployment, run, layout, item, item.microbatch, key);
    if (item.beside >= 0) add_microbatch(model, deployment, run, layout, item, item.beside, key);
  }
  return key;
}

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

void require_kept(std::size_t records, const ModelConfig& model, std::int64_t microbatches) {
  if (records <= kMostRecords) return;
  throw TooManyRecords(fmt::format("{} of {} layers: more than {} ops to keep at once; fewer microbatches do",
                                   microbatches, model.layers.size(), kMostRecords));
}

std::shared_ptr<const RankTrace> trace_of(const ModelConfig& model, const Deployment& deployment, const DryRun& run,
                                          ops::Format format, int rank) {
  const auto id = static_cast<std::size_t>(rank);
  const Layout& layout = deployment.layouts[id];
  auto trace = std::make_shared<RankTrace>();
  for (const WorkItem& item : deployment.timetable[id]) {
    const bool pair = item.beside >= 0;
    const RankTokens tokens = deployment.tokens.rank_shapes(layout.at, item.microbatch);
    const RankTokens beside = pair ? deployment.tokens.rank_shapes(layout.at, item.beside) : RankTokens{};
    Context<ShapeOnly> ctx(model, format, layout, tokens, item.microbatch, trace.get(), {run});
    Context<ShapeOnly> other(model, format, layout, beside, item.beside, trace.get(), {run});
    const Task<> task = pair ? run_pair(ctx, other, item) : run_item(ctx, item);
    task.handle().resume();
    if (task.error()) std::rethrow_exception(task.error());
    require_kept(trace->ops.size(), model, deployment.tokens.microbatches());
  }
  return trace;
}

}  // namespace

DryRun::DryRun(const ModelConfig& model, const Mesh& mesh, const Deployment& deployment, const StatedRouting& routing)
    : model_(model), mesh_(mesh), deployment_(deployment), routing_(routing) {}

DryRun::Sent& DryRun::sent_by_ranks(int layer, std::int64_t microbatch) const {
  Sent& known = sent_[{same_in_every_layer() ? model_.layers.kind_of(layer) : layer, microbatch}];
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
                      const UseTrace& use) {
  const Mesh mesh(plan.parallel);
  const DryRun run(plan.model, mesh, deployment, routing);
  std::vector<int> list_of_rank;
  std::map<std::vector<std::int64_t>, int> known;
  for (int rank = 0; rank < mesh.world(); ++rank) {
    const auto [at, is_new] = known.try_emplace(key_of(plan.model, deployment, run, rank), std::ssize(known));
    if (is_new) use(rank, trace_of(plan.model, deployment, run, format, rank));
    list_of_rank.push_back(at->second);
  }
  return list_of_rank;
}

DryTraces kept(const Plan& plan, const Deployment& deployment, ops::Format format, const StatedRouting& routing) {
  std::vector<std::shared_ptr<const RankTrace>> lists;
  std::size_t records = 0;
  const auto keep = [&](int /*rank*/, std::shared_ptr<const RankTrace> trace) {
    records += trace->ops.size();
    require_kept(records, plan.model, plan.workload.microbatches);
    lists.push_back(std::move(trace));
  };
  const std::vector<int> list_of_rank = fold(plan, deployment, format, routing, keep);
  DryTraces traces;
  for (const int list : list_of_rank) traces.ranks.push_back(lists[static_cast<std::size_t>(list)]);
  traces.distinct = lists.size();
  return traces;
}

}  // namespace

std::vector<int> fold_dry_run(const Plan& plan, ops::Format format, DryPass pass, const StatedRouting& routing,
                              const UseTrace& use) {
  require_few(plan, routing);
  return fold(plan, deployment_of(plan, pass), format, routing, use);
}

DryTraces dry_run(const Plan& plan, ops::Format format, DryPass pass, const StatedRouting& routing) {
  require_few(plan, routing);
  return kept(plan, deployment_of(plan, pass), format, routing);
}

DryTraces dry_run_step(const Plan& plan, ops::Format format, const std::vector<std::vector<Chunk>>& step,
                       const StatedRouting& routing) {
  // Every chunk is of a sequence of its own, which ends with it.
  Workload workload = plan.workload.whole();
  workload.lengths.clear();
  workload.token_ids.clear();
  std::vector<ReplicaSchedule> schedule;
  for (const std::vector<Chunk>& of_replica : step) {
    std::vector<Chunk>& chunks = schedule.emplace_back().emplace_back();
    for (const Chunk& chunk : of_replica) {
      chunks.push_back({.sequence = std::ssize(workload.lengths), .begin = chunk.begin, .count = chunk.count});
      workload.lengths.push_back(chunk.end());
    }
  }
  const Deployment deployment =
      deploy(plan.model, plan.parallel, TokenMap(plan.parallel, workload, schedule), plan.workload);
  return kept(plan, deployment, format, routing);
}

}  // namespace shardproof
