// Kinds in context parallelism: who holds which piece of a sequence, the mask of a step of the ring, and the merge,
// also of decode context parallelism.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "emu/mutate/internal/script.h"
#include "emu/mutate/internal/sites.h"
#include "emu/plan/key_spans.h"

namespace shardproof::mutations {
namespace {

using Instances = std::vector<Mutation>;

/// A rank of cp, and another member of its ring (or the same) whose keys it attends to.
struct Step {
  int rank = 0;
  int keys_of = 0;
  const char* axis = "cp";
};

/// Pairs of a query and a key, in the microbatches of a rank: that the mask leaves, and all in the same sequences.
struct Pairs {
  double seen = 0;
  double all = 0;
};

/// What the rank has queries of, and what of the same chunks a member of its ring has keys of.
struct Sides {
  std::vector<Chunk> queries, keys;
};
Sides sides_of(const Sites& sites, const Coordinates& at, std::int64_t microbatch, int keys_of) {
  const RankTokens tokens = sites.tokens.rank_shapes(at, microbatch);
  const int dealt = sites.plan.parallel.heads_dealt();
  return {tokens.of_member(at.cp / dealt, dealt), tokens.of_member(keys_of, dealt)};
}

Pairs pairs_of(const Sites& sites, const Coordinates& at, int keys_of) {
  Pairs pairs;
  for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
    const auto [queries, keys] = sides_of(sites, at, m, keys_of);
    pairs.seen += pairs_between(queries, keys);
    for (const Chunk& query : queries) {
      for (const Chunk& key : keys) {
        if (query.sequence == key.sequence) pairs.all += static_cast<double>(query.count * key.count);
      }
    }
  }
  return pairs;
}

/// Over dcp, where a query sees some of that rank's keys and some of another's, and the first of a sequence sees those
/// of rank 0 alone.
std::vector<std::pair<int, Step>> dcp_steps(const Sites& sites, std::size_t limit, int keys_of) {
  std::vector<std::pair<int, Step>> result;
  const Parallel& p = sites.plan.parallel;
  if (p.in_ring() || p.key_parts(sites.plan.model.layers[0].attention.latent()) == 0) return result;
  for (const Place& place : sites.places(5)) {
    const Range held = sites.tokens.sequences(sites.mesh.coordinates(place.rank).dp);
    bool mixed = false;
    for (std::int64_t s = held.begin; s < held.end(); ++s) {
      mixed = mixed || sites.plan.workload.lengths[static_cast<std::size_t>(s)] > p.dcp_interleave;
    }
    if (mixed && result.size() < limit) {
      const std::vector<int> group = sites.group(Axis::dcp, place.rank);
      result.emplace_back(place.layer, Step{result.empty() ? group.front() : group.back(), keys_of, "dcp"});
    }
  }
  return result;
}

/// Where the rank's queries see as much of the other's keys as `wanted` asks; each place's ranks of cp are tried in
/// turn; over dcp, dcp_steps() with the keys of rank `of_dcp`.
template <class Wanted>
std::vector<std::pair<int, Step>> steps(const Sites& sites, std::size_t limit, const Wanted& wanted, int of_dcp) {
  std::vector<std::pair<int, Step>> result;
  const int ranks = sites.plan.parallel.ring(), dealt = sites.plan.parallel.heads_dealt();
  if (!sites.plan.parallel.in_ring()) return dcp_steps(sites, limit, of_dcp);
  for (const Place& place : sites.places(5)) {
    const auto first = static_cast<int>(result.size());
    bool found = false;
    for (int i = 0; i < ranks * ranks && !found && result.size() < limit; ++i) {
      Coordinates at = sites.mesh.coordinates(place.rank);
      const int member = (i / ranks + first) % ranks, keys_of = (member + 1 + i) % ranks;
      at.cp = member * dealt;
      found = wanted(at, keys_of, pairs_of(sites, at, keys_of));
      if (found) result.emplace_back(place.layer, Step{sites.mesh.rank_at(at), keys_of});
    }
  }
  return result;
}

Mutation in_context(int layer, std::vector<int> ranks, std::string cause,
                    std::function<std::unique_ptr<FaultInjector>()> make) {
  return {.layer = layer,
          .ranks = std::move(ranks),
          .group = "cp",
          .tap = tap_name(layer, TapKind::attention_context),
          .causes = {std::move(cause)},
          .make = std::move(make)};
}

/// The keys of one rank are attended to without a mask. Believed from the first layer of its stage on.
Instances ring_mask_off(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  Instances result;
  if (!plan.parallel.in_ring()) return result;
  const int dealt = plan.parallel.heads_dealt();
  const auto hides = [](const Coordinates&, int, const Pairs& pairs) { return pairs.seen < pairs.all; };
  for (const auto& [at_layer, step] : steps(sites, limit, hides, 0)) {
    const int layer = static_cast<int>(sites.layers_of(sites.stage_of(at_layer)).begin);
    if (std::ranges::any_of(result, [rank = step.rank](const Mutation& m) { return m.ranks.front() == rank; }))
      continue;
    result.push_back(in_context(layer, {step.rank}, "ring_mask", script([step = step, dealt](Script& made) {
                                  made.microbatch = [=](const Rank& at, std::int64_t, RankTokens& given) {
                                    if (to_int(at.id()) != step.rank) return;
                                    // As if they lay before every query.
                                    for (int held = 0; held < dealt; ++held) {
                                      const auto cp = static_cast<std::size_t>(step.keys_of * dealt + held);
                                      for (Chunk& piece : given.shares[cp]) piece.begin = -piece.count;
                                    }
                                  };
                                })));
  }
  return result;
}

/// What a rank does with the part that one rank's keys give, before it is merged: of `exact`, whose parts are
/// numerators and denominators, and of the float formats, which have contexts and the logs of the denominators.
struct PartEdit {
  void (*exact)(ops::MatrixView<double> numerator, ops::MatrixView<double> denominator);
  void (*in_float)(ops::MatrixView<float> context, ops::MatrixView<float> lse);
};

Mutation edited_part(int layer, const Step& step, const std::string& cause, const PartEdit& edit) {
  Mutation mutation = in_context(
      layer, {step.rank}, cause, script([=](Script& made) {
        const auto here = [=](const Rank& at, const FaultSite& site, int keys_of) {
          return to_int(at.id()) == step.rank && site.layer == layer && (step.keys_of < 0 || keys_of == step.keys_of);
        };
        made.double_part = [=](const Rank& at, const FaultSite& site, int keys_of, ops::MatrixView<double> numerator,
                               ops::MatrixView<double> denominator) {
          if (here(at, site, keys_of)) edit.exact(numerator, denominator);
        };
        made.float_part = [=](const Rank& at, const FaultSite& site, int keys_of, ops::MatrixView<float> context,
                              ops::MatrixView<float> lse) {
          if (here(at, site, keys_of)) edit.in_float(context, lse);
        };
      }));
  mutation.group = step.axis;
  return mutation;
}

void scale_part(ops::MatrixView<double> numerator, ops::MatrixView<double> denominator, double factor) {
  for (double& value : numerator.span()) value *= factor;
  for (double& value : denominator.span()) value *= factor;
}

/// Of so many times the part.
void add_to_lse(ops::MatrixView<float> lse, double log_of_factor) {
  for (float& value : lse.span()) value += static_cast<float>(log_of_factor);
}

constexpr double kNoKeys = -std::numeric_limits<double>::infinity();

Instances part_missing(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  Instances result;
  const auto sees = [](const Coordinates&, int, const Pairs& pairs) { return pairs.seen > 0; };
  for (const auto& [layer, step] : steps(sites, limit, sees, 0)) {
    result.push_back(edited_part(layer, step, "keys_missing",
                                 {[](auto numerator, auto denominator) { scale_part(numerator, denominator, 0); },
                                  [](auto, auto lse) { add_to_lse(lse, kNoKeys); }}));
  }
  return result;
}

/// A query that sees keys of the rank and of another.
bool mixes(const Sites& sites, const Coordinates& at, int keys_of, const Pairs& pairs) {
  if (pairs.seen == 0) return false;
  for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
    const auto [queries, keys] = sides_of(sites, at, m, keys_of);
    for (const Chunk& piece : queries) {
      const Chunk last{piece.sequence, piece.end() - 1, 1};
      const double seen = pairs_between(std::span(&last, 1), keys);
      if (seen > 0 && seen < static_cast<double>(piece.end())) return true;
    }
  }
  return false;
}

Instances part_merged_twice(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  Instances result;
  const auto shows = [&](const Coordinates& at, int keys_of, const Pairs& pairs) {
    return mixes(sites, at, keys_of, pairs);
  };
  for (const auto& [layer, step] : steps(sites, limit, shows, 0)) {
    result.push_back(edited_part(layer, step, "keys_counted_twice",
                                 {[](auto numerator, auto denominator) { scale_part(numerator, denominator, 2); },
                                  [](auto, auto lse) { add_to_lse(lse, std::numbers::ln2); }}));
  }
  return result;
}

/// Every part that has keys counts as much as another.
void weigh_alike(ops::MatrixView<double> numerator, ops::MatrixView<double> denominator) {
  const std::int64_t width = numerator.cols / denominator.cols;
  for (std::int64_t row = 0; row < numerator.rows; ++row) {
    for (std::int64_t col = 0; col < numerator.cols; ++col) {
      const double sum = denominator(row, col / width);
      if (sum > 0) numerator(row, col) /= sum;
    }
    for (double& sum : denominator.row(row)) sum = sum > 0 ? 1 : 0;
  }
}
void weigh_contexts_alike(ops::MatrixView<float> /*context*/, ops::MatrixView<float> lse) {
  for (float& value : lse.span()) value = std::isinf(value) ? value : 0;
}

Instances lse_not_merged(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  Instances result;
  const auto shows = [&](const Coordinates& at, int keys_of, const Pairs& pairs) {
    return mixes(sites, at, keys_of, pairs);
  };
  for (const auto& [layer, step] : steps(sites, limit, shows, 0)) {
    result.push_back(edited_part(layer, {step.rank, -1}, "parts_not_weighed", {weigh_alike, weigh_contexts_alike}));
  }
  return result;
}

/// exp(-infinity - -infinity) of no key.
void number_of_no_key(ops::MatrixView<double> numerator, ops::MatrixView<double> denominator) {
  for (std::int64_t row = 0; row < numerator.rows; ++row) {
    if (denominator(row, 0) > 0) continue;
    std::ranges::fill(numerator.row(row), std::numeric_limits<double>::quiet_NaN());
    std::ranges::fill(denominator.row(row), std::numeric_limits<double>::quiet_NaN());
  }
}
void context_of_no_key(ops::MatrixView<float> context, ops::MatrixView<float> lse) {
  for (std::int64_t row = 0; row < lse.rows; ++row) {
    if (!std::isinf(lse(row, 0))) continue;
    std::ranges::fill(context.row(row), std::numeric_limits<float>::quiet_NaN());
    std::ranges::fill(lse.row(row), std::numeric_limits<float>::quiet_NaN());
  }
}

Instances no_key_is_nan(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  Instances result;
  const auto hides = [&](const Coordinates& at, int keys_of, const Pairs&) {
    for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
      const auto [queries, keys] = sides_of(sites, at, m, keys_of);
      for (const KeySpan& span : key_spans(queries, keys)) {
        if (span.queries > 0 && span.keys == 0) return true;
      }
    }
    return false;
  };
  for (const auto& [layer, step] : steps(sites, limit, hides, 1)) {
    result.push_back(edited_part(layer, step, "nan_of_no_key", {number_of_no_key, context_of_no_key}));
  }
  return result;
}

/// As many tokens of each chunk as every rank of cp has of it, as if they lay in one piece, rank after rank.
std::vector<std::vector<Chunk>> contiguous(const RankTokens& tokens) {
  std::vector<std::vector<Chunk>> shares(tokens.shares.size());
  for (const Chunk& chunk : tokens.chunks) {
    std::int64_t begin = chunk.begin;
    for (std::size_t cp = 0; cp < shares.size(); ++cp) {
      std::int64_t count = 0;
      for (const Chunk& piece : tokens.shares[cp]) count += piece.sequence == chunk.sequence ? piece.count : 0;
      if (count > 0) shares[cp].push_back({chunk.sequence, begin, count});
      begin += count;
    }
  }
  return shares;
}

/// A microbatch of the replica in which zig-zag is something else than contiguous shares.
bool deals_in_zig_zag(const Sites& sites, Coordinates at) {
  for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
    const RankTokens tokens = sites.tokens.rank_shapes(at, m);
    const auto shares = contiguous(tokens);
    for (std::size_t cp = 0; cp < shares.size(); ++cp) {
      if (pairs_between(shares[cp], shares[cp]) != pairs_between(tokens.shares[cp], tokens.shares[cp])) return true;
      for (const Chunk& piece : tokens.shares[cp]) {
        const auto same = [&](const Chunk& other) {
          return other.sequence == piece.sequence && other.begin <= piece.begin && other.end() >= piece.end();
        };
        if (std::ranges::none_of(shares[cp], same)) return true;
      }
    }
  }
  return false;
}

/// First stage on the first replica, last stage on the last.
std::vector<Coordinates> cp_groups(const Sites& sites, std::size_t limit) {
  std::vector<Coordinates> result;
  if (sites.plan.parallel.cp < 2) return result;
  for (const Coordinates& at :
       {Coordinates{}, Coordinates{.dp = sites.last_busy_dp(), .pp = sites.plan.parallel.pp - 1}}) {
    if (result.size() == limit || (!result.empty() && result.front() == at)) continue;
    if (deals_in_zig_zag(sites, at)) result.push_back(at);
  }
  return result;
}

enum class Belief { positions, chunks };

template <Belief belief>
Instances contiguous_shares(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  Instances result;
  for (const Coordinates& at : cp_groups(sites, limit)) {
    // Every rank of the replica's stage.
    std::vector<int> ranks;
    for (const int rank : sites.stage_ranks(at.pp)) {
      if (sites.mesh.coordinates(rank).dp == at.dp) ranks.push_back(rank);
    }
    const int layer = static_cast<int>(sites.layers_of(at.pp).begin);
    // Where the shares differ may lie beyond a window.
    if (belief == Belief::chunks && plan.model.layers[layer].attention.sliding_window > 0) continue;
    Mutation mutation =
        in_context(layer, ranks, belief == Belief::positions ? "positions" : "cp_order", script([=](Script& made) {
                     made.microbatch = [=](const Rank& rank, std::int64_t, RankTokens& given) {
                       if (!among(ranks, rank)) return;
                       const auto me = static_cast<std::size_t>(rank.at().cp);
                       const auto shares = contiguous(given);
                       if (belief == Belief::chunks) {
                         given.pieces = shares[me];
                         given.shares = shares;
                         return;
                       }
                       auto position = given.positions.begin();
                       for (const Chunk& piece : shares[me]) {
                         std::iota(position, position + piece.count, piece.begin);
                         position += piece.count;
                       }
                     };
                   }));
    if (belief == Belief::positions) mutation.tap = tap_name(layer, TapKind::attention_q);
    result.push_back(std::move(mutation));
  }
  return result;
}

/// Chunks of one token: a step of the ring hides a single key of a query, which may weigh nothing beside the others.
bool may_hide_one_key(const Plan& plan) {
  const std::int64_t chunks = 2 * plan.parallel.ring();
  return std::ranges::any_of(plan.workload.lengths, [&](std::int64_t length) { return length <= chunks; });
}

constexpr MutationKind kCpKinds[] = {
    {"cp_ring_mask_off", "a step of the ring attends to keys behind the query", ring_mask_off, MutationClass::sharding,
     may_hide_one_key},
    {"cp_part_missing", "what one rank's keys give is not merged", part_missing},
    {"cp_part_merged_twice", "what one rank's keys give is merged twice", part_merged_twice},
    {"cp_lse_not_merged", "what the ranks' keys give is averaged, not weighed by its sums", lse_not_merged},
    {"cp_no_key_is_nan", "a query without a key of some rank makes it no number", no_key_is_nan},
    {"cp_positions_contiguous", "positions are those of contiguous shares, not of zig-zag",
     contiguous_shares<Belief::positions>},
    {"cp_chunks_contiguous", "attention takes the shares of zig-zag for contiguous ones",
     contiguous_shares<Belief::chunks>},
};

}  // namespace

std::span<const MutationKind> cp_kinds() {
  return kCpKinds;
}

}  // namespace shardproof::mutations
