#include "emu/run/attention_block.h"

#include <utility>

#include "emu/run/reduction.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace shardproof {
namespace {

/// A projection as a kernel stores it: stored(x w^T), [rows of x, rows of w].
template <class T>
ops::Matrix<T> project(const Stage<T>& stage, std::string_view op, int layer, const ops::Matrix<T>& x,
                       const WeightSlice<T>& w) {
  ops::Matrix<T> y(x.rows(), w.rows.count);
  const ops::ThreadScope threads = stage.op_threads();
  ops::linear<T>(x, w.load(), y);
  ops::store<T>(y.span(), stage.format());
  stage.record(op, layer, y.rows(), y.cols(), ops::linear_cost(y.rows(), y.cols(), x.cols(), stage.element_bytes()));
  return y;
}

}  // namespace

template <class T>
Task<> attention_block(const Stage<T>& stage, const RankWeights<T>& weights, int layer, ops::Matrix<T>& x) {
  const ModelConfig& model = stage.model();
  const AttentionSpec& spec = model.layers[layer].attention;
  const Layout& layout = stage.layout;
  const LayerLayout& held = layout.layer(model, layer);
  const ops::Format format = stage.format();
  const std::int64_t rows = stage.rows();

  ops::Matrix<T> norm(x.rows(), x.cols());
  ops::rms_norm<T>(x, weights(Tensor::attention_norm, layer).load().view().span(), model.rms_norm_eps, format, norm);
  stage.record("attention.norm", layer, x.rows(), x.cols(),
               ops::rms_norm_cost(x.rows(), x.cols(), stage.element_bytes()));
  stage.tap(layer, "attention.norm", norm, stage.stream_rows());

  ops::Matrix<T> full = co_await gather_rows_over_tp(stage, std::move(norm));

  ops::Matrix<T> q = project(stage, "attention.q", layer, full, weights(Tensor::attention_q, layer));
  ops::Matrix<T> k = project(stage, "attention.k", layer, full, weights(Tensor::attention_k, layer));
  ops::Matrix<T> v = project(stage, "attention.v", layer, full, weights(Tensor::attention_v, layer));
  for (ops::Matrix<T>* rotated : {&q, &k}) {
    ops::rope<T>(*rotated, stage.tokens.positions, stage.rope);
    stage.record("attention.rope", layer, rows, rotated->cols(),
                 ops::rope_cost(rows, rotated->cols(), stage.element_bytes()));
  }
  const std::int64_t q_width = spec.heads * spec.head_dim;
  const std::int64_t kv_width = spec.kv_heads * spec.head_dim;
  const Range all{0, rows};
  const Range q_cols = part_of(layout, model, Split::q_heads, layer, q_width);
  const Range kv_cols = part_of(layout, model, Split::kv_heads, layer, kv_width);
  stage.template tap<T>(layer, "attention.q", q.view(), all, q_width, q_cols);
  stage.template tap<T>(layer, "attention.k", k.view(), all, kv_width, kv_cols);
  stage.template tap<T>(layer, "attention.v", v.view(), all, kv_width, kv_cols);

  ops::Matrix<T> context(rows, q.cols());
  {
    const ops::ThreadScope threads = stage.op_threads();
    ops::attention<T>(q, k, v, stage.tokens.offsets, spec.head_dim, format, context);
  }
  stage.record("attention.context", layer, rows, q.cols(),
               ops::attention_cost(stage.tokens.offsets, held.heads.count, held.kv_heads.count, spec.head_dim,
                                   stage.element_bytes()));
  stage.template tap<T>(layer, "attention.context", context.view(), all, q_width, q_cols);

  ops::Matrix<T> addend(rows, model.hidden_size);
  {
    const ops::ThreadScope threads = stage.op_threads();
    ops::linear<T>(context, weights(Tensor::attention_output, layer).load(), addend);
  }
  stage.record("attention.output", layer, rows, model.hidden_size,
               ops::linear_cost(rows, model.hidden_size, context.cols(), stage.element_bytes()));
  ops::Matrix<T> output = co_await reduce_over_tp(stage, std::move(addend));
  stage.tap(layer, "attention.output", output, stage.stream_rows());

  ops::add<T>(x, output, format, x);
  stage.record("attention.residual", layer, x.rows(), x.cols(),
               ops::add_cost(x.rows(), x.cols(), stage.element_bytes()));
  stage.tap(layer, "attention.residual", x, stage.stream_rows());
}

template Task<> attention_block(const Stage<float>&, const RankWeights<float>&, int, ops::Matrix<float>&);
template Task<> attention_block(const Stage<double>&, const RankWeights<double>&, int, ops::Matrix<double>&);

}  // namespace shardproof
