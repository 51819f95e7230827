// Kinds in embedding, attention, norms and head: sums over tp, slices and weights, positions.
#include <algorithm>

#include "emu/run/stage.h"
#include "emu/verify/mutation_calls.h"

namespace shardproof::mutations {
namespace {

using Instances = std::vector<Mutation>;
using Causes = std::vector<std::string>;

/// A sum over tp after an op: one instance for each place, its member alternating between first and last.
Instances reductions(const Plan& plan, std::size_t limit, bool embedding, SumFault fault, const Causes& causes) {
  if (plan.parallel.tp < (fault == SumFault::halves ? 4 : 2) || (fault == SumFault::halves && plan.parallel.tp % 2)) {
    return {};
  }
  const Sites sites(plan);
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const int dp = sites.mesh.coordinates(place.rank).dp;
    const int anchor = embedding ? sites.first_rank(0, dp) : place.rank;
    if (embedding && !result.empty() && result.back().ranks.front() == anchor) continue;
    const std::vector<int> group = sites.group(Axis::tp, anchor);
    const int layer = embedding ? -1 : place.layer;
    const std::string_view op = embedding ? "embedding" : "attention.output";
    const int member = result.size() % 2 == 0 ? 0 : plan.parallel.tp - 1;
    result.push_back({.layer = layer,
                      .ranks = group,
                      .group = "tp",
                      .tap = tap_name(layer, op),
                      .causes = causes,
                      .make = faulty_reduction(sites.tp_reduction(op, layer, group), fault, member, plan.world(),
                                               plan.workload.microbatches)});
  }
  return result;
}

template <bool embedding, SumFault fault, int cause>
Instances reduction(const Plan& plan, std::size_t limit) {
  static const std::vector<Causes> kCauses{{"reduction_dropped"}, {"reduced_twice", "counted_n_times"},
                                           {"partial_group"},     {"addend_missing"},
                                           {"addend_doubled"},    {"averaged"},
                                           {"wrong_reduction"}};
  return reductions(plan, limit, embedding, fault, kCauses[cause]);
}

Instances attention_wrong_axis(const Plan& plan, std::size_t limit) {
  const Sites sites(plan);
  const Parallel& p = plan.parallel;
  bool even = true;
  for (int dp = 0; dp < p.dp; ++dp) {
    for (std::int64_t m = 0; m < sites.batch.microbatches(); ++m) {
      even = even && sites.batch.microbatch(p.dp, dp, m).rows.count % p.tp == 0;
    }
  }
  if (p.tp < 2 || (p.sp && !even)) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    for (const Axis axis : {Axis::dp, Axis::ep, Axis::etp, Axis::edp}) {
      if (sites.mesh.degree(axis) != p.tp || sites.group(axis, place.rank) == sites.group(Axis::tp, place.rank))
        continue;
      const std::vector<int> ranks = sites.stage_ranks(sites.stage_of(place.layer));
      const Site site = sites.tp_reduction("attention.output", place.layer, ranks);
      result.push_back({.layer = place.layer,
                        .ranks = ranks,
                        .group = std::string(to_string(axis)),
                        .tap = tap_name(place.layer, "attention.output"),
                        .may_clash = true,
                        .causes = {"wrong_group", "call_arguments"},
                        .make = script([=](Script& made) {
                          made.before = [=](const Rank& rank, internal::Call& call) {
                            if (site.here(rank, call)) redirect(call, rank.on(axis));
                            return true;
                          };
                        })});
      break;
    }
  }
  return result;
}

/// Adds to every rank's addend of the attention's output.
template <class Add>
Mutation on_every_rank(const Sites& sites, const Place& place, const Add& add, std::string cause) {
  const std::vector<int> group = sites.group(Axis::tp, place.rank);
  const Site site = sites.tp_reduction("attention.output", place.layer, group);
  const int world = sites.plan.world();
  return {.layer = place.layer,
          .ranks = group,
          .group = "tp",
          .tap = tap_name(place.layer, "attention.output"),
          .causes = {std::move(cause)},
          .make = script([=](Script& made) {
            const Buffers buffers = make_buffers(world);
            const Buffers streams = make_buffers(world);
            made.before = [=](const Rank& rank, internal::Call& call) {
              if (site.here(rank, call)) {
                add(own_input(rank, call, buffers), (*streams)[static_cast<std::size_t>(to_int(rank.id()))]);
              }
              return true;
            };
            // The stream that enters the stage: the embedding, or what the stage before has sent.
            made.after = [=](const Rank& rank, internal::Call& call) {
              const bool embedded = call.operation == Operation::all_reduce && !rank.trace().ops.empty() &&
                                    rank.trace().ops.back().op == "embedding";
              if (!embedded && call.operation != Operation::recv) return;
              const std::span<double> out = output(call);
              std::vector<double>& stream = (*streams)[static_cast<std::size_t>(to_int(rank.id()))];
              stream.assign(out.begin(), out.end());
              ops::store<double>(stream, ops::Format::exact);
            };
          })};
}

Instances residual_on_every_rank(const Plan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.tp < 2 || plan.parallel.sp) return {};
  Instances result;
  for (const int stage : {0, plan.parallel.pp - 1}) {
    if (result.size() == limit || (!result.empty() && stage == 0)) continue;
    const Place place{static_cast<int>(sites.layers_of(stage).begin), sites.first_rank(stage, 0)};
    const auto add = [](std::span<double> addend, const std::vector<double>& stream) {
      for (std::size_t i = 0; i < addend.size() && i < stream.size(); ++i) addend[i] += stream[i];
    };
    result.push_back(on_every_rank(sites, place, add, "term_on_every_rank"));
  }
  return result;
}

Instances bias_on_every_rank(const Plan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.tp < 2) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const auto add = [](std::span<double> addend, const std::vector<double>&) {
      for (double& value : addend) value += 0.5;
    };
    result.push_back(on_every_rank(sites, place, add, "constant_offset"));
  }
  return result;
}

/// One rank loads another slice of a weight.
Mutation loads(const Place& place, int rank, std::string tap, Causes causes,
               std::function<void(WeightSpec&, Range&, Range&)> edit) {
  return {.layer = place.layer,
          .ranks = {rank},
          .tap = std::move(tap),
          .causes = std::move(causes),
          .make = script([=](Script& made) {
            made.slice = [=](const Rank& loader, WeightSpec& spec, Range& rows, Range& cols) {
              if (to_int(loader.id()) == rank) edit(spec, rows, cols);
            };
          })};
}

using MakeSpec = WeightSpec (*)(const ModelConfig&, int);

/// One rank of the tp group holds the rows (or columns) of the next.
template <MakeSpec make, bool columns>
Instances next_slice(const Plan& plan, std::size_t limit, std::string_view tap, const Causes& causes) {
  const Sites sites(plan);
  if (plan.parallel.tp < 2) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const std::vector<int> group = sites.group(Axis::tp, place.rank);
    const int rank = result.size() % 2 == 0 ? group.back() : group.front();
    const std::string name = make(plan.model, place.layer).name;
    const auto edit = [=](WeightSpec& spec, Range& rows, Range& cols) {
      if (spec.name != name) return;
      Range& part = columns ? cols : rows;
      part.begin = (part.begin + part.count) % (columns ? spec.cols : spec.rows);
    };
    result.push_back(loads(place, rank, tap_name(place.layer, tap), causes, edit));
  }
  return result;
}

Instances q_heads_swapped(const Plan& plan, std::size_t limit) {
  return next_slice<registry::attention_q, false>(plan, limit, "attention.q", {"heads_permuted"});
}
Instances kv_head_wrong(const Plan& plan, std::size_t limit) {
  if (plan.model.num_kv_heads < 2) return {};
  return next_slice<registry::attention_k, false>(plan, limit, "attention.k", {"heads_permuted"});
}
Instances v_head_wrong(const Plan& plan, std::size_t limit) {
  if (plan.model.num_kv_heads < 2) return {};
  return next_slice<registry::attention_v, false>(plan, limit, "attention.v", {"heads_permuted"});
}
Instances output_slice_of_neighbour(const Plan& plan, std::size_t limit) {
  return next_slice<registry::attention_output, true>(plan, limit, "attention.output", {"wrong_slice"});
}

/// Fewer kv heads than tp: a rank believes that its query heads share another kv head.
Instances kv_group_wrong(const Plan& plan, std::size_t limit) {
  const Sites sites(plan);
  const std::int64_t kv = plan.model.num_kv_heads;
  if (kv < 2 || kv >= plan.parallel.tp) return {};
  Instances result;
  for (const int stage : {0, plan.parallel.pp - 1}) {
    if (result.size() == limit || (!result.empty() && stage == 0)) continue;
    const int rank = sites.group(Axis::tp, sites.first_rank(stage, 0)).back();
    const int layer = static_cast<int>(sites.layers_of(stage).begin);
    result.push_back({.layer = layer,
                      .ranks = {rank},
                      .tap = tap_name(layer, "attention.context"),
                      .causes = {"wrong_kv_head"},
                      .make = script([=](Script& made) {
                        made.layouts = [=](std::vector<Layout>& layouts) {
                          Range& heads = layouts[static_cast<std::size_t>(rank)].kv_heads;
                          heads.begin = (heads.begin + 1) % kv;
                        };
                      })});
  }
  return result;
}

template <MakeSpec make>
Instances stale(const Plan& plan, std::size_t limit, std::string_view tap) {
  const Sites sites(plan);
  if (plan.model.num_layers < 2) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const int other = place.layer == 0 ? 1 : place.layer - 1;
    const std::vector<int> group = sites.group(Axis::tp, place.rank);
    const int rank = result.size() % 2 == 0 ? group.front() : group.back();
    const std::string name = make(plan.model, place.layer).name;
    const WeightSpec replacement = make(plan.model, other);
    const auto edit = [=](WeightSpec& spec, Range&, Range&) {
      if (spec.name == name) spec = replacement;
    };
    result.push_back(loads(place, rank, tap_name(place.layer, tap), {"weights_of_another_layer"}, edit));
  }
  return result;
}

Instances q_stale(const Plan& plan, std::size_t limit) {
  return stale<registry::attention_q>(plan, limit, "attention.q");
}
Instances k_stale(const Plan& plan, std::size_t limit) {
  return stale<registry::attention_k>(plan, limit, "attention.k");
}
Instances v_stale(const Plan& plan, std::size_t limit) {
  return stale<registry::attention_v>(plan, limit, "attention.v");
}
Instances output_stale(const Plan& plan, std::size_t limit) {
  return stale<registry::attention_output>(plan, limit, "attention.output");
}
Instances attention_norm_stale(const Plan& plan, std::size_t limit) {
  return stale<registry::attention_norm>(plan, limit, "attention.norm");
}
Instances moe_norm_stale(const Plan& plan, std::size_t limit) {
  return stale<registry::moe_norm>(plan, limit, "moe.norm");
}
Instances router_stale(const Plan& plan, std::size_t limit) {
  Instances result = stale<registry::router>(plan, limit, "moe.router_logits");
  // Only the first rank of a tp group has tokens to route for certain.
  return result.empty() ? result : Instances{result.front()};
}

Instances vocabulary_shift(const Plan& plan, std::size_t limit, bool head) {
  const Sites sites(plan);
  if (plan.parallel.tp < 2) return {};
  if (head && plan.model.tie_word_embeddings && plan.parallel.pp == 1) return {};
  const int stage = head ? plan.parallel.pp - 1 : 0;
  const std::string name = head ? registry::head(plan.model).name : registry::embedding(plan.model).name;
  Instances result;
  for (const int rank :
       {sites.first_rank(stage, 0), sites.group(Axis::tp, sites.first_rank(stage, sites.last_busy_dp())).back()}) {
    if (result.size() == limit) break;
    const auto edit = [=](WeightSpec& spec, Range& rows, Range&) {
      if (spec.name == name) rows.begin += rows.end() < spec.rows ? 1 : -1;
    };
    result.push_back(loads({-1, rank}, rank, head ? "logits" : "embedding", {"vocabulary_shifted"}, edit));
  }
  return result;
}
Instances embedding_slice_off(const Plan& plan, std::size_t limit) {
  return vocabulary_shift(plan, limit, false);
}
Instances head_slice_off(const Plan& plan, std::size_t limit) {
  return vocabulary_shift(plan, limit, true);
}

/// The gather of the rows over tp, under sequence parallelism, on one rank.
Instances gathers(const Plan& plan, std::size_t limit, bool final, bool dropped) {
  const Sites sites(plan);
  if (!plan.parallel.sp) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const int layer = final ? -1 : place.layer;
    const int anchor =
        final ? sites.first_rank(plan.parallel.pp - 1, sites.mesh.coordinates(place.rank).dp) : place.rank;
    const std::vector<int> group = sites.group(Axis::tp, anchor);
    const int rank = result.size() % 2 == 0 ? group.front() : group.back();
    const Site site{.op = final ? "final_norm" : "attention.norm",
                    .layer = layer,
                    .operation = Operation::all_gather,
                    .counts_given = true,
                    .ranks = dropped ? group : std::vector{rank}};
    result.push_back({.layer = layer,
                      .ranks = site.ranks,
                      .group = "tp",
                      .tap = final ? "logits" : tap_name(layer, "attention.q"),
                      .causes = {dropped ? "gather_dropped" : "rows_permuted"},
                      .make = script([=](Script& made) {
                        made.before = [=](const Rank& at, internal::Call& call) {
                          return !(dropped && site.here(at, call));
                        };
                        made.after = [=](const Rank& at, internal::Call& call) {
                          if (!site.here(at, call)) return;
                          if (dropped) return keep_own(call);
                          reverse_chunks(output(call), call.counts);
                        };
                      })});
    if (final) break;
  }
  return result;
}
Instances gather_order(const Plan& plan, std::size_t limit) {
  return gathers(plan, limit, false, false);
}
Instances gather_dropped(const Plan& plan, std::size_t limit) {
  return gathers(plan, limit, false, true);
}
Instances head_gather_order(const Plan& plan, std::size_t limit) {
  return gathers(plan, limit, true, false);
}

Instances scatter_order(const Plan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (!plan.parallel.sp) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const std::vector<int> group = sites.group(Axis::tp, place.rank);
    const Site site = sites.tp_reduction("attention.output", place.layer, group);
    const int world = plan.world();
    result.push_back({.layer = place.layer,
                      .ranks = group,
                      .group = "tp",
                      .tap = tap_name(place.layer, "attention.output"),
                      .causes = {"rows_permuted"},
                      .make = script([=](Script& made) {
                        const Buffers buffers = make_buffers(world);
                        made.before = [=](const Rank& rank, internal::Call& call) {
                          if (site.here(rank, call)) reverse_chunks(own_input(rank, call, buffers), call.counts);
                          return true;
                        };
                      })});
  }
  return result;
}

enum class Edit { offset, restart, merge };

template <Edit edit>
Instances microbatch_edit(const Plan& plan, std::size_t limit) {
  const Sites sites(plan);
  const std::int64_t longest = *std::ranges::max_element(plan.workload.lengths);
  Instances result;
  for (const int stage : {0, plan.parallel.pp - 1}) {
    if (result.size() == limit || (!result.empty() && stage == 0)) continue;
    const std::vector<int> group = sites.group(Axis::tp, sites.first_rank(stage, 0));
    const int rank = result.empty() ? group.front() : group.back();
    const int layer = static_cast<int>(sites.layers_of(stage).begin);
    result.push_back({.layer = layer,
                      .ranks = {rank},
                      .tap = tap_name(layer, edit == Edit::merge ? "attention.context" : "attention.q"),
                      .causes = {edit == Edit::merge ? "sequence_boundaries" : "positions"},
                      .make = script([=](Script& made) {
                        made.microbatch = [=](const Rank& at, std::int64_t, MicroBatch& given) {
                          if (to_int(at.id()) != rank) return;
                          if (edit == Edit::merge) given.offsets = {0, given.rows.count};
                          const std::int64_t half = given.positions.empty() ? 0 : (given.positions.back() + 1) / 2;
                          for (std::int64_t& position : given.positions) {
                            if (edit == Edit::offset) position = std::min(position + 1, longest - 1);
                            if (edit == Edit::restart && position >= half) position -= half;
                          }
                        };
                      })});
  }
  return result;
}

constexpr MutationKind kKinds[] = {
    {"embedding_reduction_dropped", "the embedding's sum over tp is not taken", reduction<true, SumFault::dropped, 0>},
    {"embedding_reduction_doubled", "the embedding is reduced over tp twice", reduction<true, SumFault::repeated, 1>},
    {"embedding_addend_missing", "one rank's part of the embedding is lost", reduction<true, SumFault::missing, 3>},
    {"embedding_slice_off_by_one", "a vocabulary slice begins a row too late", embedding_slice_off},
    {"attention_norm_stale", "a rank's attention norm is another layer's", attention_norm_stale},
    {"sp_gather_order", "sequence-parallel chunks are gathered in the wrong order", gather_order},
    {"sp_gather_dropped", "sequence-parallel rows are not gathered", gather_dropped},
    {"q_heads_swapped", "a rank holds its neighbour's query heads", q_heads_swapped},
    {"kv_head_wrong", "a rank holds the wrong key head", kv_head_wrong},
    {"v_head_wrong", "a rank holds the wrong value head", v_head_wrong},
    {"kv_group_wrong", "fewer kv heads than tp: query heads use another kv head", kv_group_wrong},
    {"q_weights_stale", "query weights of another layer", q_stale},
    {"k_weights_stale", "key weights of another layer", k_stale},
    {"v_weights_stale", "value weights of another layer", v_stale},
    {"positions_offset", "positions are one too high", microbatch_edit<Edit::offset>},
    {"positions_restarted", "positions restart inside a sequence", microbatch_edit<Edit::restart>},
    {"sequence_boundaries_ignored", "tokens attend across sequences", microbatch_edit<Edit::merge>},
    {"attention_reduction_dropped", "the attention's sum over tp is not taken", reduction<false, SumFault::dropped, 0>},
    {"attention_reduction_doubled", "the attention's output is reduced twice", reduction<false, SumFault::repeated, 1>},
    {"attention_partial_group", "the sum is over half of the tp group", reduction<false, SumFault::halves, 2>},
    {"attention_addend_missing", "one rank's addend is lost", reduction<false, SumFault::missing, 3>},
    {"attention_addend_doubled", "one rank's addend counts twice", reduction<false, SumFault::doubled, 4>},
    {"attention_averaged", "averaged over tp instead of summed", reduction<false, SumFault::averaged, 5>},
    {"attention_maximum", "the greatest addend instead of the sum", reduction<false, SumFault::maximum, 6>},
    {"attention_wrong_axis", "reduced over a group of another axis, whose ranks have other tokens",
     attention_wrong_axis},
    {"residual_on_every_rank", "the residual is added before the reduction: R + tp * S", residual_on_every_rank},
    {"bias_on_every_rank", "a row-parallel bias is added on every rank", bias_on_every_rank},
    {"output_slice_of_neighbour", "the output projection's slice of the next rank", output_slice_of_neighbour},
    {"output_weights_stale", "output projection of another layer", output_stale},
    {"sp_scatter_order", "sequence-parallel chunks are scattered in the wrong order", scatter_order},
    {"moe_norm_stale", "a rank's norm before the experts is another layer's", moe_norm_stale},
    {"router_weights_stale", "a rank's router is another layer's", router_stale},
    {"head_slice_off_by_one", "the head's vocabulary slice begins a row too late", head_slice_off},
    {"head_gather_order", "rows for the head are gathered in the wrong order", head_gather_order},
};

}  // namespace

std::span<const MutationKind> attention_kinds() {
  return kKinds;
}

}  // namespace shardproof::mutations
