// Kinds in embedding and attention: sums and gathers over tp, positions, sequences.
#include <algorithm>

#include "emu/mutate/internal/script.h"

namespace shardproof::mutations {
namespace {

using Instances = std::vector<Mutation>;
using Causes = std::vector<std::string>;

/// A sum over tp after an op: one instance for each place, its member alternating between first and last.
Instances reductions(const MutablePlan& plan, std::size_t limit, bool embedding, SumFault fault, const Causes& causes) {
  if (plan.parallel.tp < (fault == SumFault::halves ? 4 : 2) || (fault == SumFault::halves && plan.parallel.tp % 2)) {
    return {};
  }
  const Sites sites(plan);
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const int dp = sites.mesh.coordinates(place.rank).dp;
    const int anchor = embedding ? sites.first_rank(0, dp) : place.rank;
    if (embedding && fault == SumFault::dropped && !sites.embeds_across(dp)) continue;
    if (embedding && !result.empty() && result.back().ranks.front() == anchor) continue;
    const std::vector<int> group = sites.group(Axis::tp, anchor);
    const int layer = embedding ? -1 : place.layer;
    const Op op = embedding ? Op::embedding_reduce : Op::attention_reduce;
    int member = result.size() % 2 == 0 ? 0 : plan.parallel.tp - 1;
    while (embedding && !sites.embeds(dp, member)) member = (member + 1) % plan.parallel.tp;
    result.push_back(
        {.layer = layer,
         .ranks = group,
         .group = "tp",
         .tap = tap_name(layer, embedding ? TapKind::embedding : TapKind::attention_output),
         .causes = causes,
         .make = faulty_reduction({op, layer, group}, fault, member, plan.world(), plan.workload.microbatches)});
  }
  return result;
}

template <bool embedding, SumFault fault, int cause>
Instances reduction(const MutablePlan& plan, std::size_t limit) {
  static const std::vector<Causes> kCauses{{"reduction_dropped"},   {"reduced_twice", "counted_n_times"},
                                           {"partial_group"},       {"partial_sum_missing"},
                                           {"partial_sum_doubled"}, {"averaged"},
                                           {"wrong_reduction"}};
  return reductions(plan, limit, embedding, fault, kCauses[cause]);
}

Instances attention_wrong_axis(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  const Parallel& p = plan.parallel;
  bool even = true;
  for (int dp = 0; dp < p.dp; ++dp) {
    for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
      even = even && sites.tokens.rows({.dp = dp}, m).count() % p.tp == 0;
    }
  }
  if (p.tp < 2 || (p.sp && !even)) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    for (const Axis axis : {Axis::dp, Axis::ep, Axis::etp, Axis::edp}) {
      if (sites.mesh.degree(axis) != p.tp || sites.group(axis, place.rank) == sites.group(Axis::tp, place.rank))
        continue;
      const std::vector<int> ranks = sites.stage_ranks(sites.stage_of(place.layer));
      const Site site{.op = Op::attention_reduce, .layer = place.layer, .ranks = ranks};
      result.push_back({.layer = place.layer,
                        .ranks = ranks,
                        .group = std::string(to_string(axis)),
                        .tap = tap_name(place.layer, TapKind::attention_output),
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

/// Adds to every rank's partial sum of the attention's output.
template <class Add>
Mutation on_every_rank(const Sites& sites, const Place& place, const Add& add, std::string cause) {
  const std::vector<int> group = sites.group(Axis::tp, place.rank);
  const Site site{.op = Op::attention_reduce, .layer = place.layer, .ranks = group};
  const int world = sites.plan.world();
  return {.layer = place.layer,
          .ranks = group,
          .group = "tp",
          .tap = tap_name(place.layer, TapKind::attention_output),
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
              if (!is_call_of(call.tag, Op::embedding_reduce) && !is_call_of(call.tag, Op::stage_receive)) return;
              const std::span<double> out = output(call);
              std::vector<double>& stream = (*streams)[static_cast<std::size_t>(to_int(rank.id()))];
              stream.assign(out.begin(), out.end());
              ops::round_to<double>(stream, ops::Format::exact);
            };
          })};
}

Instances residual_on_every_rank(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.tp < 2 || plan.parallel.sp) return {};
  Instances result;
  for (const int stage : {0, plan.parallel.pp - 1}) {
    if (result.size() == limit || (!result.empty() && stage == 0)) continue;
    const Place place{static_cast<int>(sites.layers_of(stage).begin), sites.first_rank(stage, 0)};
    const auto add = [](std::span<double> partial, const std::vector<double>& stream) {
      for (std::size_t i = 0; i < partial.size() && i < stream.size(); ++i) partial[i] += stream[i];
    };
    result.push_back(on_every_rank(sites, place, add, "term_on_every_rank"));
  }
  return result;
}

Instances bias_on_every_rank(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.tp < 2) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const auto add = [](std::span<double> partial, const std::vector<double>&) {
      for (double& value : partial) value += 0.5;
    };
    result.push_back(on_every_rank(sites, place, add, "constant_offset"));
  }
  return result;
}

/// The gather of the rows over tp, under sequence parallelism, on one rank.
Instances gathers(const MutablePlan& plan, std::size_t limit, bool final, bool dropped) {
  const Sites sites(plan);
  if (!plan.parallel.sp) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const int layer = final ? -1 : place.layer;
    const int anchor =
        final ? sites.first_rank(plan.parallel.pp - 1, sites.mesh.coordinates(place.rank).dp) : place.rank;
    const std::vector<int> group = sites.group(Axis::tp, anchor);
    const int rank = result.size() % 2 == 0 ? group.front() : group.back();
    const Site site{.op = final ? Op::head_gather : Op::attention_gather,
                    .layer = layer,
                    .ranks = dropped ? group : std::vector{rank}};
    result.push_back({.layer = layer,
                      .ranks = site.ranks,
                      .group = "tp",
                      .tap = tap_name(layer, final ? TapKind::logits : TapKind::attention_q),
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
Instances gather_order(const MutablePlan& plan, std::size_t limit) {
  return gathers(plan, limit, false, false);
}
Instances gather_dropped(const MutablePlan& plan, std::size_t limit) {
  return gathers(plan, limit, false, true);
}
Instances head_gather_order(const MutablePlan& plan, std::size_t limit) {
  return gathers(plan, limit, true, false);
}

Instances scatter_order(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (!plan.parallel.sp) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const std::vector<int> group = sites.group(Axis::tp, place.rank);
    const Site site{.op = Op::attention_reduce, .layer = place.layer, .ranks = group};
    const int world = plan.world();
    result.push_back({.layer = place.layer,
                      .ranks = group,
                      .group = "tp",
                      .tap = tap_name(place.layer, TapKind::attention_output),
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
Instances microbatch_edit(const MutablePlan& plan, std::size_t limit) {
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
                      .tap = tap_name(layer, edit == Edit::merge ? TapKind::attention_context : TapKind::attention_q),
                      .causes = {edit == Edit::merge ? "sequence_boundaries" : "positions"},
                      .make = script([=](Script& made) {
                        made.microbatch = [=](const Rank& at, std::int64_t, RankTokens& given) {
                          if (to_int(at.id()) != rank) return;
                          if (edit == Edit::merge) given.offsets = {0, given.rows.count()};
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

constexpr MutationKind kAttentionKinds[] = {
    {"embedding_reduction_dropped", "the embedding's sum over tp is not taken", reduction<true, SumFault::dropped, 0>},
    {"embedding_reduction_doubled", "the embedding is reduced over tp twice", reduction<true, SumFault::repeated, 1>},
    {"embedding_partial_sum_missing", "one rank's part of the embedding is lost",
     reduction<true, SumFault::missing, 3>},
    {"sp_gather_order", "sequence-parallel chunks are gathered in the wrong order", gather_order},
    {"sp_gather_dropped", "sequence-parallel rows are not gathered", gather_dropped},
    {"positions_offset", "positions are one too high", microbatch_edit<Edit::offset>},
    {"positions_restarted", "positions restart inside a sequence", microbatch_edit<Edit::restart>},
    {"sequence_boundaries_ignored", "tokens attend across sequences", microbatch_edit<Edit::merge>},
    {"attention_reduction_dropped", "the attention's sum over tp is not taken", reduction<false, SumFault::dropped, 0>},
    {"attention_reduction_doubled", "the attention's output is reduced twice", reduction<false, SumFault::repeated, 1>},
    {"attention_partial_group", "the sum is over half of the tp group", reduction<false, SumFault::halves, 2>},
    {"attention_partial_sum_missing", "one rank's partial sum is lost", reduction<false, SumFault::missing, 3>},
    {"attention_partial_sum_doubled", "one rank's partial sum counts twice", reduction<false, SumFault::doubled, 4>},
    {"attention_averaged", "averaged over tp instead of summed", reduction<false, SumFault::averaged, 5>},
    {"attention_maximum", "the greatest partial sum instead of the sum", reduction<false, SumFault::maximum, 6>},
    {"attention_wrong_axis", "reduced over a group of another axis, whose ranks have other tokens",
     attention_wrong_axis},
    {"residual_on_every_rank", "the residual is added before the reduction: R + tp * S", residual_on_every_rank},
    {"bias_on_every_rank", "a row-parallel bias is added on every rank", bias_on_every_rank},
    {"sp_scatter_order", "sequence-parallel chunks are scattered in the wrong order", scatter_order},
    {"head_gather_order", "rows for the head are gathered in the wrong order", head_gather_order},
};

}  // namespace

std::span<const MutationKind> attention_kinds() {
  return kAttentionKinds;
}

}  // namespace shardproof::mutations
