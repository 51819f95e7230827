// Kinds in serving: slots, block tables, lengths and order of a rank's cache, and steps of a replica without work.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "emu/mutate/internal/script.h"
#include "emu/mutate/internal/sites.h"
#include "emu/plan/deployment.h"
#include "emu/plan/prefix.h"
#include "emu/run/slot_history.h"

namespace shardproof::mutations {
namespace {

using Instances = std::vector<Mutation>;

/// A chunk of a pass: sequence `index` of those in it.
struct PassPlace {
  int dp = 0;
  std::int64_t microbatch = 0;
  std::size_t index = 0;
};

/// Chunks of which `wanted(chunks of the pass, index)` holds: the first and the last.
template <class Wanted>
std::vector<PassPlace> pass_places(const Sites& sites, const Wanted& wanted) {
  std::optional<PassPlace> first, last;
  for (int dp = 0; dp < sites.plan.parallel.dp; ++dp) {
    for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
      const std::span<const Chunk> chunks = sites.tokens.chunks(dp, m);
      for (std::size_t i = 0; i < chunks.size(); ++i) {
        if (!wanted(chunks, i)) continue;
        if (!first) first = PassPlace{dp, m, i};
        last = PassPlace{dp, m, i};
      }
    }
  }
  if (!first) return {};
  if (first->dp == last->dp && first->microbatch == last->microbatch && first->index == last->index) return {*first};
  return {*first, *last};
}

using EditSequence = std::function<void(CachedPass&, std::size_t index)>;

/// A rank, over dcp the ranks that share its cache, believes something else of it, in one pass.
Mutation wrong_pass(const Sites& sites, const PassPlace& place, bool last_stage, std::vector<std::string> causes,
                    const EditSequence& edit) {
  const int stage = last_stage ? sites.plan.parallel.pp - 1 : 0;
  const std::vector<int> group = sites.group(Axis::tp, sites.first_rank({.dp = place.dp, .pp = stage}));
  const std::vector<int> ranks = sites.group(Axis::dcp, last_stage ? group.back() : group.front());
  const int layer = static_cast<int>(sites.layers_of(stage).begin);
  return {.layer = layer,
          .ranks = ranks,
          .microbatch = static_cast<int>(place.microbatch),
          .tap = tap_name(layer, TapKind::attention_context),
          .causes = std::move(causes),
          .make = script([=](Script& made) {
            made.cache = [=](const Rank& at, std::int64_t microbatch, CachedPass& pass) {
              if (among(ranks, at) && microbatch == place.microbatch) edit(pass, place.index);
            };
          })};
}

template <class Wanted>
Instances wrong_passes(const MutablePlan& plan, std::size_t limit, const Wanted& wanted,
                       const std::vector<std::string>& causes, const EditSequence& edit) {
  if (!plan.workload.serving) return {};
  const Sites sites(plan);
  Instances result;
  for (const PassPlace& place : pass_places(sites, wanted)) {
    if (result.size() < limit) result.push_back(wrong_pass(sites, place, !result.empty(), causes, edit));
  }
  return result;
}

bool any_chunk(std::span<const Chunk>, std::size_t) {
  return true;
}

bool has_past(std::span<const Chunk> chunks, std::size_t index) {
  return chunks[index].begin > 0;
}

Instances slots_shifted(const MutablePlan& plan, std::size_t limit) {
  return wrong_passes(plan, limit, any_chunk, {"cache_slots", "cache_unwritten"},
                      [](CachedPass& pass, std::size_t index) {
                        CachedSequence& sequence = pass.sequences[index];
                        if (sequence.blocks.size() == 1) return sequence.slots.clear();
                        // Every token goes to the block after its own.
                        std::vector<std::int32_t> shifted = sequence.blocks;
                        std::rotate(shifted.begin(), shifted.begin() + 1, shifted.end());
                        sequence.slots = slots_of(sequence.chunk, shifted, pass.block_size, pass.share);
                      });
}

/// A sequence of the pass whose keys can be read in place of those of the one at `index`; its place, or none.
std::optional<std::size_t> other_table(std::span<const Chunk> chunks, std::size_t index) {
  for (std::size_t other = 0; other < chunks.size(); ++other) {
    if (other != index && chunks[other].end() >= chunks[index].end()) return other;
  }
  return std::nullopt;
}

Instances table_of_another(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  const auto wanted = [&](std::span<const Chunk> chunks, std::size_t index) {
    const std::optional<std::size_t> other = other_table(chunks, index);
    if (!other) return false;
    // Sequences that begin alike have the same keys.
    const auto first = [&](const Chunk& chunk) {
      return sites.batch.tokens().begin() + sites.tokens.first_row_of(chunk.sequence);
    };
    return !std::equal(first(chunks[index]), first(chunks[index]) + chunks[index].end(), first(chunks[*other]));
  };
  return wrong_passes(plan, limit, wanted, {"block_table"}, [](CachedPass& pass, std::size_t index) {
    std::vector<Chunk> chunks;
    for (const CachedSequence& sequence : pass.sequences) chunks.push_back(sequence.chunk);
    pass.sequences[index].blocks = pass.sequences[*other_table(chunks, index)].blocks;
  });
}

Instances written_after_read(const MutablePlan& plan, std::size_t limit) {
  return wrong_passes(plan, limit, any_chunk, {"cache_unwritten"},
                      [](CachedPass& pass, std::size_t) { pass.write_first = false; });
}

/// The rank attends as if so many tokens came before the chunk.
template <class Past>
EditSequence with_past(const Past& past) {
  return [=](CachedPass& pass, std::size_t index) {
    Chunk& chunk = pass.sequences[index].chunk;
    chunk.begin = past(chunk.begin, pass.block_size);
  };
}

Instances past_ignored(const MutablePlan& plan, std::size_t limit) {
  return wrong_passes(plan, limit, has_past, {"cache_length"},
                      with_past([](std::int64_t, std::int64_t) { return std::int64_t{0}; }));
}

/// The first layer of the stage whose past and chunk may be attended to apart: without window or sinks; -1: none.
int layer_in_parts(const Sites& sites, int stage) {
  const Range layers = sites.layers_of(stage);
  for (auto layer = static_cast<int>(layers.begin); layer < layers.end(); ++layer) {
    const AttentionSpec& spec = sites.plan.model.layers[layer].attention;
    if (spec.sliding_window == 0 && !spec.sinks) return layer;
  }
  return -1;
}

/// Of a prompt's later chunk: one of a single token is attended to as a token after the prompt is, by one kernel.
Instances chunk_without_lse(const MutablePlan& plan, std::size_t limit) {
  if (!plan.workload.serving || plan.parallel.dcp > 1) return {};
  const Sites sites(plan);
  const auto wanted = [&](std::span<const Chunk> chunks, std::size_t index) {
    const Chunk& chunk = chunks[index];
    const std::int64_t prompt = plan.workload.serving->requests[static_cast<std::size_t>(chunk.sequence)].prompt;
    return chunk.begin > 0 && std::min(chunk.end(), prompt) - chunk.begin > 1;
  };
  Instances result;
  for (const PassPlace& place : pass_places(sites, wanted)) {
    if (result.size() == limit) break;
    const int stage = result.empty() ? 0 : plan.parallel.pp - 1, layer = layer_in_parts(sites, stage);
    if (layer < 0) continue;
    const std::vector<int> group = sites.group(Axis::tp, sites.first_rank({.dp = place.dp, .pp = stage}));
    const int rank = result.empty() ? group.front() : group.back();
    result.push_back({.layer = layer,
                      .ranks = {rank},
                      .microbatch = static_cast<int>(place.microbatch),
                      .tap = tap_name(layer, TapKind::attention_context),
                      .causes = {"past_not_weighed"},
                      .make = script([=](Script& made) {
                        made.averaged_past = [=](const Rank& at, const FaultSite& site, std::size_t sequence) {
                          return to_int(at.id()) == rank && site.layer == layer &&
                                 site.microbatch == place.microbatch && sequence == place.index;
                        };
                      })});
  }
  return result;
}

Instances prefix_rounded_to_blocks(const MutablePlan& plan, std::size_t limit) {
  if (!plan.workload.serving) return {};
  const std::int64_t size = plan.workload.serving->kv_block_size;
  const auto wanted = [size](std::span<const Chunk> chunks, std::size_t index) {
    return chunks[index].begin % size != 0;
  };
  return wrong_passes(plan, limit, wanted, {"cache_length"},
                      with_past([](std::int64_t past, std::int64_t block) { return past / block * block; }));
}

Instances stale_block(const MutablePlan& plan, std::size_t limit) {
  // What the chunk's tokens were before: the slots keep what a finished request, or nobody, left there.
  return wrong_passes(plan, limit, has_past, {"cache_unwritten"},
                      [](CachedPass& pass, std::size_t index) { pass.sequences[index].slots.clear(); });
}

/// Every slot holds some token, of which at least one is of another id than the chunk's.
bool reads_another(const Sites& sites, const std::vector<SlotToken>& held, const Chunk& chunk) {
  std::vector<std::int64_t> begins{0};
  for (const std::int64_t length : sites.plan.workload.lengths) begins.push_back(begins.back() + length);
  const auto id = [&](std::int64_t sequence, std::int64_t token) {
    return sites.batch.tokens()[static_cast<std::size_t>(begins[static_cast<std::size_t>(sequence)] + token)];
  };
  bool other = false;
  for (std::size_t i = 0; i < held.size(); ++i) {
    if (held[i].sequence < 0) return false;
    other =
        other || id(held[i].sequence, held[i].token) != id(chunk.sequence, chunk.begin + static_cast<std::int64_t>(i));
  }
  return other;
}

/// The slots of a chunk keep what requests that are done left there, which nobody poisoned.
Instances left_by_finished(const MutablePlan& plan, std::size_t limit) {
  if (!plan.workload.serving || plan.parallel.dcp > 1) return {};
  const Deployment deployment = deploy(plan.model, plan.parallel, plan.workload);
  const Sites sites(plan);
  std::vector<PassPlace> found;
  for (int dp = 0; dp < plan.parallel.dp && found.size() < limit; ++dp) {
    const std::int64_t blocks = deployment.kv_blocks[static_cast<std::size_t>(dp)];
    for (std::int64_t m = 1; m < sites.tokens.microbatches() && found.size() < limit; ++m) {
      for (std::size_t i = 0; i < sites.tokens.chunks(dp, m).size() && found.size() < limit; ++i) {
        const auto held = left_behind(sites.tokens, *plan.workload.serving, blocks, dp, m, i);
        if (!reads_another(sites, held, sites.tokens.chunks(dp, m)[i])) continue;
        found.push_back({dp, m, i});
        m = sites.tokens.microbatches();
        break;
      }
    }
  }
  Instances result;
  for (const PassPlace& place : found) {
    Mutation mutation = wrong_pass(sites, place, !result.empty(), {"cache_of_finished_request"},
                                   [](CachedPass& pass, std::size_t index) { pass.sequences[index].slots.clear(); });
    mutation.make = script([place, ranks = mutation.ranks](Script& made) {
      made.cache = [place, ranks](const Rank& at, std::int64_t microbatch, CachedPass& pass) {
        if (!among(ranks, at)) return;
        pass.poison_freed = false;
        if (microbatch == place.microbatch) pass.sequences[place.index].slots.clear();
      };
    });
    result.push_back(std::move(mutation));
  }
  return result;
}

Instances positions_after_chunk(const MutablePlan& plan, std::size_t limit) {
  if (!plan.workload.serving) return {};
  const Sites sites(plan);
  const std::int64_t longest = *std::ranges::max_element(plan.workload.lengths);
  const auto wanted = [&](std::span<const Chunk> chunks, std::size_t index) {
    return chunks[index].begin > 0 && chunks[index].end() < longest;
  };
  Instances result;
  for (const PassPlace& place : pass_places(sites, wanted)) {
    if (result.size() == limit) break;
    const int stage = result.empty() ? 0 : plan.parallel.pp - 1;
    const int rank = sites.first_rank({.dp = place.dp, .pp = stage});
    const int layer = static_cast<int>(sites.layers_of(stage).begin);
    result.push_back({.layer = layer,
                      .ranks = {rank},
                      .microbatch = static_cast<int>(place.microbatch),
                      .tap = tap_name(layer, TapKind::attention_q),
                      .causes = {"positions"},
                      .make = script([=](Script& made) {
                        made.microbatch = [=](const Rank& at, std::int64_t microbatch, RankTokens& given) {
                          if (to_int(at.id()) != rank || microbatch != place.microbatch) return;
                          const auto begin = given.offsets[place.index], end = given.offsets[place.index + 1];
                          for (std::int64_t i = begin; i < end; ++i) ++given.positions[static_cast<std::size_t>(i)];
                        };
                      })});
  }
  return result;
}

/// By how much the prefix that a request shares is longer than the full blocks that it maps, as far as its table goes.
std::int64_t beyond_full_blocks(const Workload& workload, const Chunk& chunk) {
  if (chunk.prefix_of < 0) return 0;
  const Serving& serving = *workload.serving;
  const std::int64_t prompt = serving.requests[static_cast<std::size_t>(chunk.sequence)].prompt;
  const std::int64_t prefix = std::min(common_prefix(workload, chunk.sequence, chunk.prefix_of), prompt - 1);
  const std::int64_t room = serving.blocks_of(chunk.end(), 1) * serving.kv_block_size - chunk.end();
  return std::min(prefix - chunk.begin, room);
}

/// A request takes all the tokens that it has in common with another for cached, where it maps the full blocks of them.
Instances prefix_unpadded(const MutablePlan& plan, std::size_t limit) {
  if (plan.parallel.dcp > 1) return {};
  const auto wanted = [&](std::span<const Chunk> chunks, std::size_t index) {
    return beyond_full_blocks(plan.workload, chunks[index]) > 0;
  };
  return wrong_passes(plan, limit, wanted, {"prefix_length", "cache_unwritten"},
                      [workload = plan.workload](CachedPass& pass, std::size_t index) {
                        Chunk& chunk = pass.sequences[index].chunk;
                        chunk.begin += beyond_full_blocks(workload, chunk);
                      });
}

/// A request that is done frees and poisons blocks that another one still maps.
Instances freed_in_use(const MutablePlan& plan, std::size_t limit) {
  if (!plan.workload.serving) return {};
  const Sites sites(plan);
  const auto last_step_of = [&](int dp, std::int64_t sequence) {
    std::int64_t last = -1;
    for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
      const auto chunks = sites.tokens.chunks(dp, m);
      if (std::ranges::find(chunks, sequence, &Chunk::sequence) != chunks.end()) last = sites.tokens.step_of(m);
    }
    return last;
  };
  Instances result;
  for (int dp = 0; dp < plan.parallel.dp; ++dp) {
    std::map<std::int64_t, std::int64_t> needed;  // by request, the last step in which its blocks are read
    for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
      for (const Chunk& chunk : sites.tokens.chunks(dp, m)) {
        if (chunk.prefix_of >= 0)
          needed[chunk.prefix_of] = std::max(needed[chunk.prefix_of], last_step_of(dp, chunk.sequence));
      }
    }
    for (std::int64_t m = 0; m < sites.tokens.microbatches() && result.size() < limit; ++m) {
      const std::span<const Chunk> chunks = sites.tokens.chunks(dp, m);
      const auto leaves = std::ranges::find_if(chunks, [&](const Chunk& chunk) {
        const bool last = chunk.end() == plan.workload.lengths[static_cast<std::size_t>(chunk.sequence)];
        return last && needed.contains(chunk.sequence) && needed.at(chunk.sequence) > sites.tokens.step_of(m);
      });
      if (leaves == chunks.end()) continue;
      const PassPlace place{dp, m, static_cast<std::size_t>(leaves - chunks.begin())};
      result.push_back(wrong_pass(sites, place, !result.empty(), {"cache_unwritten"},
                                  [](CachedPass& pass, std::size_t) { pass.frees_shared = true; }));
      break;
    }
  }
  return result;
}

/// Where padding is among the rows of an expert, it spoils the others': a scale that is taken over all of them, say.
Instances padding_leaks(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  Instances result;
  if (plan.workload.idle != Idle::pad || sites.expert_maps != nullptr || plan.parallel.routes_alike()) return result;
  for (const Place& place : sites.moe_places(limit)) {
    const FeedForwardSpec& spec = plan.model.layers[place.layer].feed_forward;
    const Coordinates at = sites.mesh.coordinates(place.rank);
    for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
      bool padded = false, met = false;
      for (const int member : sites.group(Axis::ep, place.rank)) {
        const Coordinates& of = sites.mesh.coordinates(member);
        padded = padded || (sites.tokens.chunks(of.dp, m).empty() && sites.tokens.run_own(of, m).count() > 0);
        const TokenRows own = sites.tokens.own(of, m);
        for (std::int64_t i = 0; i < own.count(); ++i) {
          for (const std::int32_t expert : plan.choices[static_cast<std::size_t>(place.layer)].row(own[i])) {
            met = met || (expert < spec.top_k && shard_of(spec.num_experts, plan.parallel.ep, expert) == at.ep);
          }
        }
      }
      if (!padded || !met) continue;
      result.push_back({.layer = place.layer,
                        .ranks = {place.rank},
                        .group = "ep",
                        .microbatch = static_cast<int>(m),
                        .tap = moe_output_tap(place.layer),
                        .causes = {"padding_leaks"},
                        .make = script([rank = place.rank, layer = place.layer, m](Script& made) {
                          const auto spread = [=](const Rank& on, Op op, const FaultSite& site, auto y) {
                            if (to_int(on.id()) != rank || op != Op::moe_expert || site.layer != layer ||
                                site.microbatch != m)
                              return;
                            const auto is_nan = [](auto value) { return std::isnan(value); };
                            if (std::ranges::none_of(y.span(), is_nan)) return;
                            for (auto& value : y.span()) value = NAN;
                          };
                          made.double_result = spread;
                          made.result = [=](const Rank& on, Op op, const FaultSite& site, const Operands&,
                                            ops::MatrixView<float> y) { spread(on, op, site, y); };
                        })});
      break;
    }
  }
  return result;
}

/// A rank whose replica has no work in a step does not take it, though its experts are waited for.
Instances idle_replica_skips_step(const MutablePlan& plan, std::size_t limit) {
  if (!plan.workload.serving || plan.parallel.ep < 2 || plan.model.dense()) return {};
  if (plan.parallel.overlap == Overlap::two_batch) return {};  // one with work is beside it
  const Sites sites(plan);
  Instances result;
  for (int dp = plan.parallel.dp - 1; dp >= 0; --dp) {
    for (std::int64_t m = 0; m < sites.tokens.microbatches() && result.size() < limit; ++m) {
      if (!sites.tokens.chunks(dp, m).empty()) continue;
      const int rank = sites.first_rank({.dp = dp});
      // The others of its group go on with the next step, or wait; so does the stage that it sends to.
      result.push_back({.ranks = {rank},
                        .group = "ep",
                        .microbatch = static_cast<int>(m),
                        .may_clash = true,
                        .causes = {"call_sequence", "call_arguments", "message_lost"},
                        .make = script([=](Script& made) {
                          made.timetable = [=](Timetable& timetable) {
                            std::erase_if(timetable[static_cast<std::size_t>(rank)],
                                          [&](const WorkItem& item) { return item.microbatch == m; });
                          };
                        })});
      break;
    }
  }
  return result;
}

constexpr MutationKind kCacheKinds[] = {
    {"cache_slots_shifted", "a chunk's keys are written one block beside their own", slots_shifted},
    {"cache_table_of_another_request", "a request's cache is read through another's block table", table_of_another},
    {"cache_written_after_read", "the tokens of a step are written to the cache after it is read", written_after_read},
    {"cache_past_ignored", "a chunk attends as if it were the whole sequence", past_ignored},
    {"cache_chunk_merged_without_lse",
     "what a later chunk of a prompt makes of its own keys and of those before it is averaged, not weighed by its sums",
     chunk_without_lse},
    {"cache_prefix_rounded_to_blocks", "the length of what is cached is rounded to whole blocks",
     prefix_rounded_to_blocks},
    {"cache_stale", "a chunk's keys are not written: the slots hold what was there", stale_block},
    {"cache_of_finished_request", "a chunk's keys are not written where a request that is done left its own",
     left_by_finished},
    {"prefix_unpadded", "the tokens that prompts have in common count as cached, not the full blocks of them",
     prefix_unpadded},
    {"shared_block_freed_in_use", "a request that is done frees blocks that another one maps", freed_in_use},
    {"padding_leaks", "an expert's padded rows spoil those of tokens", padding_leaks},
    {"positions_after_chunk_offset", "positions of a later chunk are one too high", positions_after_chunk},
    {"idle_replica_skips_step", "a rank of a replica without work does not join the experts' collectives",
     idle_replica_skips_step},
};

}  // namespace

std::span<const MutationKind> cache_kinds() {
  return kCacheKinds;
}

}  // namespace shardproof::mutations
