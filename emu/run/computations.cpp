#include "emu/run/computations.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "emu/run/dry_run.h"
#include "emu/run/fault.h"
#include "emu/run/slot_board.h"
#include "emu/run/transformer.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/expert.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/permute.h"
#include "ops/router.h"
#include "ops/threads.h"

namespace shardproof {
namespace {

std::int64_t rows_of(const ShapeMatrix& x) {
  return x.rows();
}
std::int64_t cols_of(const ShapeMatrix& x) {
  return x.cols();
}
template <class T>
std::int64_t rows_of(ops::MatrixView<T> x) {
  return x.rows;
}
template <class T>
std::int64_t cols_of(ops::MatrixView<T> x) {
  return x.cols;
}

}  // namespace

template <class T>
template <class... From>
void Computations<T>::inject_result_fault([[maybe_unused]] Op op, [[maybe_unused]] int layer,
                                          [[maybe_unused]] const ops::MatrixView<Scalar>& result,
                                          [[maybe_unused]] const From&... operands) const {
  if constexpr (!kDry) {
    if (ground_.program.fault == nullptr) return;
    const FaultSite site{.layer = layer, .microbatch = microbatch_};
    if constexpr (std::is_same_v<T, float>) {
      ground_.program.fault->edit_result(ground_.rank, op, site, Operands{operands...}, result);
    } else {
      ground_.program.fault->edit_double_result(ground_.rank, op, site, result);
    }
  }
}

template <class T>
typename Computations<T>::Tensor Computations<T>::embed(Op op) {
  const std::int64_t hidden = model_.hidden_size;
  Tensor partial(rows(), hidden);
  if constexpr (!kDry) {
    // Of the rank's part of the table, only the rows that are looked up: `looked_up` has that of ids[i] in row i.
    const std::vector<std::int32_t> ids = ground_.program.batch.tokens(tokens_.rows);
    const WeightSlice<Scalar>& table = slice(Weight::embedding, -1);
    std::vector<std::int32_t> places(ids.size(), -1);
    ops::Matrix<Scalar> looked_up(rows(), hidden);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::int64_t row = ids[i] - layout_.vocabulary.begin;
      if (row < 0 || row >= table.rows.count) continue;
      places[i] = static_cast<std::int32_t>(i);
      table.read_row(row, looked_up.row(static_cast<std::int64_t>(i)));
    }
    ops::embed<T>(places, looked_up, 0, partial);
    poison_padding(partial);
    inject_result_fault(op, -1, partial.view());
  }
  record(op, -1, rows(), hidden, ops::embed_cost(rows(), hidden, element_bytes()));
  return partial;
}

template <class T>
typename Computations<T>::Tensor Computations<T>::rms_norm(Op op, int layer, const Tensor& x, Weight weight) {
  Tensor y(x.rows(), x.cols());
  if constexpr (!kDry) {
    ops::rms_norm<T>(x, slice(weight, layer).load().view().span(), model_.rms_norm_eps, format_, y);
    inject_result_fault(op, layer, y.view());
  }
  record(op, layer, y.rows(), y.cols(), ops::rms_norm_cost(y.rows(), y.cols(), element_bytes()));
  return y;
}

template <class T>
void Computations<T>::add_bias([[maybe_unused]] int layer, [[maybe_unused]] std::optional<Weight> bias,
                               [[maybe_unused]] Range outputs, [[maybe_unused]] ops::MatrixView<Scalar> y) const {
  if constexpr (!kDry) {
    if (!bias || !has_weight(model_, *bias, layer)) return;
    const LoadedWeight<Scalar> whole = slice(*bias, layer).load();
    ops::add_bias<T>(y, whole.view().col_range(outputs.begin, outputs.count).row(0));
  }
}

template <class T>
typename Computations<T>::Tensor Computations<T>::linear(Op op, int layer, View x, Weight weight,
                                                         std::optional<Weight> bias) {
  const ShapeMatrix w = slice_shape(weight, layer);
  Tensor y(rows_of(x), w.rows());
  if constexpr (!kDry) {
    const ops::ThreadScope threads(ground_.program.threads_per_rank);
    slice(weight, layer).for_each_block([&](Range outputs, const LoadedWeight<Scalar>& loaded) {
      const ops::MatrixView<Scalar> block = y.view().col_range(outputs.begin, outputs.count);
      ops::linear<T>(x, loaded, block);
      add_bias(layer, bias, outputs, block);
      inject_result_fault(op, layer, block, x, loaded.view());
    });
    ops::round_to<T>(y.span(), format_);
    if (weight == Weight::head && model_.logits_scaling != 1) ops::divide<T>(y, model_.logits_scaling, format_);
  }
  record(op, layer, y.rows(), y.cols(), ops::linear_cost(y.rows(), y.cols(), cols_of(x), element_bytes()));
  return y;
}

template <class T>
typename Computations<T>::Tensor Computations<T>::partial_linear(Op op, int layer, const Tensor& x, Weight weight,
                                                                 std::optional<Weight> bias) {
  const ShapeMatrix w = slice_shape(weight, layer);
  Tensor y(x.rows(), w.rows());
  if constexpr (!kDry) {
    const ops::ThreadScope threads(ground_.program.threads_per_rank);
    slice(weight, layer).for_each_block([&](Range outputs, const LoadedWeight<Scalar>& loaded) {
      const ops::MatrixView<Scalar> block = y.view().col_range(outputs.begin, outputs.count);
      ops::linear<T>(x, loaded, block);
      if (layout_.at.tp == 0) add_bias(layer, bias, outputs, block);
      inject_result_fault(op, layer, block, x.view(), loaded.view());
    });
  }
  round_partial(y, layout_.parallel.tp);
  record(op, layer, y.rows(), y.cols(), ops::linear_cost(y.rows(), y.cols(), x.cols(), element_bytes()));
  return y;
}

template <class T>
void Computations<T>::add(Op op, int layer, Tensor& x, [[maybe_unused]] const Tensor& y) {
  if constexpr (!kDry) {
    ops::add<T>(x, y, format_, x);
    inject_result_fault(op, layer, x.view());
  }
  record(op, layer, x.rows(), x.cols(), ops::add_cost(x.rows(), x.cols(), element_bytes()));
}

template <class T>
void Computations<T>::inject_routing_fault([[maybe_unused]] int layer, [[maybe_unused]] const Tensor& logits,
                                           [[maybe_unused]] Routing& routing) const {
  if constexpr (!kDry) {
    ops::Matrix<double> scores(logits.rows(), logits.cols());
    ops::Matrix<double> weights(routing.weights.rows(), routing.weights.cols());
    std::ranges::copy(logits.span(), scores.span().begin());
    std::ranges::copy(routing.weights.span(), weights.span().begin());
    ground_.program.fault->edit_routing(ground_.rank, {.layer = layer, .microbatch = microbatch_}, scores, routing.ids,
                                        weights);
    std::ranges::transform(weights.span(), routing.weights.span().begin(),
                           [](double weight) { return static_cast<T>(weight); });
  }
}

template <class T>
ops::RouteOptions<typename Computations<T>::Scalar> Computations<T>::route_options(int layer) const {
  const FeedForwardSpec& spec = model_.layers[layer].feed_forward;
  return {.top_k = spec.top_k,
          .normalise = spec.norm_topk_prob,
          .sigmoid = spec.scoring == Scoring::sigmoid,
          .selection_bias = {},
          .groups = spec.groups,
          .top_groups = spec.top_groups,
          .scale = spec.routed_scaling_factor,
          .sparsemixer = spec.scoring == Scoring::sparsemixer,
          .jitter = spec.router_jitter};
}

template <class T>
void Computations<T>::choose_and_weigh([[maybe_unused]] int layer, [[maybe_unused]] const Tensor& logits,
                                       [[maybe_unused]] Routing& routing) {
  if constexpr (!kDry) {
    const FeedForwardSpec& spec = model_.layers[layer].feed_forward;
    ops::RouteOptions<T> options = route_options(layer);
    std::optional<LoadedWeight<T>> bias;
    if (spec.selection_bias) {
      options.selection_bias = bias.emplace(slice(Weight::router_selection_bias, layer).load()).view().row(0);
    }
    if (ground_.program.fault != nullptr) {
      RouterRule rule{options.closed_score, options.weighs_bias};
      ground_.program.fault->edit_router(ground_.rank, {.layer = layer, .microbatch = microbatch_}, rule);
      options.closed_score = rule.closed_score;
      options.weighs_bias = rule.weighs_bias;
    }
    Tensor scores(logits.rows(), logits.cols());
    ops::selection_scores<T>(logits, options, format_, scores);
    if (options.sigmoid) tap(TapKind::router_scores, layer, scores);
    ops::choose_experts<T>(scores, options, routing.ids);
    ops::route_weights<T>(logits, routing.ids, options, format_, routing.weights);
    tap(TapKind::router_choice, layer, routing.ids);
    if (ground_.program.replay != nullptr) {
      const ops::Matrix<std::int32_t>& replayed = (*ground_.program.replay)[static_cast<std::size_t>(layer)];
      const TokenRows own = tokens_.rows.part(own_rows());
      for (std::int64_t i = 0; i < routing.ids.rows(); ++i) {
        std::ranges::copy(replayed.row(own[i]), routing.ids.row(i).begin());
      }
      ops::route_weights<T>(logits, routing.ids, options, format_, routing.weights);
    }
    tap(TapKind::router_weights, layer, routing.weights);
    if (ground_.program.fault != nullptr) inject_routing_fault(layer, logits, routing);
  }
}

template <class T>
typename Computations<T>::Routing Computations<T>::route(Op op, int layer, const Tensor& logits) {
  const FeedForwardSpec& spec = model_.layers[layer].feed_forward;
  Routing routing{{logits.rows(), spec.top_k}, {logits.rows(), spec.top_k}};
  if (tokens_.padded) {
    route_padding(routing);
  } else {
    choose_and_weigh(layer, logits, routing);
  }
  record(op, layer, logits.rows(), spec.top_k,
         ops::route_cost(logits.rows(), logits.cols(), spec.top_k, element_bytes()));
  return routing;
}

template <class T>
typename Computations<T>::Tensor Computations<T>::gather_rows(Op op, int layer, View x, const RowOrder& order) {
  Tensor y(order.count, cols_of(x));
  if constexpr (!kDry) ops::gather_rows<T>(x, order.rows, y);
  record(op, layer, y.rows(), y.cols(), ops::gather_rows_cost(y.rows(), y.cols(), element_bytes()));
  return y;
}

template <class T>
void Computations<T>::expert(Op op, int layer, int expert, [[maybe_unused]] const Tensor& x, Range rows, Tensor& y,
                             [[maybe_unused]] ExpertSteps& steps) {
  if constexpr (!kDry) {
    const ops::ThreadScope threads(ground_.program.threads_per_rank);
    const auto index = static_cast<int>(layout_.logical_expert(layer, held(layer).experts.begin + expert));
    const auto part = [&](Tensor& whole) {
      return whole.rows() == 0 ? ops::MatrixView<T>() : whole.view().row_range(rows.begin, rows.count);
    };
    const LoadedWeight<Scalar> down = slice(Weight::expert_down, layer, index).load();
    ops::ExpertOptions<T> options{.swiglu_limit = model_.layers[layer].feed_forward.swiglu_limit};
    std::vector<LoadedWeight<T>> biases;
    if (model_.layers[layer].feed_forward.expert_bias) {
      for (const Weight bias : {Weight::expert_gate_bias, Weight::expert_up_bias, Weight::expert_down_bias}) {
        biases.push_back(slice(bias, layer, index).load());
      }
      options.gate_bias = biases[0].view().row(0);
      options.up_bias = biases[1].view().row(0);
      // The sum over etp has it once.
      if (layout_.at.etp == 0) options.down_bias = biases[2].view().row(0);
    }
    ops::expert<T>(x.view().row_range(rows.begin, rows.count), slice(Weight::expert_gate, layer, index).load(),
                   slice(Weight::expert_up, layer, index).load(), down, format_, part(y),
                   {part(steps.gate), part(steps.up), part(steps.activation)}, options);
    inject_result_fault(op, layer, part(y), part(steps.activation), down.view());
  }
  record(op, layer, rows.count, y.cols(),
         ops::expert_cost(rows.count, y.cols(), held(layer).intermediate_size.count, element_bytes()), expert);
}

template <class T>
typename Computations<T>::Tensor Computations<T>::combine(Op op, int layer, [[maybe_unused]] const Tensor& outputs,
                                                          [[maybe_unused]] const Permutation& permutation,
                                                          const Tensor& weights) {
  Tensor y(weights.rows(), model_.hidden_size);
  if constexpr (!kDry) {
    ops::combine<T>(outputs, permutation.positions, weights, format_, y);
    inject_result_fault(op, layer, y.view(), outputs.view(), weights.view(), permutation.positions.view());
  }
  record(op, layer, y.rows(), y.cols(), ops::combine_cost(y.rows(), weights.cols(), y.cols(), element_bytes()));
  return y;
}

template <class T>
typename Computations<T>::Tensor Computations<T>::mlp(Op op, int layer, const Tensor& x,
                                                      [[maybe_unused]] ExpertSteps& steps) {
  const std::int64_t width = held(layer).mlp_size.count;
  Tensor y(x.rows(), model_.hidden_size);
  if constexpr (!kDry) {
    const ops::ThreadScope threads(ground_.program.threads_per_rank);
    if (tapped_inside()) {
      for (Tensor* step : {&steps.gate, &steps.up, &steps.activation}) *step = Tensor(x.rows(), width);
    }
    const LoadedWeight<Scalar> down = slice(Weight::mlp_down, layer).load();
    ops::expert<T>(x, slice(Weight::mlp_gate, layer).load(), slice(Weight::mlp_up, layer).load(), down, format_, y,
                   {steps.gate, steps.up, steps.activation});
    inject_result_fault(op, layer, y.view(), steps.activation.view(), down.view());
  }
  round_partial(y, layout_.parallel.tp);
  record(op, layer, y.rows(), y.cols(), ops::expert_cost(y.rows(), y.cols(), width, element_bytes()));
  return y;
}

template <class T>
typename Computations<T>::Tensor Computations<T>::gated(Op op, int layer, const Tensor& x,
                                                        [[maybe_unused]] const Tensor& logits) {
  Tensor y(x.rows(), x.cols());
  if constexpr (!kDry) {
    ops::gate_rows<T>(x, logits, format_, y);
    inject_result_fault(op, layer, y.view());
  }
  record(op, layer, y.rows(), y.cols(), ops::add_cost(y.rows(), y.cols(), element_bytes()));
  return y;
}

template <class T>
void Computations<T>::round([[maybe_unused]] Tensor& x) const {
  if constexpr (!kDry) ops::round_to<T>(x.span(), format_);
}

template <class T>
void Computations<T>::round_partial([[maybe_unused]] Tensor& x, [[maybe_unused]] int ranks) const {
  if constexpr (!kDry) {
    if (ranks > 1) ops::round_partial<T>(x.span(), format_);
  }
}

template <class T>
typename Computations<T>::View Computations<T>::own_of(const Tensor& stream) const {
  if constexpr (kDry) {
    return {own_rows().count, stream.cols()};
  } else {
    return sp() ? stream.view() : stream.view().row_range(own_rows().begin, own_rows().count);
  }
}

template <class T>
template <class M>
void Computations<T>::tap(TapKind kind, int layer, const M& tensor) const {
  tap_part(kind, layer, tap_row(kind).parts == TapParts::over_tp ? layout_.at.tp : -1, tensor);
}

template <class T>
template <class M>
void Computations<T>::tap_part([[maybe_unused]] TapKind kind, [[maybe_unused]] int layer, [[maybe_unused]] int part,
                               [[maybe_unused]] const M& tensor) const {
  if constexpr (!kDry) {
    const TapRow& row = tap_row(kind);
    if (!(row.inner ? tapped_inside() : ground_.rank.tapped())) return;
    const TapId id{.layer = layer, .kind = kind, .part = part};
    const std::int64_t width = tap_width(model_, id);
    const Range cols = part_of(layout_, model_, row.cols, layer, width);
    const Range places = row.rows == TapRows::all   ? Range{0, rows()}
                         : row.rows == TapRows::own ? own_rows()
                                                    : stream_rows();
    const TokenMap& all = ground_.program.deployment.tokens;
    std::int64_t first = 0;
    if (tokens_.padded) return;
    for (const Range& run : tokens_.rows.part(places).runs) {
      ground_.rank.tap(id, tensor.view().row_range(first, run.count), Placement{all.tokens(), width, run, cols, {}});
      first += run.count;
    }
  }
}

template <class T>
void Computations<T>::tap_if(TapKind kind, int layer, const Tensor& tensor) const {
  if (tap_width(model_, {.layer = layer, .kind = kind}) > 0) tap(kind, layer, tensor);
}

template <class T>
bool Computations<T>::tapped_inside() const {
  if constexpr (kDry) {
    return false;
  } else {
    return ground_.program.slots != nullptr && ground_.rank.tapped_inside();
  }
}

template <class T>
void Computations<T>::tap_slots([[maybe_unused]] TapKind kind, [[maybe_unused]] int layer,
                                [[maybe_unused]] const Tensor& tensor,
                                [[maybe_unused]] const std::vector<std::int64_t>& slots) const {
  if constexpr (!kDry) {
    if (!tapped_inside() || std::ssize(slots) != tensor.rows()) return;
    const TapRow& row = tap_row(kind);
    const TapId id{.layer = layer, .kind = kind, .part = row.parts == TapParts::over_etp ? layout_.at.etp : -1};
    const std::int64_t width = tap_width(model_, id);
    const std::int64_t rows = tap_rows(model_, id, ground_.program.deployment.tokens.tokens());
    const Range cols = part_of(layout_, model_, row.cols, layer, width);
    if (std::ranges::none_of(slots, [&](std::int64_t slot) { return slot >= rows; })) {
      return ground_.rank.template tap<T>(id, tensor, Placement::listed(rows, width, slots, cols));
    }
    const auto [of_tokens, held] = without_padding(tensor, slots, rows);
    if (held.empty()) return;
    ground_.rank.template tap<T>(id, of_tokens, Placement::listed(rows, width, held, cols));
  }
}

template <class T>
void Computations<T>::tap_over_ep([[maybe_unused]] TapKind kind, [[maybe_unused]] int layer,
                                  [[maybe_unused]] const Tensor& tensor,
                                  [[maybe_unused]] const std::vector<TokenRows>& rows_of) const {
  if constexpr (!kDry) {
    if (!tapped_inside()) return;
    const TapId id{.layer = layer, .kind = kind, .part = layout_.at.ep};
    const Range cols{0, tap_width(model_, id)};
    std::int64_t first = 0;
    for (const TokenRows& rows : rows_of) {
      for (const Range& run : rows.runs) {
        if (run.begin >= ground_.program.deployment.tokens.tokens()) {
          first += run.count;
          continue;
        }
        ground_.rank.tap(id, tensor.view().row_range(first, run.count),
                         Placement{ground_.program.deployment.tokens.tokens(), cols.count, run, cols, {}});
        first += run.count;
      }
    }
  }
}

template <class T>
void Computations<T>::record(Op op, int layer, std::int64_t rows, std::int64_t cols, ops::Cost cost, int expert) const {
  if (trace_ == nullptr) return;
  trace_->ops.push_back({.op = op,
                         .layer = layer,
                         .microbatch = microbatch_,
                         .expert = expert,
                         .rows = rows,
                         .cols = cols,
                         .flops = cost.flops,
                         .bytes = cost.bytes});
}

template <class T>
ShapeMatrix Computations<T>::slice_shape(Weight weight, int layer) const {
  if constexpr (kDry) {
    const WeightSpec spec = weight_spec(model_, weight, layer);
    return {part_of(layout_, model_, spec.row_split, layer, spec.rows).count,
            part_of(layout_, model_, spec.col_split, layer, spec.cols).count};
  } else {
    const WeightSlice<Scalar>& held_slice = slice(weight, layer);
    return {held_slice.rows.count, held_slice.cols.count};
  }
}

template <class T>
const WeightSlice<typename Computations<T>::Scalar>& Computations<T>::slice([[maybe_unused]] Weight weight,
                                                                            [[maybe_unused]] int layer,
                                                                            [[maybe_unused]] int expert) const {
  if constexpr (kDry) {
    throw std::logic_error("a dry run has no weights");
  } else {
    return ground_.weights(weight, layer, expert);
  }
}

}  // namespace shardproof

#include "emu/run/internal/attention_computations.h"
#include "emu/run/internal/cp_computations.h"
#include "emu/run/internal/dcp_computations.h"
#include "emu/run/internal/dispatch_computations.h"
#include "emu/run/internal/latent_computations.h"
#include "emu/run/internal/padding_computations.h"
#include "emu/run/internal/stream_computations.h"

namespace shardproof {

template class Computations<float>;
template class Computations<double>;
template class Computations<ShapeOnly>;

template void Computations<float>::tap(TapKind, int, const ops::Matrix<float>&) const;
template void Computations<double>::tap(TapKind, int, const ops::Matrix<double>&) const;
template void Computations<ShapeOnly>::tap(TapKind, int, const ShapeMatrix&) const;

}  // namespace shardproof
