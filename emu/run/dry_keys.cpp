#include "emu/run/internal/dry_keys.h"

#include <algorithm>
#include <bit>
#include <map>

#include "emu/plan/cache_share.h"
#include "emu/plan/key_spans.h"

namespace shardproof::dry {
namespace {

/// What the records of a layer's dispatch depend on: not which rank sends how much, but what comes of it.
void add_counts(const ModelConfig& model, const DryRun& run, int layer, std::int64_t microbatch, const Layout& layout,
                Key& key) {
  Key& brief = run.remembered(layer, microbatch, layout.at);
  if (!brief.empty()) {
    key.insert(key.end(), brief.begin(), brief.end());
    return;
  }
  const std::int64_t experts = layout.layer(model, layer).most_experts;
  const auto own_part = [&](const std::vector<std::int64_t>& counts) {
    return sum_of(
        std::span(counts).subspan(static_cast<std::size_t>(layout.at.ep * experts), static_cast<std::size_t>(experts)));
  };
  const std::vector<std::int64_t>& sent = run.sent(layer, microbatch, layout.at);
  const std::vector<std::int64_t> arriving = run.arriving(layer, microbatch, layout.at);
  // Where all ranks of ep route alike, a rank's slots come from itself alone.
  const std::int64_t from_itself = layout.parallel.routes_alike() ? sum_of(arriving) : own_part(arriving);
  for (const std::int64_t n : {sum_of(sent), own_part(sent), sum_of(arriving), from_itself}) brief.push_back(n);
  const std::vector<std::int64_t> rows = run.rows_of_experts(layer, microbatch, layout.at);
  brief.insert(brief.end(), rows.begin(), rows.end());
  key.insert(key.end(), brief.begin(), brief.end());
}

/// With context parallelism: what the others of the group hold, and what the rank's queries see of it.
void add_share_of_cp(const ModelConfig& model, const Layout& layout, const TokenMap& tokens, std::int64_t microbatch,
                     Key& key) {
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
void add_share_of_dcp(const Layout& layout, const TokenMap& map, std::span<const Chunk> chunks, Key& key) {
  if (layout.parallel.dcp == 1) return;
  const CacheShare share = cache_share(layout.parallel, layout.at), first{share.ranks, share.interleave, 0};
  std::int64_t kept = 0, most = 0, most_plain = 0, tokens = 0, kept_absorbed = 0;
  double pairs = 0, absorbed_pairs = 0;
  for (const Chunk& chunk : chunks) {
    const std::int64_t plain = map.plain_of(chunk);
    if (plain > 0) most_plain += first.count_of(chunk.begin + plain);
    if (plain < chunk.count) {
      kept_absorbed += share.count_of(chunk.end());
      absorbed_pairs += share.pairs_of(chunk.end()) - share.pairs_of(chunk.begin + plain);
    }
    kept += share.count_of(chunk.end());
    most += first.count_of(chunk.end());
    tokens += chunk.end();
    pairs += share.pairs_of(chunk.end()) - share.pairs_of(chunk.begin);
  }
  for (const std::int64_t n : {kept, most, most_plain, tokens, std::bit_cast<std::int64_t>(pairs), kept_absorbed,
                               std::bit_cast<std::int64_t>(absorbed_pairs)}) {
    key.push_back(n);
  }
}

/// With latent attention: what of the rows is in its absorbed form, and what that reads.
void add_forms(const ModelConfig& model, const TokenMap& tokens, std::span<const Chunk> chunks, Key& key) {
  const auto latent = [](const LayerSpec& layer) { return layer.attention.latent(); };
  if (!tokens.decodes_absorbed() || std::ranges::none_of(model.layers.kinds(), latent)) return;
  std::int64_t rows = 0, plain_rows = 0, keys = 0, plain_keys = 0, past = 0;
  double pairs = 0;
  for (const Chunk& chunk : chunks) {
    const std::int64_t plain = tokens.plain_of(chunk), absorbed = chunk.count - plain;
    plain_rows += plain;
    if (plain > 0) plain_keys += chunk.begin + plain;
    if (absorbed == 0) continue;
    rows += absorbed;
    keys += chunk.end();
    past += chunk.begin + plain;
    for (std::int64_t token = chunk.begin + plain; token < chunk.end(); ++token)
      pairs += static_cast<double>(token + 1);
  }
  for (const std::int64_t n : {rows, plain_rows, keys, plain_keys, past, std::bit_cast<std::int64_t>(pairs)}) {
    key.push_back(n);
  }
}

/// Where the rows of the whole ep group are gathered: how many they are.
void add_gathered(const DryRun& run, const Layout& layout, std::int64_t microbatch, Key& key) {
  if (layout.parallel.dispatch != DispatchComm::all_gather) return;
  std::int64_t rows = 0;
  for (const int member : run.mesh().group(Axis::ep, run.mesh().rank_at(layout.at))) {
    rows += run.tokens().run_own(run.mesh().coordinates(member), microbatch).count();
  }
  key.push_back(rows);
}

/// What the records of a microbatch depend on, but for the routing.
void add_tokens(const ModelConfig& model, const Deployment& deployment, const DryRun& run, const Layout& layout,
                std::int64_t m, Key& key) {
  const TokenMap& tokens = deployment.tokens;
  for (const std::int64_t n :
       {tokens.run_rows(layout.at, m).count(), tokens.run_own(layout.at, m).count(),
        tokens.stream(layout.at, m).count(), std::bit_cast<std::int64_t>(tokens.pairs(layout.at, m))}) {
    key.push_back(n);
  }
  for (const LayerSpec& kind : model.layers.kinds()) {
    const std::int64_t window = kind.attention.sliding_window;
    key.push_back(std::bit_cast<std::int64_t>(tokens.past(layout.at, m, window)));
    if (window > 0) key.push_back(std::bit_cast<std::int64_t>(tokens.pairs(layout.at, m, window)));
  }
  add_share_of_cp(model, layout, tokens, m, key);
  add_share_of_dcp(layout, tokens, tokens.chunks(layout.at.dp, m), key);
  add_forms(model, tokens, tokens.chunks(layout.at.dp, m), key);
  add_gathered(run, layout, m, key);
}

/// What the records of an item's microbatch depend on.
void add_microbatch(const ModelConfig& model, const Deployment& deployment, const DryRun& run, const Layout& layout,
                    const WorkItem& item, std::int64_t m, Key& key) {
  key.push_back(item.layers.begin);
  key.push_back(item.layers.count);
  add_tokens(model, deployment, run, layout, m, key);
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

/// What the rank holds of a layer.
void add_shares(const LayerLayout& kind, Key& key) {
  for (const Range& part : {kind.heads, kind.kv_heads, kind.experts, kind.intermediate_size, kind.mlp_size}) {
    key.push_back(part.count);
  }
}

}  // namespace

Key key_of_item(const ModelConfig& model, const Deployment& deployment, const DryRun& run, const Layout& layout,
                const WorkItem& item) {
  Key key;
  add_microbatch(model, deployment, run, layout, item, item.microbatch, key);
  if (item.beside >= 0) add_microbatch(model, deployment, run, layout, item, item.beside, key);
  return key;
}

Key key_of_rank(const ModelConfig& model, const Deployment& deployment, const DryRun& run, int rank) {
  const Layout& layout = deployment.layouts[static_cast<std::size_t>(rank)];
  Key key{layout.at.pp, layout.vocabulary.count};
  for (const LayerLayout& kind : layout.kinds) add_shares(kind, key);
  for (const WorkItem& item : deployment.timetable[static_cast<std::size_t>(rank)]) {
    const Key of_item = key_of_item(model, deployment, run, layout, item);
    key.insert(key.end(), of_item.begin(), of_item.end());
  }
  return key;
}

std::vector<Key> keys_of_layers(const ModelConfig& model, const Deployment& deployment, const DryRun& run,
                                const Layout& layout, const WorkItem& item) {
  std::vector<Key> keys;
  Key shared;
  add_tokens(model, deployment, run, layout, item.microbatch, shared);
  std::map<std::int64_t, std::size_t> first_of_kind;
  for (std::int64_t layer = item.layers.begin; layer < item.layers.end(); ++layer) {
    const std::int64_t kind = model.layers.kind_of(layer);
    const auto [first, is_new] = first_of_kind.try_emplace(kind, keys.size());
    if (!is_new && run.same_in_every_layer()) {
      keys.push_back(Key(keys[first->second]));
      continue;
    }
    Key& key = keys.emplace_back(Key{kind});
    add_shares(layout.layer(model, layer), key);
    key.insert(key.end(), shared.begin(), shared.end());
    if (!model.layers[layer].feed_forward.dense()) {
      add_counts(model, run, static_cast<int>(layer), item.microbatch, layout, key);
    }
  }
  return keys;
}

}  // namespace shardproof::dry
