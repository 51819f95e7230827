#include "emu/run/moe_block.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "emu/run/dispatch.h"
#include "emu/run/fault.h"
#include "emu/run/reduction.h"
#include "ops/elementwise.h"
#include "ops/expert.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/permute.h"
#include "ops/router.h"

namespace shardproof {
namespace {

using Counts = std::vector<std::size_t>;

template <class T>
struct Routing {
  ops::Matrix<std::int32_t> ids;  // [own rows, top_k]
  ops::Matrix<T> weights;         // [own rows, top_k]
};

std::int64_t sum(const std::vector<std::int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

template <class T>
void inject_routing_fault(const Stage<T>& stage, int layer, const ops::Matrix<T>& logits, Routing<T>& routing) {
  ops::Matrix<double> scores(logits.rows(), logits.cols());
  ops::Matrix<double> weights(routing.weights.rows(), routing.weights.cols());
  std::ranges::copy(logits.span(), scores.span().begin());
  std::ranges::copy(routing.weights.span(), weights.span().begin());
  stage.program.fault->edit_routing(stage.rank, layer, scores, routing.ids, weights);
  std::ranges::transform(weights.span(), routing.weights.span().begin(),
                         [](double weight) { return static_cast<T>(weight); });
}

/// h is [own rows, hidden].
template <class T>
Routing<T> choose_experts(const Stage<T>& stage, const RankWeights<T>& weights, int layer, ops::MatrixView<const T> h) {
  const FeedForwardSpec& spec = stage.model().layers[layer].feed_forward;
  const std::int64_t rows = h.rows;
  ops::Matrix<T> logits(rows, spec.num_experts);
  ops::linear<T>(h, weights(Tensor::router, layer).load(), logits);
  ops::store<T>(logits.span(), stage.format());
  stage.record("moe.router_logits", layer, rows, logits.cols(),
               ops::linear_cost(rows, logits.cols(), h.cols, stage.element_bytes()));
  stage.tap(layer, "moe.router_logits", logits, stage.own_rows());

  Routing<T> routing{{rows, spec.top_k}, {rows, spec.top_k}};
  ops::route<T>(logits, spec.top_k, spec.norm_topk_prob, stage.format(), routing.ids, routing.weights);
  stage.record("moe.router_choice", layer, rows, spec.top_k,
               ops::route_cost(rows, logits.cols(), spec.top_k, stage.element_bytes()));
  stage.tap(layer, "moe.router_choice", routing.ids, stage.own_rows());
  if (stage.program.replay != nullptr) {
    const ops::Matrix<std::int32_t>& replayed = (*stage.program.replay)[static_cast<std::size_t>(layer)];
    const TokenRows own = stage.tokens.rows.part(stage.own_rows());
    for (std::int64_t i = 0; i < rows; ++i) std::ranges::copy(replayed.row(own[i]), routing.ids.row(i).begin());
    ops::route_weights<T>(logits, routing.ids, spec.norm_topk_prob, stage.format(), routing.weights);
  }
  stage.tap(layer, "moe.router_weights", routing.weights, stage.own_rows());
  if (stage.program.fault != nullptr) inject_routing_fault(stage, layer, logits, routing);
  return routing;
}

/// Runs this rank's slice of its experts over rows that are sorted by expert, rows_of[e] of each; [rows, hidden]
/// addends over etp.
template <class T>
ops::Matrix<T> run_experts(const Stage<T>& stage, const RankWeights<T>& weights, int layer, const ops::Matrix<T>& x,
                           std::span<const std::int64_t> rows_of) {
  const ops::ThreadScope threads = stage.op_threads();
  ops::Matrix<T> y(x.rows(), x.cols());
  std::int64_t begin = 0;
  for (std::size_t e = 0; e < rows_of.size(); ++e) {
    const std::int64_t rows = rows_of[e];
    if (rows == 0) continue;
    const int expert = static_cast<int>(stage.layer_layout(layer).experts.begin) + static_cast<int>(e);
    const WeightSlice<T>& gate = weights(Tensor::expert_gate, layer, expert);
    const ops::MatrixView<const T> in = std::as_const(x).view().row_range(begin, rows);
    ops::expert<T>(in, gate.load(), weights(Tensor::expert_up, layer, expert).load(),
                   weights(Tensor::expert_down, layer, expert).load(), stage.format(), y.view().row_range(begin, rows));
    stage.record("moe.expert", layer, rows, x.cols(),
                 ops::expert_cost(rows, x.cols(), gate.rows.count, stage.element_bytes()), expert);
    begin += rows;
  }
  return y;
}

template <class T>
ops::Matrix<T> gathered(const ops::Matrix<T>& x, std::span<const std::int64_t> rows) {
  ops::Matrix<T> out(std::ssize(rows), x.cols());
  ops::gather_rows<T>(x, rows, out);
  return out;
}

/// The experts' share of the layer on rows that arrived over ep: chunks in order of their sender, each by local expert.
/// counts is [ep * local experts]. Returns the stored outputs in the same order.
template <class T>
Task<ops::Matrix<T>> experts_over_etp(const Stage<T>& stage, const RankWeights<T>& weights, int layer, ops::Matrix<T> x,
                                      std::vector<std::int64_t> counts) {
  const std::int64_t hidden = stage.model().hidden_size;
  const std::int64_t experts = stage.layer_layout(layer).experts.count;
  Communicator& etp = stage.rank.etp();
  const std::int64_t own_rows = x.rows();
  Counts element_of_member;
  if (etp.size() > 1) {
    std::vector<std::int64_t> all_counts(counts.size() * static_cast<std::size_t>(etp.size()));
    co_await etp.all_gather(std::span<const std::int64_t>(counts), std::span<std::int64_t>(all_counts));
    element_of_member = element_counts(all_counts, std::ssize(counts), hidden);
    ops::Matrix<T> all_rows(sum(all_counts), hidden);
    co_await etp.all_gather_v(std::as_const(x).span(), all_rows.span(),
                              std::span<const std::size_t>(element_of_member));
    x = std::move(all_rows);
    counts = std::move(all_counts);
  }

  const std::vector<std::int64_t> order = sort_by_expert(counts, experts);
  std::vector<std::int64_t> rows_of(static_cast<std::size_t>(experts), 0);
  for (std::size_t i = 0; i < counts.size(); ++i) rows_of[i % rows_of.size()] += counts[i];
  const ops::Matrix<T> sorted = gathered(x, std::span<const std::int64_t>(order));
  stage.record("moe.sort", layer, sorted.rows(), hidden,
               ops::gather_rows_cost(sorted.rows(), hidden, stage.element_bytes()));
  const ops::Matrix<T> outputs = run_experts(stage, weights, layer, sorted, rows_of);
  ops::Matrix<T> y = gathered(outputs, std::span<const std::int64_t>(inverse(order)));
  stage.record("moe.unsort", layer, y.rows(), hidden, ops::gather_rows_cost(y.rows(), hidden, stage.element_bytes()));

  if (etp.size() > 1) {
    ops::store_partial<T>(y.span(), stage.format());
    ops::Matrix<T> own(own_rows, hidden);
    co_await etp.reduce_scatter_v(std::as_const(y).span(), own.span(), std::span<const std::size_t>(element_of_member),
                                  reduce_scatter_options(stage.program.reduction));
    y = std::move(own);
  }
  ops::store<T>(y.span(), stage.format());
  co_return y;
}

/// Sends every token to its experts and combines what comes back: [own rows, hidden].
template <class T>
Task<ops::Matrix<T>> dispatch_and_combine(const Stage<T>& stage, const RankWeights<T>& weights, int layer,
                                          ops::MatrixView<const T> h, const Routing<T>& routing) {
  const std::int64_t hidden = stage.model().hidden_size;
  Communicator& ep = stage.rank.ep();
  const Permutation permutation = permute_by_owner(routing.ids, stage.layer_layout(layer).expert_owner, ep.size());
  const std::int64_t slots = std::ssize(permutation.rows);
  ops::Matrix<T> sent(slots, hidden);
  ops::gather_rows<T>(h, permutation.rows, sent);
  stage.record("moe.permute", layer, slots, hidden, ops::gather_rows_cost(slots, hidden, stage.element_bytes()));

  ops::Matrix<T> outputs;
  if (ep.size() > 1) {
    const std::int64_t experts = stage.layer_layout(layer).experts.count;
    std::vector<std::int64_t> arriving(permutation.counts.size());
    co_await ep.all_to_all(std::span<const std::int64_t>(permutation.counts), std::span<std::int64_t>(arriving));
    const Counts send_counts = element_counts(permutation.counts, experts, hidden);
    const Counts receive_counts = element_counts(arriving, experts, hidden);
    ops::Matrix<T> received(sum(arriving), hidden);
    co_await ep.all_to_all_v(std::as_const(sent).span(), std::span<const std::size_t>(send_counts), received.span(),
                             std::span<const std::size_t>(receive_counts));
    const ops::Matrix<T> done =
        co_await experts_over_etp(stage, weights, layer, std::move(received), std::move(arriving));
    outputs = std::move(sent);
    co_await ep.all_to_all_v(done.span(), std::span<const std::size_t>(receive_counts), outputs.span(),
                             std::span<const std::size_t>(send_counts));
  } else {
    outputs = co_await experts_over_etp(stage, weights, layer, std::move(sent), permutation.counts);
  }

  ops::Matrix<T> combined(h.rows, hidden);
  ops::combine<T>(outputs, permutation.positions, routing.weights, stage.format(), combined);
  stage.record("moe.combine", layer, h.rows, hidden,
               ops::combine_cost(h.rows, routing.weights.cols(), hidden, stage.element_bytes()));
  co_return combined;
}

}  // namespace

template <class T>
Task<> moe_block(const Stage<T>& stage, const RankWeights<T>& weights, int layer, ops::Matrix<T>& x) {
  const ModelConfig& model = stage.model();
  ops::Matrix<T> norm(x.rows(), x.cols());
  ops::rms_norm<T>(x, weights(Tensor::moe_norm, layer).load().view().span(), model.rms_norm_eps, stage.format(), norm);
  stage.record("moe.norm", layer, x.rows(), x.cols(), ops::rms_norm_cost(x.rows(), x.cols(), stage.element_bytes()));
  stage.tap(layer, "moe.norm", norm, stage.stream_rows());

  ops::MatrixView<const T> own = std::as_const(norm).view();
  if (!stage.layout.parallel.sp) own = own.row_range(stage.own_rows().begin, stage.own_rows().count);
  const Routing<T> routing = choose_experts(stage, weights, layer, own);
  ops::Matrix<T> combined = co_await dispatch_and_combine(stage, weights, layer, own, routing);
  const ops::Matrix<T> output = co_await own_rows_to_stream(stage, std::move(combined));
  stage.tap(layer, "moe.output", output, stage.stream_rows());

  ops::add<T>(x, output, stage.format(), x);
  stage.record("moe.residual", layer, x.rows(), x.cols(), ops::add_cost(x.rows(), x.cols(), stage.element_bytes()));
  stage.tap(layer, "moe.residual", x, stage.stream_rows());
}

template Task<> moe_block(const Stage<float>&, const RankWeights<float>&, int, ops::Matrix<float>&);
template Task<> moe_block(const Stage<double>&, const RankWeights<double>&, int, ops::Matrix<double>&);

}  // namespace shardproof
