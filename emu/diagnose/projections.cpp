// Causes at projections.
#include <fmt/format.h>

#include <algorithm>

#include "emu/diagnose/internal/wrong_tap.h"
#include "emu/weights/checkpoint_error.h"

namespace shardproof::diagnosis {
namespace {

/// A projection of a norm: what a tap of it is made of.
struct Projection {
  const ExpectedTap* input = nullptr;
  bool rotated = false;
  std::int64_t block = 0;  ///< width of a head, where it has heads
};

Projection projection_of(const WrongTap& wrong) {
  const ModelConfig& config = wrong.model.plan().model;
  if (wrong.kind == TapKind::logits) return {.input = &wrong.model.tap(-1, TapKind::final_norm)};
  if (wrong.kind == TapKind::router_logits) return {.input = &wrong.model.tap(wrong.layer, TapKind::moe_norm)};
  return {.input = &wrong.model.tap(wrong.layer, TapKind::attention_norm),
          .rotated = wrong.kind != TapKind::attention_v,
          .block = wrong.kind == TapKind::attention_v ? config.layers[wrong.layer].attention.value_dim()
                                                      : config.layers[wrong.layer].attention.head_dim};
}

WeightSpec weight_of(const ModelConfig& model, TapKind kind, int layer) {
  return kind == TapKind::logits ? weight_spec(model, Weight::head) : weight_spec(model, Weight::router, layer);
}

using Origin = Recompute::Origin;

/// The columns of a wrong row, projected from there.
std::vector<double> projected(const WrongTap& wrong, const Projection& projection, const WrongRow& row,
                              const Origin& from) {
  Recompute& model = wrong.model;
  const Range cols{row.col, std::ssize(row.got)};
  if (projection.block > 0) return model.heads(wrong.kind, wrong.layer, from, cols);
  return model.project(model.row(*projection.input, from.row), weight_of(model.plan().model, wrong.kind, from.layer),
                       cols, from.vectors);
}

std::optional<Cause> position_cause(const WrongTap& wrong, const Projection& projection) {
  Recompute& model = wrong.model;
  const std::int64_t longest = *std::ranges::max_element(model.batch().lengths());
  const std::int64_t last = 2 * longest + 8;
  std::optional<std::int64_t> shown;
  for (const WrongRow& row : wrong.rows) {
    std::int64_t position = 0;
    while (position <= last &&
           !close(projected(wrong, projection, row, {row.row, wrong.layer, position}), row.got, wrong.tolerance)) {
      ++position;
    }
    if (position > last) return std::nullopt;
    if (!shown) shown = position;
  }
  const WrongRow& first = wrong.rows.front();
  return Cause{
      "positions",
      fmt::format("{} rows on {} are rotated for other positions: token {} for position {}, not {}", wrong.rows.size(),
                  ranks_of(wrong.rows), first.row, *shown, model.tokens().position(first.row))};
}

/// Rows made of other rows' norms.
std::optional<Cause> input_row_cause(const WrongTap& wrong, const Projection& projection) {
  Recompute& model = wrong.model;
  std::vector<std::int64_t> sources;
  for (const WrongRow& row : wrong.rows) {
    const std::int64_t position = model.tokens().position(row.row);
    const TokenRows near = model.rows_beside(row.row);
    const std::int64_t count = near.count();
    std::int64_t place = 0;
    while (place < count &&
           !close(projected(wrong, projection, row, {near[place], wrong.layer, position}), row.got, wrong.tolerance)) {
      ++place;
    }
    if (place == count) return std::nullopt;
    sources.push_back(near[place]);
  }
  return row_order_cause(wrong, sources);
}

/// Norms over all heads, of the squares that one rank has.
std::optional<Cause> norm_slice_cause(const WrongTap& wrong, const Projection& projection) {
  using Squares = Origin::Squares;
  const ModelConfig& config = wrong.model.plan().model;
  if (!projection.rotated || config.layers[wrong.layer].attention.query_key_norm != QueryKeyNorm::full) {
    return std::nullopt;
  }
  for (const Squares squares : {Squares::of_slice, Squares::of_slice_over_all}) {
    const auto over_slice = [&](const WrongRow& row) {
      return projected(wrong, projection, row,
                       {row.row, wrong.layer, wrong.model.tokens().position(row.row), -1, squares});
    };
    if (!explains(wrong.rows, over_slice, wrong.tolerance)) continue;
    return Cause{"norm_over_slice",
                 fmt::format("{} norm over the {} columns that they hold{}, not over all {}: the sum of the squares "
                             "over tp is missing",
                             ranks_of(wrong.rows), wrong.rows.front().got.size(),
                             squares == Squares::of_slice ? "" : ", divided by the whole width", wrong.expected.cols)};
  }
  return std::nullopt;
}

/// Of biases, the part that another rank holds.
std::optional<Cause> bias_slice_cause(const WrongTap& wrong, const Projection& projection) {
  const AttentionSpec& spec = wrong.model.plan().model.layers[wrong.layer].attention;
  if (projection.block == 0 || !spec.qkv_bias || spec.latent()) return std::nullopt;
  const std::int64_t held = std::ssize(wrong.rows.front().got), cols = wrong.expected.cols;
  for (std::int64_t shift = held; shift < cols; shift += held) {
    const auto with_other = [&](const WrongRow& row) {
      if ((row.col + shift) % cols + std::ssize(row.got) > cols) return std::vector<double>();
      Origin from{row.row, wrong.layer, wrong.model.tokens().position(row.row)};
      from.bias_shift = shift;
      return projected(wrong, projection, row, from);
    };
    if (!explains(wrong.rows, with_other, wrong.tolerance)) continue;
    const std::int64_t head = wrong.rows.front().col / projection.block;
    return Cause{"wrong_slice", fmt::format("{} add the bias of head {} where head {} begins", ranks_of(wrong.rows),
                                            (wrong.rows.front().col + shift) % cols / projection.block, head)};
  }
  return std::nullopt;
}

/// Of norms over all heads, the part of the weight that another rank holds.
std::optional<Cause> norm_weight_cause(const WrongTap& wrong, const Projection& projection) {
  const AttentionSpec* const spec =
      wrong.layer >= 0 ? &wrong.model.plan().model.layers[wrong.layer].attention : nullptr;
  if (!projection.rotated || spec == nullptr || spec->query_key_norm != QueryKeyNorm::full) return std::nullopt;
  const std::int64_t held = std::ssize(wrong.rows.front().got);
  for (std::int64_t shift = spec->head_dim; shift + held <= wrong.expected.cols; shift += spec->head_dim) {
    const auto with_other = [&](const WrongRow& row) {
      const std::int64_t begin = (row.col + shift) % wrong.expected.cols;
      if (begin + std::ssize(row.got) > wrong.expected.cols) return std::vector<double>();
      return projected(
          wrong, projection, row,
          {row.row, wrong.layer, wrong.model.tokens().position(row.row), -1, Origin::Squares::of_all, shift});
    };
    if (!explains(wrong.rows, with_other, wrong.tolerance)) continue;
    const WrongRow& first = wrong.rows.front();
    return Cause{"norm_of_another_head",
                 fmt::format("head {} on {} is normed with the weight of head {}", first.col / spec->head_dim,
                             ranks_of(wrong.rows), (first.col + shift) % wrong.expected.cols / spec->head_dim)};
  }
  return std::nullopt;
}

/// Of norms over all heads: what one rank of tp makes of its product, which is in every rank's sum of the squares.
class NormedProducts {
 public:
  NormedProducts(const WrongTap& wrong, const Projection& projection) : wrong_(wrong), projection_(projection) {}

  bool apply() const {
    if (!projection_.rotated || wrong_.layer < 0) return false;
    return spec().query_key_norm == QueryKeyNorm::full;
  }
  Range cols_of(int member) const {
    const LayerLayout& held = held_by(member);
    const Range heads = queries() ? held.heads : held.kv_heads;
    return {heads.begin * spec().head_dim, heads.count * spec().head_dim};
  }
  /// Of key-value heads that several ranks hold, the squares of the first are taken.
  std::vector<double> predicted(const WrongRow& row, int member, const Origin::Elsewhere& elsewhere) const {
    return predicted(row, row.row, member, elsewhere);
  }
  /// Of all other ranks' products from the row `others`, -1 of zeros.
  std::vector<double> predicted(const WrongRow& row, std::int64_t others, int member,
                                Origin::Elsewhere elsewhere) const {
    elsewhere.cols = cols_of(member);
    elsewhere.in_row = wrong_.at(row).tp == member;
    elsewhere.in_squares = queries() || held_by(member).first_kv_heads.count > 0;
    Origin from{others, wrong_.layer, wrong_.model.tokens().position(row.row)};
    from.elsewhere = elsewhere;
    return projected(wrong_, projection_, row, from);
  }
  bool fits(int member, const Origin::Elsewhere& elsewhere) const {
    return explains(
        wrong_.rows, [&](const WrongRow& row) { return predicted(row, member, elsewhere); }, wrong_.tolerance);
  }

 private:
  bool queries() const { return wrong_.kind == TapKind::attention_q; }
  const AttentionSpec& spec() const { return wrong_.model.plan().model.layers[wrong_.layer].attention; }
  const LayerLayout& held_by(int member) const {
    return wrong_.model.layout(member).layer(wrong_.model.plan().model, wrong_.layer);
  }

  const WrongTap& wrong_;
  const Projection& projection_;
};

/// One rank's product with another's rows of the weight, or with another layer's.
std::optional<Cause> normed_slice_cause(const WrongTap& wrong, const NormedProducts& products) {
  const int tp = wrong.model.plan().parallel.tp;
  for (int member = 0; member < tp; ++member) {
    const Range cols = products.cols_of(member);
    for (int other = 0; other < tp; ++other) {
      const Range from = products.cols_of(other);
      if (from.begin == cols.begin || from.count != cols.count) continue;
      if (!products.fits(member, {.layer = wrong.layer, .begin = from.begin})) continue;
      return Cause{"heads_permuted", fmt::format("tp {} projects with the weights of the heads of tp {}: the norm over "
                                                 "all heads is off on {}",
                                                 member, other, ranks_of(wrong.rows))};
    }
    for (int layer = 0; layer < wrong.model.plan().model.layers.size(); ++layer) {
      if (!is_like(wrong, layer) || !products.fits(member, {.layer = layer, .begin = cols.begin})) continue;
      return Cause{"weights_of_another_layer",
                   fmt::format("tp {} projects with the weights of layer {}: the norm over all heads is off on {}",
                               member, layer, ranks_of(wrong.rows))};
    }
  }
  return std::nullopt;
}

/// A gather that did not take place: of each row one rank has the product, the others what a bias makes of zeros.
std::optional<Cause> normed_gather_cause(const WrongTap& wrong, const NormedProducts& products) {
  if (!wrong.model.plan().parallel.sp) return std::nullopt;
  const auto predicted = [&](const WrongRow& row) {
    const int home = wrong.model.tokens().home(row.row).at.tp;
    return products.predicted(row, -1, home,
                              {.layer = wrong.layer, .begin = products.cols_of(home).begin, .row = row.row});
  };
  if (!explains(wrong.rows, predicted, wrong.tolerance)) return std::nullopt;
  return Cause{
      "gather_dropped",
      fmt::format("{} hold what zeros give in the rows of the other ranks of their tp group, and norm over all "
                  "heads with these",
                  ranks_of(wrong.rows))};
}

/// One rank's product of other rows.
std::optional<Cause> normed_row_cause(const WrongTap& wrong, const NormedProducts& products) {
  const int tp = wrong.model.plan().parallel.tp;
  for (int member = 0; member < tp; ++member) {
    std::vector<std::int64_t> sources;
    for (const WrongRow& row : wrong.rows) {
      const TokenRows near = wrong.model.rows_beside(row.row);
      std::int64_t place = 0;
      const auto fits = [&] {
        const Origin::Elsewhere from{.layer = wrong.layer, .begin = products.cols_of(member).begin, .row = near[place]};
        return close(products.predicted(row, member, from), row.got, wrong.tolerance);
      };
      while (place < near.count() && !fits()) ++place;
      if (place == near.count()) break;
      sources.push_back(near[place]);
    }
    if (sources.size() == wrong.rows.size()) return row_order_cause(wrong, sources);
  }
  return std::nullopt;
}

/// A gather that did not take place, where zeros are projected to what a bias makes of them, or normed with the squares
/// that a rank has of its own rows.
std::optional<Cause> projected_gather_cause(const WrongTap& wrong, const Projection& projection) {
  if (!wrong.model.plan().parallel.sp) return std::nullopt;
  const auto predicted = [&](const WrongRow& row) {
    const bool own = wrong.model.tokens().home(row.row).at.tp == wrong.at(row).tp;
    Origin from{own ? row.row : -1, std::max(wrong.layer, 0), wrong.model.tokens().position(row.row)};
    from.squares = Origin::Squares::of_slice_over_all;
    return projected(wrong, projection, row, from);
  };
  const bool others = std::ranges::any_of(
      wrong.rows, [&](const WrongRow& row) { return wrong.model.tokens().home(row.row).at.tp != wrong.at(row).tp; });
  if (!others || !explains(wrong.rows, predicted, wrong.tolerance)) return std::nullopt;
  return Cause{"gather_dropped", fmt::format("{} hold what zeros give in the rows of the other ranks of their tp group",
                                             ranks_of(wrong.rows))};
}

std::optional<Cause> shifted_cause(const WrongTap& wrong) {
  for (const std::int64_t shift : {1, -1}) {
    const auto shifted = [&](const WrongRow& row) {
      const std::span<const double> whole = wrong.model.row(wrong.expected, row.row);
      std::vector<double> values;
      for (std::int64_t i = 0; i < std::ssize(row.got); ++i) {
        const std::int64_t col = row.col + i + shift;
        if (col >= 0 && col < std::ssize(whole)) values.push_back(whole[static_cast<std::size_t>(col)]);
      }
      return values;
    };
    if (explains(wrong.rows, shifted, wrong.tolerance)) {
      return Cause{"vocabulary_shifted", fmt::format("column c holds the value of column c {} 1 on {}",
                                                     shift > 0 ? "+" : "-", ranks_of(wrong.rows))};
    }
  }
  return std::nullopt;
}

/// The logits are made of a head of its own where it is tied to the embedding, or of the embedding where it is not.
std::optional<Cause> head_tying_cause(const WrongTap& wrong) {
  Recompute& model = wrong.model;
  const ModelConfig& config = model.plan().model;
  WeightSpec other = weight_spec(config, Weight::head);
  if (config.tie_word_embeddings) {
    other.name = tensor_row(Weight::head).name;
  } else {
    other = weight_spec(config, Weight::embedding);
    other.weight = Weight::head;
  }
  const auto with_other = [&](const WrongRow& row) {
    return model.project(model.row(model.tap(-1, TapKind::final_norm), row.row), other, {row.col, std::ssize(row.got)});
  };
  try {
    if (!explains(wrong.rows, with_other, wrong.tolerance)) return std::nullopt;
  } catch (const CheckpointError&) {
    return std::nullopt;  // a checkpoint that has no such tensor
  }
  return Cause{"head_tying",
               fmt::format("the logits on {} are made of {}, but the head {} to the embedding", ranks_of(wrong.rows),
                           other.name, config.tie_word_embeddings ? "is tied" : "is not tied")};
}

std::optional<Cause> other_layer_cause(const WrongTap& wrong, const Projection& projection) {
  struct From {
    int weights;
    int vectors;  ///< norms and biases
    const char* text;
  };
  for (int layer = 0; layer < wrong.model.plan().model.layers.size(); ++layer) {
    if (!is_like(wrong, layer)) continue;
    for (const From& from : {From{layer, layer, "weights"}, From{layer, wrong.layer, "weights"},
                             From{wrong.layer, layer, "biases or norms"}}) {
      const auto with_others = [&](const WrongRow& row) {
        return projected(wrong, projection, row,
                         {row.row, from.weights, wrong.model.tokens().position(row.row), from.vectors});
      };
      if (!explains(wrong.rows, with_others, wrong.tolerance)) continue;
      return Cause{"weights_of_another_layer",
                   fmt::format("{} projects with the {} of layer {}", ranks_of(wrong.rows), from.text, layer)};
    }
  }
  return std::nullopt;
}

/// Weights of one shape that stand for each other: keys' and values', or the norms of queries and keys.
std::optional<Cause> exchanged_cause(const WrongTap& wrong, const Projection& projection) {
  using Exchanged = Origin::Exchanged;
  const AttentionSpec& spec = wrong.model.plan().model.layers[wrong.layer].attention;
  const bool queries = wrong.kind == TapKind::attention_q;
  const auto fits = [&](Exchanged exchanged) {
    const auto predicted = [&](const WrongRow& row) {
      Origin from{row.row, wrong.layer, wrong.model.tokens().position(row.row)};
      from.exchanged = exchanged;
      return projected(wrong, projection, row, from);
    };
    return explains(wrong.rows, predicted, wrong.tolerance);
  };
  if (projection.block == 0 || spec.latent()) return std::nullopt;
  if (spec.query_key_norm == QueryKeyNorm::head && wrong.kind != TapKind::attention_v && fits(Exchanged::norms)) {
    return Cause{"weights_exchanged", fmt::format("{} norm queries with the weight of the keys' norm, or the reverse",
                                                  ranks_of(wrong.rows))};
  }
  if (queries || spec.head_dim != spec.value_dim()) return std::nullopt;
  for (const Exchanged exchanged : {Exchanged::weights, Exchanged::weights_and_biases}) {
    if (!fits(exchanged)) continue;
    return Cause{"weights_exchanged", fmt::format("{} project {} with the weight of {}", ranks_of(wrong.rows),
                                                  wrong.kind == TapKind::attention_k ? "keys" : "values",
                                                  wrong.kind == TapKind::attention_k ? "values" : "keys")};
  }
  return std::nullopt;
}

/// What a tap is made of by one weight that every rank holds whole.
struct ReplicatedWeight {
  TapKind input{};
  Weight weight{};
  bool norm = false;  ///< of the first elements, as many as it has; else a projection
};

ReplicatedWeight replicated_weight_of(TapKind kind) {
  switch (kind) {
    case TapKind::attention_q_latent:
      return {.input = TapKind::attention_norm, .weight = Weight::attention_q_latent};
    case TapKind::attention_q_latent_norm:
      return {.input = TapKind::attention_q_latent, .weight = Weight::attention_q_latent_norm, .norm = true};
    case TapKind::attention_kv_latent:
      return {.input = TapKind::attention_norm, .weight = Weight::attention_kv_latent};
    case TapKind::attention_kv_latent_norm:
      return {.input = TapKind::attention_kv_latent, .weight = Weight::attention_kv_latent_norm, .norm = true};
    default:
      return {.input = TapKind::moe_norm, .weight = Weight::shared_gate};
  }
}

}  // namespace

std::optional<Cause> replicated_weight_cause(const WrongTap& wrong) {
  if (auto cause = gather_cause(wrong)) return cause;
  Recompute& model = wrong.model;
  const ReplicatedWeight made = replicated_weight_of(wrong.kind);
  const ExpectedTap& input = model.tap(wrong.layer, made.input);
  const auto of_others = [&](const WrongRow& row) {
    if (made.norm || model.tokens().home(row.row).at.tp == wrong.at(row).tp) return std::vector<double>();
    return model.project(model.row(input, -1), weight_spec(model.plan().model, made.weight, wrong.layer),
                         {row.col, std::ssize(row.got)});
  };
  if (model.plan().parallel.sp && explains(wrong.rows, of_others, wrong.tolerance)) {
    return Cause{
        "gather_dropped",
        fmt::format("{} hold what zeros give in the rows of the other ranks of their tp group", ranks_of(wrong.rows))};
  }
  for (int layer = 0; layer < model.plan().model.layers.size(); ++layer) {
    if (!is_like(wrong, layer)) continue;
    const WeightSpec other = weight_spec(model.plan().model, made.weight, layer);
    for (const int biases : {layer, wrong.layer}) {
      const auto predicted = [&](const WrongRow& row) {
        const std::span<const double> x = model.row(input, row.row);
        if (made.norm) return model.norm(x.first(static_cast<std::size_t>(other.cols)), other);
        return model.project(x, other, {row.col, std::ssize(row.got)}, biases);
      };
      if (!explains(wrong.rows, predicted, wrong.tolerance)) continue;
      return Cause{"weights_of_another_layer",
                   fmt::format("{} makes it with the weight {} of layer {}", ranks_of(wrong.rows), other.name, layer)};
    }
  }
  return std::nullopt;
}

std::optional<Cause> projection_cause(const WrongTap& wrong) {
  const Projection projection = projection_of(wrong);
  if (auto cause = gather_cause(wrong)) return cause;
  if (auto cause = projected_gather_cause(wrong, projection)) return cause;
  if (projection.block > 0) {
    if (const auto blocks = block_sources(wrong.rows, wrong.expected, projection.block, wrong.tolerance)) {
      for (std::size_t head = 0; head < blocks->size(); ++head) {
        if ((*blocks)[head] == static_cast<std::int64_t>(head)) continue;
        return Cause{"heads_permuted", fmt::format("head {} holds the values of head {} on {}", head, (*blocks)[head],
                                                   ranks_of(wrong.rows))};
      }
    }
  }
  if (wrong.kind == TapKind::logits || wrong.kind == TapKind::router_logits) {
    if (auto cause = shifted_cause(wrong)) return cause;
  }
  if (wrong.kind == TapKind::logits) {
    if (auto cause = head_tying_cause(wrong)) return cause;
  }
  if (wrong.layer >= 0) {
    if (auto cause = other_layer_cause(wrong, projection)) return cause;
    if (auto cause = exchanged_cause(wrong, projection)) return cause;
    if (auto cause = bias_slice_cause(wrong, projection)) return cause;
  }
  if (auto cause = norm_slice_cause(wrong, projection)) return cause;
  if (auto cause = norm_weight_cause(wrong, projection)) return cause;
  if (const NormedProducts products(wrong, projection); products.apply()) {
    if (auto cause = normed_slice_cause(wrong, products)) return cause;
    if (auto cause = normed_gather_cause(wrong, products)) return cause;
    if (auto cause = normed_row_cause(wrong, products)) return cause;
  }
  if (projection.rotated) {
    if (auto cause = pairing_cause(wrong)) return cause;
    if (auto cause = position_cause(wrong, projection)) return cause;
    if (auto cause = input_row_cause(wrong, projection)) return cause;
  }
  return std::nullopt;
}

}  // namespace shardproof::diagnosis
