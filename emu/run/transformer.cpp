#include "emu/run/transformer.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "emu/run/attention_block.h"
#include "emu/run/fault.h"
#include "emu/run/moe_block.h"
#include "emu/run/reduction.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/norm.h"

namespace shardproof {
namespace {

template <class T>
RankWeights<T> slice_weights(Rank& rank, const TransformerProgram<T>& program, const Layout& layout) {
  RankWeights<T> weights;
  for_each_slice(layout, program.model, [&](WeightSpec spec, Range rows, Range cols) {
    const Tensor tensor = spec.tensor;
    const int layer = spec.layer, expert = spec.expert;
    if (program.fault != nullptr) program.fault->edit_slice(rank, spec, rows, cols);
    rank.trace().weights.push_back({.name = spec.name,
                                    .layer = spec.layer,
                                    .rows = rows.count,
                                    .cols = cols.count,
                                    .bytes = rows.count * cols.count * ops::bytes_per_element(program.format)});
    weights.add(tensor, layer, expert, {&program.weights, std::move(spec), rows, cols});
  });
  const bool shares_embedding = program.model.tie_word_embeddings && layout.first_stage() && layout.last_stage();
  if (shares_embedding) weights.add(Tensor::head, -1, -1, weights(Tensor::embedding));
  return weights;
}

/// Vocabulary-parallel embedding: each rank looks up the ids that it holds, the others' rows are zero.
template <class T>
Task<ops::Matrix<T>> embed_tokens(const Stage<T>& stage, const WeightSlice<T>& table) {
  const std::int64_t hidden = stage.model().hidden_size;
  const std::vector<std::int32_t> ids = stage.program.batch.tokens(stage.tokens.rows);
  ops::Matrix<T> addend(stage.rows(), hidden);
  ops::embed<T>(ids, table.load(), stage.layout.vocabulary.begin, addend);
  stage.record("embedding", -1, stage.rows(), hidden, ops::embed_cost(stage.rows(), hidden, stage.element_bytes()));
  ops::Matrix<T> x = co_await reduce_over_tp(stage, std::move(addend));
  stage.tap(-1, "embedding", x, stage.stream_rows());
  co_return x;
}

/// The final norm and the vocabulary-parallel head; logits stay sharded.
template <class T>
Task<> finish(const Stage<T>& stage, const RankWeights<T>& weights, const ops::Matrix<T>& x) {
  const ModelConfig& model = stage.model();
  ops::Matrix<T> norm(x.rows(), x.cols());
  ops::rms_norm<T>(x, weights(Tensor::final_norm).load().view().span(), model.rms_norm_eps, stage.format(), norm);
  stage.record("final_norm", -1, x.rows(), x.cols(), ops::rms_norm_cost(x.rows(), x.cols(), stage.element_bytes()));
  stage.tap(-1, "final_norm", norm, stage.stream_rows());

  const ops::Matrix<T> full = co_await gather_rows_over_tp(stage, std::move(norm));
  const WeightSlice<T>& head = weights(Tensor::head);
  ops::Matrix<T> logits(full.rows(), head.rows.count);
  {
    const ops::ThreadScope threads = stage.op_threads();
    ops::linear<T>(full, head.load(), logits);
  }
  ops::store<T>(logits.span(), stage.format());
  stage.record("logits", -1, logits.rows(), logits.cols(),
               ops::linear_cost(logits.rows(), logits.cols(), full.cols(), stage.element_bytes()));
  stage.template tap<T>(-1, "logits", logits.view(), {0, stage.rows()}, model.vocab_size, stage.layout.vocabulary);
}

/// The layers are among those that the rank holds.
template <class T>
Task<> run_layers(const Stage<T>& stage, const RankWeights<T>& weights, Range layers) {
  const Layout& layout = stage.layout;
  ops::Matrix<T> x;
  if (layout.first_stage()) {
    x = co_await embed_tokens(stage, weights(Tensor::embedding));
  } else {
    x = ops::Matrix<T>(stage.stream_rows().count, stage.model().hidden_size);
    co_await stage.rank.pp().recv(x.span(), GroupRank{layout.at.pp - 1});
  }
  for (auto layer = static_cast<int>(layers.begin); layer < layers.end(); ++layer) {
    co_await attention_block(stage, weights, layer, x);
    co_await moe_block(stage, weights, layer, x);
  }
  if (layout.last_stage()) {
    co_await finish(stage, weights, x);
  } else {
    co_await stage.rank.pp().send(std::as_const(x).span(), GroupRank{layout.at.pp + 1});
  }
}

/// The angles of every position in the microbatch, once for all layers.
template <class T>
ops::RopeTable<T> rope_table(const TransformerProgram<T>& program, const RankTokens& tokens) {
  std::int64_t positions = 0;
  for (const std::int64_t position : tokens.positions) positions = std::max(positions, position + 1);
  return {positions, program.model.layers[0].attention.head_dim, program.model.layers[0].attention.rope_theta,
          program.format};
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
  for (const WorkItem& item : program.deployment.timetable[id]) {
    RankTokens tokens = program.deployment.tokens.rank_tokens(layout.at, item.microbatch);
    if (program.fault != nullptr) program.fault->edit_microbatch(rank, item.microbatch, tokens);
    const ops::RopeTable<T> rope = rope_table(program, tokens);
    const Stage<T> stage{rank, program, layout, tokens, rope, static_cast<int>(item.microbatch)};
    co_await run_layers(stage, weights, item.layers);
  }
}

template Task<> run_transformer(Rank&, const TransformerProgram<float>&);
template Task<> run_transformer(Rank&, const TransformerProgram<double>&);

}  // namespace shardproof
