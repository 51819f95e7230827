// Queries, keys and values, as one rank of a run makes them.
#include <algorithm>
#include <utility>

#include "emu/diagnose/internal/one_row.h"
#include "emu/diagnose/recompute.h"
#include "emu/run/rope_pairs.h"
#include "ops/latent.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace shardproof {

Recompute::Row Recompute::heads(TapKind kind, int layer, const Origin& from, Range cols) {
  const AttentionSpec& spec = plan_.model.layers[layer].attention;
  if (spec.latent()) return latent_heads(kind, layer, from, cols);
  Row y = product(kind, layer, from, cols, from.elsewhere.in_row);
  if (kind == TapKind::attention_v) {
    clip(y, spec.clip_qkv);
    return y;
  }
  if (spec.query_key_norm == QueryKeyNorm::full) {
    norm_over_heads(y, kind, layer, from, cols);
  } else if (spec.query_key_norm == QueryKeyNorm::head) {
    const bool of_queries = (kind == TapKind::attention_q) != (from.exchanged == Origin::Exchanged::norms);
    const Weight norm_weight = of_queries ? Weight::attention_q_norm : Weight::attention_k_norm;
    const LoadedWeight<double> scale =
        whole(weight_spec(plan_.model, norm_weight, from.vectors >= 0 ? from.vectors : from.layer));
    const ops::MatrixView<double> by_head(y.data(), std::ssize(y) / spec.head_dim, spec.head_dim);
    ops::rms_norm<double>(by_head, scale.view().row(0), plan_.model.rms_norm_eps, format(), by_head);
  }
  clip(y, spec.clip_qkv);
  rotate(y, layer, from);
  return y;
}

Recompute::Row Recompute::product(TapKind kind, int layer, const Origin& from, Range cols, bool elsewhere) {
  using Exchanged = Origin::Exchanged;
  const bool exchanged = from.exchanged == Exchanged::weights || from.exchanged == Exchanged::weights_and_biases;
  const Weight weight = kind == TapKind::attention_q                  ? Weight::attention_q
                        : (kind == TapKind::attention_k) != exchanged ? Weight::attention_k
                                                                      : Weight::attention_v;
  const std::span<const double> x = row(tap(layer, TapKind::attention_norm), from.row);
  WeightSpec spec = weight_spec(plan_.model, weight, from.layer);
  // Its bias is that of what it is taken for.
  if (from.exchanged == Exchanged::weights) {
    spec.weight = kind == TapKind::attention_k ? Weight::attention_k : Weight::attention_v;
  }
  Row y = project(x, spec, cols, from.vectors, from.bias_shift);
  const Origin::Elsewhere& other = from.elsewhere;
  const Range both{
      std::max(cols.begin, other.cols.begin),
      std::max<std::int64_t>(0, std::min(cols.end(), other.cols.end()) - std::max(cols.begin, other.cols.begin))};
  if (!elsewhere || both.count == 0) return y;
  const std::span<const double> from_row = other.row < 0 ? x : row(tap(layer, TapKind::attention_norm), other.row);
  const Row values =
      project(from_row, weight_spec(plan_.model, weight, other.layer),
              {other.begin + both.begin - other.cols.begin, both.count}, from.vectors >= 0 ? from.vectors : from.layer);
  std::ranges::copy(values, y.begin() + (both.begin - cols.begin));
  return y;
}

void Recompute::norm_over_heads(Row& y, TapKind kind, int layer, const Origin& from, Range cols) {
  using Squares = Origin::Squares;
  const bool queries = kind == TapKind::attention_q;
  const WeightSpec norm = weight_spec(plan_.model, queries ? Weight::attention_q_norm : Weight::attention_k_norm,
                                      from.vectors >= 0 ? from.vectors : from.layer);
  const Row all =
      from.squares == Squares::of_all ? product(kind, layer, from, {0, norm.cols}, from.elsewhere.in_squares) : y;
  ops::Matrix<double> squares(1, 1);
  ops::sum_squares<double>(one_row(std::span<const double>(all)), squares, 0);
  ops::rms_norm_part<double>(one_row(y), squares, 0, from.squares == Squares::of_slice ? cols.count : norm.cols,
                             vector(norm, {(cols.begin + from.norm_shift) % norm.cols, cols.count}),
                             plan_.model.rms_norm_eps, format(), one_row(y));
}

Recompute::Row Recompute::latent_heads(TapKind kind, int layer, const Origin& from, Range cols) {
  const AttentionSpec& spec = plan_.model.layers[layer].attention;
  if (kind == TapKind::attention_q) {
    const TapKind source = spec.q_lora_rank > 0 ? TapKind::attention_q_latent_norm : TapKind::attention_norm;
    Row y = project(row(tap(layer, source), from.row), weight_spec(plan_.model, Weight::attention_q, from.layer), cols);
    rotate(y, layer, from);
    return y;
  }
  const std::int64_t turned = spec.rope.dim, width = kind == TapKind::attention_k ? spec.head_dim : spec.value_dim();
  const std::int64_t both = spec.head_dim - turned + spec.value_dim();
  const Range wanted{cols.begin / width, cols.count / width};
  const Row product =
      project(row(tap(layer, TapKind::attention_kv_latent_norm), from.row),
              weight_spec(plan_.model, Weight::attention_kv, from.layer), {wanted.begin * both, wanted.count * both});
  const std::span<const double> shared =
      row(tap(layer, TapKind::attention_kv_latent), from.row).subspan(static_cast<std::size_t>(spec.kv_lora_rank));
  ops::Matrix<double> k(1, wanted.count * spec.head_dim), v(1, wanted.count * spec.value_dim());
  ops::split_latent_heads<double>(one_row(product), one_row(shared), spec.value_dim(), k, v);
  const std::span<const double> values =
      kind == TapKind::attention_k ? std::as_const(k).row(0) : std::as_const(v).row(0);
  Row y(values.begin(), values.end());
  if (kind == TapKind::attention_k) rotate(y, layer, from);
  return y;
}

void Recompute::rotate(Row& heads, int layer, const Origin& from) const {
  AttentionSpec spec = plan_.model.layers[layer].attention;
  spec.rope.interleaved = spec.rope.interleaved != from.other_pairs;
  const ops::RopeTable<double> table(from.position + 1, rope_pairs(spec), format());
  ops::rope<double>(one_row(heads), std::span<const std::int64_t>(&from.position, 1), table);
}

}  // namespace shardproof
