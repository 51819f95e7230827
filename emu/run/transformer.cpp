#include "emu/run/transformer.h"

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <utility>

#include "emu/run/context.h"
#include "emu/run/fault.h"
#include "emu/run/kv_cache.h"
#include "emu/run/program.h"
#include "emu/run/rope_pairs.h"

namespace shardproof {
namespace {

template <class T>
RankWeights<T> slice_weights(Rank& rank, const TransformerProgram<T>& program, const Layout& layout) {
  RankWeights<T> weights;
  for_each_slice(layout, program.model, [&](WeightSpec spec, Range rows, Range cols) {
    const Weight weight = spec.weight;
    const int layer = spec.layer, expert = spec.expert;
    if (rank.trace() != nullptr) rank.trace()->weights.push_back({weight, layer, expert, rows.count, cols.count});
    if (program.fault != nullptr) program.fault->edit_slice(rank, spec, rows, cols);
    weights.add(weight, layer, expert, {&program.weights, std::move(spec), rows, cols});
  });
  const bool shares_embedding = program.model.tie_word_embeddings && layout.first_stage() && layout.last_stage();
  if (shares_embedding) weights.add(Weight::head, -1, -1, weights(Weight::embedding));
  return weights;
}

/// The angles of every position in the microbatch, once for all layers of a kind.
template <class T>
std::vector<ops::RopeTable<T>> rope_tables(const TransformerProgram<T>& program, const RankTokens& tokens) {
  std::int64_t positions = 0;
  for (const std::int64_t position : tokens.positions) positions = std::max(positions, position + 1);
  std::vector<ops::RopeTable<T>> tables;
  for (const LayerSpec& kind : program.model.layers.kinds()) {
    tables.emplace_back(positions, rope_pairs(kind.attention), program.format);
  }
  return tables;
}

}  // namespace

template <class T>
Task<> run_transformer(Rank& rank, const TransformerProgram<T>& program) {
  if (program.replay != nullptr && program.format == ops::Format::exact) {
    throw std::invalid_argument("in exact every choice is the router's own: no rounding can excuse another");
  }
  const auto id = static_cast<std::size_t>(to_int(rank.id()));
  const Layout& layout = program.deployment.layouts[id];
  const RankWeights<T> weights = slice_weights(rank, program, layout);
  std::optional<KvCache<T>> cache;
  if (program.deployment.serving) {
    const auto blocks = program.deployment.kv_blocks[static_cast<std::size_t>(layout.at.dp)];
    cache.emplace(program.model, layout, *program.deployment.serving, blocks);
  }
  for (const WorkItem& item : program.deployment.timetable[id]) {
    RankTokens tokens = program.deployment.tokens.rank_tokens(layout.at, item.microbatch);
    if (program.fault != nullptr) program.fault->edit_microbatch(rank, item.microbatch, tokens);
    const std::vector<ops::RopeTable<T>> rope = rope_tables(program, tokens);
    std::optional<CachedPass> pass;
    if (cache) pass = cache->begin(tokens.chunks);
    if (pass && program.fault != nullptr) program.fault->edit_cache(rank, item.microbatch, *pass);
    Context<T> ctx(program.model, program.format, layout, tokens, item.microbatch, rank.trace(),
                   {rank, program, weights, rope, cache ? &*cache : nullptr, pass ? &*pass : nullptr});
    co_await run_item(ctx, item);
    if (cache) cache->end(tokens.chunks);
  }
}

template Task<> run_transformer(Rank&, const TransformerProgram<float>&);
template Task<> run_transformer(Rank&, const TransformerProgram<double>&);

}  // namespace shardproof
