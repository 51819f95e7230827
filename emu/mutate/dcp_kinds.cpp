// Kinds in decode context parallelism: who keeps which token of a sequence, and the group that exchanges what each
// rank's keys give.
#include <algorithm>
#include <optional>

#include "emu/mutate/internal/script.h"
#include "emu/mutate/internal/sites.h"
#include "emu/plan/cache_share.h"

namespace shardproof::mutations {
namespace {

using Instances = std::vector<Mutation>;

/// First stage on the first replica, last stage on the last, where there is dcp.
std::vector<Coordinates> dcp_groups(const Sites& sites, std::size_t limit) {
  const Parallel& p = sites.plan.parallel;
  std::vector<Coordinates> result;
  if (p.dcp < 2 || !sites.plan.workload.serving) return result;
  for (const Coordinates& at : {Coordinates{}, Coordinates{.dp = sites.last_busy_dp(), .pp = p.pp - 1}}) {
    if (result.size() < limit && (result.empty() || result.front() != at)) result.push_back(at);
  }
  return result;
}

/// The share that a rank takes for its own in place of the right one.
using WrongShare = std::optional<CacheShare> (*)(const Parallel& parallel, std::int64_t block_size, int rank);

/// The next rank's.
std::optional<CacheShare> next_share(const Parallel& parallel, std::int64_t, int rank) {
  return CacheShare{parallel.dcp, parallel.dcp_interleave, (rank + 1) % parallel.dcp};
}

/// Of whole blocks in turn where it is of fewer tokens, and of single tokens where it is of blocks.
std::optional<CacheShare> share_of_other_interleave(const Parallel& parallel, std::int64_t block_size, int rank) {
  const std::int64_t other = parallel.dcp_interleave == block_size ? 1 : block_size;
  if (other == parallel.dcp_interleave) return std::nullopt;
  return CacheShare{parallel.dcp, other, rank};
}

/// A sequence of the replica of which the shares keep different tokens. Of latents of tokens in the plain form, which
/// are gathered: where one that the rank should keep stands another, whatever it keeps besides.
bool shows(const Sites& sites, const Coordinates& at, const CacheShare& right, const CacheShare& wrong, bool latent) {
  const Range held = sites.tokens.sequences(at.dp);
  for (std::int64_t s = held.begin; s < held.end(); ++s) {
    const std::int64_t length = sites.plan.workload.lengths[static_cast<std::size_t>(s)];
    const std::int64_t plain = latent ? sites.tokens.plain_of({.sequence = s, .begin = 0, .count = length}) : 0;
    for (std::int64_t token = 0; token < length; ++token) {
      if (plain < length && right.owns(token) != wrong.owns(token)) return true;
      if (token < plain && right.owns(token) && wrong.token_at(right.place_of(token)) != token) return true;
    }
  }
  return false;
}

template <WrongShare wrong_share>
Instances wrong_owner(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  Instances result;
  for (const Coordinates& at : dcp_groups(sites, limit)) {
    const int rank = sites.first_rank(at), place = sites.mesh.coordinates(rank).dcp;
    const auto wrong = wrong_share(plan.parallel, plan.workload.serving->kv_block_size, place);
    const int layer = static_cast<int>(sites.layers_of(at.pp).begin);
    const bool latent = plan.model.layers[layer].attention.latent();
    if (!wrong || !shows(sites, at, {plan.parallel.dcp, plan.parallel.dcp_interleave, place}, *wrong, latent)) continue;
    // Where latents are gathered, a rank may also have kept fewer than the others take from it.
    result.push_back({.layer = layer,
                      .ranks = sites.group(Axis::dcp, rank),
                      .group = "dcp",
                      .tap = tap_name(layer, TapKind::attention_context),
                      .causes = {"dcp_owner", "cache_unwritten"},
                      .make = script([=](Script& made) {
                        made.cache = [=](const Rank& of, std::int64_t, CachedPass& pass) {
                          if (to_int(of.id()) != rank) return;
                          pass.share = *wrong;
                          for (CachedSequence& sequence : pass.sequences) {
                            sequence.slots = slots_of(sequence.chunk, sequence.blocks, pass.block_size, *wrong);
                          }
                        };
                      })});
  }
  return result;
}

/// A pass of the replica in which what a rank sends, so many columns a head, can be dealt out over tp.
std::optional<std::int64_t> dealt_over_tp(const Sites& sites, const Coordinates& at, std::int64_t columns) {
  const Parallel& p = sites.plan.parallel;
  for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
    const std::int64_t count = p.dcp * sites.tokens.rows(at, m).count() * columns;
    if (count > 0 && count % p.tp == 0) return m;
  }
  return std::nullopt;
}

/// In one pass all ranks of a tp group exchange over it what those of a dcp group should among themselves.
template <Op op>
Instances over_tp(const MutablePlan& plan, std::size_t limit) {
  static_assert(op == Op::attention_dcp_context || op == Op::attention_dcp_sums);
  const Sites sites(plan);
  const Parallel& p = plan.parallel;
  Instances result;
  if (p.tp == p.dcp) return result;
  for (const Coordinates& at : dcp_groups(sites, limit)) {
    const int layer = static_cast<int>(sites.layers_of(at.pp).begin), rank = sites.first_rank(at);
    const AttentionSpec& spec = plan.model.layers[layer].attention;
    if (p.key_parts(spec.latent()) == 0) continue;
    const std::int64_t heads = make_layout(plan.model, sites.mesh, rank).layer(plan.model, layer).heads.count;
    const auto pass = dealt_over_tp(sites, at, op == Op::attention_dcp_sums ? heads : heads * spec.value_dim());
    if (!pass) continue;
    const Site site{
        .op = op, .layer = layer, .ranks = sites.group(Axis::tp, rank), .microbatch = static_cast<int>(*pass)};
    result.push_back({.layer = layer,
                      .ranks = site.ranks,
                      .group = "dcp",
                      .microbatch = site.microbatch,
                      .tap = tap_name(layer, TapKind::attention_context),
                      .causes = {"wrong_group"},
                      .make = script([=](Script& made) {
                        made.before = [=](const Rank& of, internal::Call& call) {
                          if (site.matches(of, call)) redirect(call, of.on(Axis::tp));
                          return true;
                        };
                      })});
  }
  return result;
}

constexpr MutationKind kDcpKinds[] = {
    {"dcp_wrong_owner", "a rank keeps the tokens of the next rank of dcp", wrong_owner<next_share>},
    {"dcp_wrong_interleave", "a rank shares tokens out over dcp in runs of another length",
     wrong_owner<share_of_other_interleave>},
    {"dcp_context_over_tp", "what each rank's keys give goes to the ranks of tp, not of dcp",
     over_tp<Op::attention_dcp_context>},
    {"dcp_sums_over_tp", "the sums that weigh what each rank's keys give go to the ranks of tp, not of dcp",
     over_tp<Op::attention_dcp_sums>},
};

}  // namespace

std::span<const MutationKind> dcp_kinds() {
  return kDcpKinds;
}

}  // namespace shardproof::mutations
