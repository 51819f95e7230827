// Kinds in embedding and attention: sums and gathers over tp, positions, sequences.
#include <algorithm>

#include "emu/mutate/internal/script.h"
#include "emu/mutate/internal/sites.h"

namespace shardproof::mutations {
namespace {

using Instances = std::vector<Mutation>;

/// Without a member's partial sum, in every microbatch that shows it, every rank of the tp group has what it would have
/// had nothing been summed: its own. An embedding's rows are in the slice of one rank.
bool looks_unreduced(const Sites& sites, int rank, int member, bool embedding) {
  Coordinates at = sites.mesh.coordinates(rank);
  const Parallel& p = sites.plan.parallel;
  for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
    bool shows = false, differs = false;
    for (at.tp = 0; at.tp < p.tp; ++at.tp) {
      const TokenRows rows = sites.tokens.stream(at, m);
      shows = shows || (!embedding && rows.count() > 0);
      differs = differs || (!embedding && rows.count() > 0 && (p.tp > 2 || at.tp == member));
      for (const std::int32_t id : embedding ? sites.batch.tokens(rows) : std::vector<std::int32_t>()) {
        const auto is_held = [&](int tp) {
          const Range held = vocabulary_of(sites.plan.model, p, tp);
          return id >= held.begin && id < held.end();
        };
        shows = shows || is_held(member);
        differs = differs || is_held(member) == is_held(at.tp);
      }
    }
    if (shows && differs) return false;
  }
  return true;
}

/// A sum over tp after an op: one instance for each place, its member alternating between first and last.
template <Op op, SumFault fault>
Instances reduction(const MutablePlan& plan, std::size_t limit) {
  static_assert(op == Op::embedding_reduce || op == Op::attention_reduce || op == Op::mlp_reduce);
  constexpr bool kEmbedding = op == Op::embedding_reduce;
  constexpr TapKind kTap = kEmbedding             ? TapKind::embedding
                           : op == Op::mlp_reduce ? TapKind::mlp_output
                                                  : TapKind::attention_output;
  if (plan.parallel.tp < (fault == SumFault::halves ? 4 : 2) || (fault == SumFault::halves && plan.parallel.tp % 2)) {
    return {};
  }
  const Sites sites(plan);
  Instances result;
  for (const Place& place : op == Op::mlp_reduce ? sites.mlp_places(limit) : sites.places(limit)) {
    const int dp = sites.mesh.coordinates(place.rank).dp;
    const int anchor = kEmbedding ? sites.first_rank({.dp = dp}) : place.rank;
    if (kEmbedding && fault == SumFault::dropped && !sites.embeds_across(dp)) continue;
    if (kEmbedding && !result.empty() && result.back().ranks.front() == anchor) continue;
    const std::vector<int> group = sites.group(Axis::tp, anchor);
    const int layer = kEmbedding ? -1 : place.layer;
    int member = result.size() % 2 == 0 ? 0 : plan.parallel.tp - 1;
    while (kEmbedding && !sites.embeds({.tp = member, .dp = dp})) member = (member + 1) % plan.parallel.tp;
    result.push_back({.layer = layer,
                      .ranks = group,
                      .group = "tp",
                      .tap = tap_name(layer, kTap),
                      .causes = causes_of(fault),
                      .make = faulty_reduction(plan, {op, layer, group}, fault, member)});
    if (fault == SumFault::missing && looks_unreduced(sites, anchor, member, kEmbedding)) {
      result.back().causes.emplace_back("reduction_dropped");
    }
    // Of two ranks one may hold every token's row: then its partial sum is the sum.
    if (kEmbedding && fault == SumFault::repeated && plan.parallel.tp == 2) {
      result.back().causes.emplace_back("partial_sum_doubled");
    }
  }
  return result;
}

Instances attention_wrong_axis(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  const Parallel& p = plan.parallel;
  bool even = true;
  for (int dp = 0; dp < p.dp; ++dp) {
    for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
      for (int cp = 0; cp < p.cp; ++cp) even = even && sites.tokens.rows({.cp = cp, .dp = dp}, m).count() % p.tp == 0;
    }
  }
  if (p.tp < 2 || (p.sp && !even)) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    for (const Axis axis : {Axis::dp, Axis::cp, Axis::ep, Axis::etp, Axis::edp}) {
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
                            if (site.matches(rank, call)) redirect(call, rank.on(axis));
                            return true;
                          };
                        })});
      break;
    }
  }
  return result;
}

/// Two microbatches may be under way at once.
std::size_t stream_of(const Rank& rank, const internal::Call& call) {
  return 2 * static_cast<std::size_t>(to_int(rank.id())) + static_cast<std::size_t>(call.tag.microbatch % 2);
}

/// Adds to every rank's partial sum of the attention's output.
template <class Add>
Mutation on_every_rank(const Sites& sites, const Place& place, const Add& add, std::string cause) {
  const std::vector<int> group = sites.group(Axis::tp, place.rank);
  const Site site{.op = Op::attention_reduce, .layer = place.layer, .ranks = group};
  const int world = sites.plan.world();
  const double multiplier = sites.plan.model.embedding_multiplier;
  return {.layer = place.layer,
          .ranks = group,
          .group = "tp",
          .tap = tap_name(place.layer, TapKind::attention_output),
          .causes = {std::move(cause)},
          .make = script([=](Script& made) {
            const Buffers buffers = make_buffers(world);
            const Buffers streams = make_buffers(world);
            made.before = [=](const Rank& rank, internal::Call& call) {
              if (site.matches(rank, call)) {
                edit_input(rank, call, buffers,
                           [&](std::span<double> partial) { add(partial, (*streams)[stream_of(rank, call)]); });
              }
              return true;
            };
            // The stream that enters the stage: the embedding, or what the stage before has sent.
            made.after = [=](const Rank& rank, internal::Call& call) {
              if (!is_call_of(call.tag, Op::embedding_reduce) && !is_call_of(call.tag, Op::stage_receive)) return;
              std::vector<double>& stream = (*streams)[stream_of(rank, call)];
              stream = output(call);
              if (call.type == ElementType::f64) ops::round_to<double>(stream, ops::Format::exact);
              if (!is_call_of(call.tag, Op::embedding_reduce) || multiplier == 1) return;
              for (double& value : stream) value *= multiplier;
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
    const Place place{static_cast<int>(sites.layers_of(stage).begin), sites.first_rank({.pp = stage})};
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

/// What is projected first of a layer's normed rows.
TapKind first_projected(const AttentionSpec& spec) {
  if (spec.q_lora_rank > 0) return TapKind::attention_q_latent;
  return spec.latent() ? TapKind::attention_kv_latent : TapKind::attention_q;
}

/// The tokens of a tp group are the same with the ranks' rows in reverse: what is made of each alone, the embedding,
/// is.
bool reads_alike_in_reverse(const Sites& sites, int rank) {
  Coordinates at = sites.mesh.coordinates(rank);
  for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
    std::vector<std::int32_t> ids, reversed;
    for (at.tp = 0; at.tp < sites.plan.parallel.tp; ++at.tp) {
      const std::vector<std::int32_t> own = sites.batch.tokens(sites.tokens.stream(at, m));
      ids.insert(ids.end(), own.begin(), own.end());
      reversed.insert(reversed.begin(), own.begin(), own.end());
    }
    if (ids != reversed) return false;
  }
  return true;
}

/// The gather of the rows over tp, under sequence parallelism.
template <Op op, GatherFault fault>
Instances gather(const MutablePlan& plan, std::size_t limit) {
  static_assert(op == Op::head_gather || op == Op::attention_gather);
  constexpr bool kHead = op == Op::head_gather;
  const Sites sites(plan);
  if (!plan.parallel.sp) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const int layer = kHead ? -1 : place.layer;
    const int anchor = kHead
                           ? sites.first_rank({.dp = sites.mesh.coordinates(place.rank).dp, .pp = plan.parallel.pp - 1})
                           : place.rank;
    if (fault == GatherFault::reversed && layer == 0 && reads_alike_in_reverse(sites, anchor)) continue;
    const std::vector<int> group = sites.group(Axis::tp, anchor);
    const int rank = result.size() % 2 == 0 ? group.front() : group.back();
    const Site site{.op = op, .layer = layer, .ranks = fault == GatherFault::dropped ? group : std::vector{rank}};
    result.push_back(
        {.layer = layer,
         .ranks = site.ranks,
         .group = "tp",
         .tap = tap_name(layer, kHead ? TapKind::logits : first_projected(plan.model.layers[layer].attention)),
         .causes = causes_of(fault),
         .make = faulty_gather(site, fault)});
    if (kHead) break;
  }
  return result;
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
                          if (!site.matches(rank, call)) return true;
                          edit_input(rank, call, buffers,
                                     [&](std::span<double> rows) { reverse_chunks(rows, call.counts); });
                          return true;
                        };
                      })});
  }
  return result;
}

/// Norms of queries and keys over all heads, of the squares that a rank has itself.
Instances norm_over_slice(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.tp < 2) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    if (plan.model.layers[place.layer].attention.query_key_norm != QueryKeyNorm::full) continue;
    const std::vector<int> group = sites.group(Axis::tp, place.rank);
    result.push_back(
        {.layer = place.layer,
         .ranks = group,
         .group = "tp",
         .tap = tap_name(place.layer, TapKind::attention_q),
         .causes = {"norm_over_slice"},
         .make = faulty_reduction(plan, {Op::attention_squares_reduce, place.layer, group}, SumFault::dropped, 0)});
  }
  return result;
}

enum class Edit { offset, restart, merge };

template <Edit edit>
Instances microbatch_edit(const MutablePlan& plan, std::size_t limit) {
  // Where there is a cache, sequences lie in tables; where they are spread over cp, in pieces.
  if (edit == Edit::merge && (plan.workload.serving || plan.parallel.cp > 1)) return {};
  const Sites sites(plan);
  const std::int64_t longest = *std::ranges::max_element(plan.workload.lengths);
  Instances result;
  for (const int stage : {0, plan.parallel.pp - 1}) {
    if (result.size() == limit || (!result.empty() && stage == 0)) continue;
    const std::vector<int> group = sites.group(Axis::tp, sites.first_rank({.pp = stage}));
    const int rank = result.empty() ? group.front() : group.back();
    const int layer = static_cast<int>(sites.layers_of(stage).begin);
    // What is merged may lie beyond a window.
    if (edit == Edit::merge && plan.model.layers[layer].attention.sliding_window > 0) continue;
    result.push_back({.layer = layer,
                      .ranks = {rank},
                      .tap = tap_name(layer, edit == Edit::merge ? TapKind::attention_context : TapKind::attention_q),
                      .causes = {edit == Edit::merge ? "sequence_boundaries" : "positions"},
                      .make = script([=](Script& made) {
                        made.microbatch = [=](const Rank& at, std::int64_t, RankTokens& given) {
                          if (to_int(at.id()) != rank) return;
                          if (edit == Edit::merge) given.offsets = {0, given.rows.count()};
                          const std::int64_t half =
                              given.positions.empty() ? 0 : (*std::ranges::max_element(given.positions) + 1) / 2;
                          for (std::int64_t& position : given.positions) {
                            if (edit == Edit::offset) position = std::min(position + 1, longest - 1);
                            if (edit == Edit::restart && position >= half) position -= half;
                          }
                        };
                      })});
  }
  return result;
}

/// Partial sums that are all-reduced and then reduced and scattered: tp times the sum.
Instances all_reduce_before_scatter(const MutablePlan& plan, std::size_t limit) {
  return plan.parallel.sp ? reduction<Op::attention_reduce, SumFault::repeated>(plan, limit) : Instances{};
}

/// Some rank may have no token but the first of a sequence: over cp that of a piece, unless there is a last one.
bool has_one_token_sequences(const Plan& plan) {
  return std::ranges::min(plan.workload.lengths) < std::int64_t{2} * plan.parallel.cp;
}

/// Some replica has no two sequences in a microbatch, and so no boundary to ignore.
bool has_no_boundary(const Plan& plan) {
  const TokenMap tokens(plan.parallel, plan.workload);
  for (int dp = 0; dp < plan.parallel.dp; ++dp) {
    bool none = true;
    for (std::int64_t m = 0; m < tokens.microbatches(); ++m) none = none && tokens.chunks(dp, m).size() < 2;
    if (none) return true;
  }
  return false;
}

constexpr MutationKind kAttentionKinds[] = {
    {"embedding_reduction_dropped", "the embedding's sum over tp is not taken",
     reduction<Op::embedding_reduce, SumFault::dropped>},
    {"embedding_reduction_doubled", "the embedding is reduced over tp twice",
     reduction<Op::embedding_reduce, SumFault::repeated>},
    {"embedding_partial_sum_missing", "one rank's part of the embedding is lost",
     reduction<Op::embedding_reduce, SumFault::missing>},
    {"sp_gather_order", "sequence-parallel chunks are gathered in the wrong order",
     gather<Op::attention_gather, GatherFault::reversed>, MutationClass::sharding, may_have_one_row},
    {"sp_gather_dropped", "sequence-parallel rows are not gathered",
     gather<Op::attention_gather, GatherFault::dropped>},
    {"query_key_norm_over_slice", "queries and keys are normed over a rank's heads, not over all", norm_over_slice},
    {"positions_offset", "positions are one too high", microbatch_edit<Edit::offset>, MutationClass::sharding,
     has_one_token_sequences},
    {"positions_restarted", "positions restart inside a sequence", microbatch_edit<Edit::restart>,
     MutationClass::sharding, has_one_token_sequences},
    {"sequence_boundaries_ignored", "tokens attend across sequences", microbatch_edit<Edit::merge>,
     MutationClass::sharding, has_no_boundary},
    {"attention_reduction_dropped", "the attention's sum over tp is not taken",
     reduction<Op::attention_reduce, SumFault::dropped>},
    {"attention_reduction_doubled", "the attention's output is reduced twice",
     reduction<Op::attention_reduce, SumFault::repeated>},
    {"all_reduce_before_scatter", "the attention's output is all-reduced, then reduced and scattered",
     all_reduce_before_scatter},
    {"attention_partial_group", "the sum is over half of the tp group",
     reduction<Op::attention_reduce, SumFault::halves>},
    {"attention_partial_sum_missing", "one rank's partial sum is lost",
     reduction<Op::attention_reduce, SumFault::missing>},
    {"attention_partial_sum_doubled", "one rank's partial sum counts twice",
     reduction<Op::attention_reduce, SumFault::doubled>},
    {"attention_averaged", "averaged over tp instead of summed", reduction<Op::attention_reduce, SumFault::averaged>},
    {"attention_maximum", "the greatest partial sum instead of the sum",
     reduction<Op::attention_reduce, SumFault::maximum>},
    {"attention_wrong_axis", "reduced over a group of another axis, whose ranks have other tokens",
     attention_wrong_axis},
    {"residual_on_every_rank", "the residual is added before the reduction: R + tp * S", residual_on_every_rank},
    {"bias_on_every_rank", "a row-parallel bias is added on every rank", bias_on_every_rank},
    {"mlp_reduction_dropped", "the sum over tp of a dense layer's MLP, or of the shared experts, is not taken",
     reduction<Op::mlp_reduce, SumFault::dropped>},
    {"mlp_reduction_doubled", "a dense layer's MLP, or the shared experts, are reduced over tp twice",
     reduction<Op::mlp_reduce, SumFault::repeated>},
    {"mlp_partial_sum_missing", "one rank's partial sum of the MLP for all tokens is lost",
     reduction<Op::mlp_reduce, SumFault::missing>},
    {"mlp_partial_sum_doubled", "one rank's partial sum of the MLP for all tokens counts twice",
     reduction<Op::mlp_reduce, SumFault::doubled>},
    {"mlp_averaged", "the MLP for all tokens is averaged over tp instead of summed",
     reduction<Op::mlp_reduce, SumFault::averaged>},
    {"sp_scatter_order", "sequence-parallel chunks are scattered in the wrong order", scatter_order,
     MutationClass::sharding, may_have_one_row},
    {"head_gather_order", "rows for the head are gathered in the wrong order",
     gather<Op::head_gather, GatherFault::reversed>, MutationClass::sharding, may_have_one_row},
};

}  // namespace

std::span<const MutationKind> attention_kinds() {
  return kAttentionKinds;
}

}  // namespace shardproof::mutations
