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
std::vector<ops::RopeTable<T>> rope_tables(const ModelConfig& model, ops::Format format, const RankTokens& tokens) {
  std::int64_t positions = 0;
  for (const std::int64_t position : tokens.positions) positions = std::max(positions, position + 1);
  std::vector<ops::RopeTable<T>> tables;
  for (const LayerSpec& kind : model.layers.kinds()) {
    tables.emplace_back(positions, rope_pairs(kind.attention), format);
  }
  return tables;
}

/// A microbatch that a rank works on, with what it needs for it; from its cache, if there is one, until it is closed.
template <class T>
class OpenMicrobatch {
 public:
  struct Held {
    Rank& rank;
    const TransformerProgram<T>& program;
    const ModelConfig& model;
    const Layout& layout;
    const RankWeights<T>& weights;
    KvCache<T>* cache = nullptr;
  };
  OpenMicrobatch(const Held& held, std::int64_t microbatch)
      : cache_(held.cache),
        tokens_(tokens_of(held, microbatch)),
        rope_(rope_tables<T>(held.model, held.program.format, tokens_)),
        pass_(pass_of(held, microbatch, tokens_)),
        context_(held.model, held.program.format, held.layout, tokens_, microbatch, held.rank.trace(),
                 {held.rank, held.program, held.weights, rope_, cache_, pass_ ? &*pass_ : nullptr}) {}
  // The context refers to what is beside it.
  OpenMicrobatch(const OpenMicrobatch&) = delete;
  OpenMicrobatch& operator=(const OpenMicrobatch&) = delete;
  OpenMicrobatch(OpenMicrobatch&&) = delete;
  OpenMicrobatch& operator=(OpenMicrobatch&&) = delete;
  ~OpenMicrobatch() = default;

  Context<T>& context() { return context_; }
  void close() {
    if (cache_ != nullptr) cache_->end(tokens_.chunks, *pass_);
  }

 private:
  static RankTokens tokens_of(const Held& held, std::int64_t microbatch) {
    RankTokens tokens = held.program.deployment.tokens.rank_tokens(held.layout.at, microbatch);
    if (held.program.fault != nullptr) held.program.fault->edit_microbatch(held.rank, microbatch, tokens);
    return tokens;
  }
  static std::optional<CachedPass> pass_of(const Held& held, std::int64_t microbatch, const RankTokens& tokens) {
    if (held.cache == nullptr) return std::nullopt;
    CachedPass pass = held.cache->begin(tokens.chunks, held.program.deployment.tokens.step_of(microbatch));
    if (held.program.fault != nullptr) held.program.fault->edit_cache(held.rank, microbatch, pass);
    return pass;
  }

  KvCache<T>* cache_;
  RankTokens tokens_;
  std::vector<ops::RopeTable<T>> rope_;
  std::optional<CachedPass> pass_;
  Context<T> context_;
};

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
  std::optional<ModelConfig> believed;
  if (program.fault != nullptr) program.fault->edit_model(rank, believed.emplace(program.model));
  const typename OpenMicrobatch<T>::Held held{rank,   program, believed ? *believed : program.model,
                                              layout, weights, cache ? &*cache : nullptr};
  for (const WorkItem& item : program.deployment.timetable[id]) {
    OpenMicrobatch<T> first(held, item.microbatch);
    if (item.beside < 0) {
      co_await run_item(first.context(), item);
    } else {
      OpenMicrobatch<T> second(held, item.beside);
      co_await run_pair(first.context(), second.context(), item);
      second.close();
    }
    first.close();
  }
}

template Task<> run_transformer(Rank&, const TransformerProgram<float>&);
template Task<> run_transformer(Rank&, const TransformerProgram<double>&);

}  // namespace shardproof
