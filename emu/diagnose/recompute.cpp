#include "emu/diagnose/recompute.h"

#include <algorithm>

#include "ops/attention.h"
#include "ops/expert.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace shardproof {
namespace {

using ConstView = ops::MatrixView<const double>;
using View = ops::MatrixView<double>;

ConstView one_row(std::span<const double> x) {
  return {x.data(), 1, std::ssize(x)};
}
View one_row(std::vector<double>& x) {
  return {x.data(), 1, std::ssize(x)};
}

}  // namespace

Recompute::Recompute(const Plan& plan, const PreparedReference& reference)
    : plan_(plan),
      mesh_(plan.parallel),
      stages_(plan.model, plan.parallel),
      reference_(reference),
      tokens_(plan.parallel, plan.workload) {
  for (int tp = 0; tp < plan.parallel.tp; ++tp) {
    layouts_by_tp_.push_back(make_layout(plan.model, mesh_, mesh_.rank_at({.tp = tp})));
  }
}

int Recompute::routing_rank(int layer, std::int64_t row) const {
  Coordinates at = tokens_.home(row).at;
  at.pp = stages_.stage_of(layer);
  return mesh_.rank_at(at);
}

TokenRows Recompute::rows_beside(std::int64_t row) const {
  const RowHome home = tokens_.home(row);
  return tokens_.rows(home.at, home.microbatch);
}

const ExpectedTap& Recompute::tap(int layer, TapKind kind) const {
  const int index = reference_.expected.find(TapId{.layer = layer, .kind = kind});
  return reference_.expected.all().at(static_cast<std::size_t>(index));
}

std::span<const double> Recompute::row(const ExpectedTap& tap, std::int64_t row) const {
  return std::span(tap.values).subspan(static_cast<std::size_t>(row * tap.cols), static_cast<std::size_t>(tap.cols));
}

const ExpectedTap& Recompute::norm_input(int layer, TapKind norm) const {
  if (norm == TapKind::moe_norm) return tap(layer, TapKind::attention_residual);
  const int before = norm == TapKind::final_norm ? static_cast<int>(plan_.model.layers.size()) - 1 : layer - 1;
  return before < 0 ? tap(-1, TapKind::embedding) : tap(before, TapKind::moe_residual);
}

LoadedWeight<double> Recompute::slice(const WeightSpec& spec, Range rows, Range cols) {
  return reference_.slices->get(spec, rows, cols);
}

Recompute::Row Recompute::norm(std::span<const double> x, const WeightSpec& weight) {
  Row y(x.size());
  ops::rms_norm<double>(one_row(x), whole(weight).view().span(), plan_.model.rms_norm_eps, format(), one_row(y));
  return y;
}

Recompute::Row Recompute::project(std::span<const double> x, const WeightSpec& weight, Range rows) {
  Row y(static_cast<std::size_t>(rows.count));
  ops::linear<double>(one_row(x), slice(weight, rows, {0, weight.cols}), one_row(y));
  finish(y);
  return y;
}

void Recompute::rotate(Row& heads, int layer, std::int64_t position) const {
  const AttentionSpec& spec = plan_.model.layers[layer].attention;
  ops::rope<double>(one_row(heads), std::span<const std::int64_t>(&position, 1), spec.head_dim, spec.rope_theta,
                    format());
}

Recompute::Row Recompute::attend_in(int layer, Range rows, std::int64_t place, const HeadPair& heads) {
  const std::int64_t dim = plan_.model.layers[layer].attention.head_dim;
  const auto block = [&](TapKind kind, std::int64_t index) {
    const ExpectedTap& source = tap(layer, kind);
    const double* first = source.values.data() + rows.begin * source.cols;
    return ConstView{first, rows.count, source.cols, source.cols}.col_range(index * dim, dim);
  };
  const std::vector<std::int64_t> offsets{0, rows.count};
  ops::Matrix<double> out(rows.count, dim);
  ops::attention<double>(block(TapKind::attention_q, heads.query), block(TapKind::attention_k, heads.key_value),
                         block(TapKind::attention_v, heads.key_value), offsets, dim, format(), out);
  const std::span<const double> last = std::as_const(out).row(place);
  return {last.begin(), last.end()};
}

Recompute::Row Recompute::attention_partial_sum(int layer, std::int64_t row_index, int tp, const WeightsFrom& from) {
  const std::int64_t dim = plan_.model.layers[layer].attention.head_dim;
  const Range heads = layouts_by_tp_[static_cast<std::size_t>(tp)].layer(plan_.model, layer).heads;
  const Range held = layouts_by_tp_[static_cast<std::size_t>(from.tp)].layer(plan_.model, layer).heads;
  const WeightSpec spec = weight_spec(plan_.model, Weight::attention_output, from.layer);
  const LoadedWeight<double> w = slice(spec, {0, spec.rows}, {held.begin * dim, held.count * dim});
  const std::span<const double> context = row(tap(layer, TapKind::attention_context), row_index);
  Row y(static_cast<std::size_t>(plan_.model.hidden_size));
  ops::linear<double>(one_row(context.subspan(static_cast<std::size_t>(heads.begin * dim),
                                              static_cast<std::size_t>(heads.count * dim))),
                      w, one_row(y));
  return y;
}

Recompute::Row Recompute::embedding_partial_sum(std::int64_t row_index, int tp) {
  const Range held = layouts_by_tp_[static_cast<std::size_t>(tp)].vocabulary;
  const std::int32_t id = batch().tokens()[static_cast<std::size_t>(row_index)];
  if (id < held.begin || id >= held.end()) return Row(static_cast<std::size_t>(plan_.model.hidden_size), 0.0);
  const LoadedWeight<double> table = whole(weight_spec(plan_.model, Weight::embedding));
  const std::span<const double> values = table.view().row(id);
  return {values.begin(), values.end()};
}

std::span<const double> Recompute::expert_partial_sum(int layer, std::int64_t row_index, const ExpertFrom& from,
                                                      const EtpSlices& slices) {
  ops::Matrix<double>& y = experts_[{layer, from.layer, from.expert, slices.gate_up, slices.down}];
  if (y.rows() == 0) {
    const ModelConfig& model = plan_.model;
    const std::int64_t intermediate_size = model.layers[layer].feed_forward.intermediate_size;
    const Range part = partition(intermediate_size, plan_.parallel.etp, slices.gate_up);
    const Range down = partition(intermediate_size, plan_.parallel.etp, slices.down);
    const auto spec = [&](Weight weight) {
      return weight_spec(model, weight, from.layer, static_cast<int>(from.expert));
    };
    const ExpectedTap& x = tap(layer, TapKind::moe_norm);
    y = ops::Matrix<double>(x.rows, x.cols);
    ops::expert<double>({x.values.data(), x.rows, x.cols},
                        slice(spec(Weight::expert_gate), part, {0, model.hidden_size}),
                        slice(spec(Weight::expert_up), part, {0, model.hidden_size}),
                        slice(spec(Weight::expert_down), {0, model.hidden_size}, down), format(), y);
  }
  return std::as_const(y).row(row_index);
}

Recompute::Row Recompute::expert_output(int layer, std::int64_t row_index, const ExpertFrom& from) {
  Row sum(static_cast<std::size_t>(plan_.model.hidden_size), 0.0);
  for (int t = 0; t < plan_.parallel.etp; ++t) {
    const std::span<const double> partial = expert_partial_sum(layer, row_index, from, {.gate_up = t, .down = t});
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += partial[i];
  }
  finish(sum);
  return sum;
}

void Recompute::finish(Row& values) const {
  ops::round_to<double>(values, format());
}

}  // namespace shardproof
