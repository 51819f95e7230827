// Causes at projections, at attention itself, and at sums over tp.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "emu/diagnose/internal/wrong_tap.h"

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

/// Another layer of the same kind has the same weights to take for one's own.
bool is_like(const WrongTap& wrong, int layer) {
  const LayerList& layers = wrong.model.plan().model.layers;
  return layer != wrong.layer && layers.kind_of(layer) == layers.kind_of(wrong.layer);
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

}  // namespace

std::optional<Cause> projection_cause(const WrongTap& wrong) {
  const Projection projection = projection_of(wrong);
  if (auto cause = gather_cause(wrong)) return cause;
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
  if (wrong.layer >= 0) {
    for (int layer = 0; layer < wrong.model.plan().model.layers.size(); ++layer) {
      // With its norms and biases, or with those of the right layer.
      for (const int vectors : {layer, wrong.layer}) {
        const auto with_weights = [&](const WrongRow& row) {
          return projected(wrong, projection, row, {row.row, layer, wrong.model.tokens().position(row.row), vectors});
        };
        if (is_like(wrong, layer) && explains(wrong.rows, with_weights, wrong.tolerance)) {
          return Cause{"weights_of_another_layer",
                       fmt::format("{} projects with the weights of layer {}", ranks_of(wrong.rows), layer)};
        }
      }
    }
  }
  if (auto cause = norm_slice_cause(wrong, projection)) return cause;
  if (auto cause = norm_weight_cause(wrong, projection)) return cause;
  if (projection.rotated) {
    if (auto cause = position_cause(wrong, projection)) return cause;
    if (auto cause = input_row_cause(wrong, projection)) return cause;
  }
  return std::nullopt;
}

namespace {

/// Each query head attends with another one's sink.
std::optional<Cause> sink_cause(const WrongTap& wrong) {
  Recompute& model = wrong.model;
  const AttentionSpec& spec = model.plan().model.layers[wrong.layer].attention;
  const std::int64_t dim = spec.value_dim(), share = spec.heads / spec.kv_heads;
  for (std::int64_t shift = 1; spec.sinks && shift < spec.heads; ++shift) {
    const auto predicted = [&](const WrongRow& row) {
      const std::int64_t position = model.tokens().position(row.row);
      std::vector<double> values;
      for (std::int64_t head = row.col / dim; head < (row.col + std::ssize(row.got)) / dim; ++head) {
        const std::vector<double> one = model.attend(wrong.layer, row.row, Range{row.row - position, position + 1},
                                                     {head, head / share, (head + shift) % spec.heads});
        values.insert(values.end(), one.begin(), one.end());
      }
      return values;
    };
    if (!explains(wrong.rows, predicted, wrong.tolerance)) continue;
    const std::int64_t head = wrong.rows.front().col / dim;
    return Cause{"sinks_of_another_head", fmt::format("query head {} attends with the sink of head {} on {}", head,
                                                      (head + shift) % spec.heads, ranks_of(wrong.rows))};
  }
  return std::nullopt;
}

}  // namespace

std::optional<Cause> context_cause(const WrongTap& wrong) {
  Recompute& model = wrong.model;
  if (model.plan().parallel.dcp > 1) {
    if (auto cause = dcp_cause(wrong)) return cause;
  }
  if (model.plan().workload.serving) {
    if (auto cause = cache_cause(wrong)) return cause;
  }
  const bool over_cp = model.plan().parallel.cp > 1;
  if (auto cause = over_cp ? cp_cause(wrong) : std::nullopt) return cause;
  if (auto cause = sink_cause(wrong)) return cause;
  const AttentionSpec& spec = model.plan().model.layers[wrong.layer].attention;
  const std::int64_t dim = spec.value_dim();
  const std::int64_t share = spec.heads / spec.kv_heads;
  const auto rebuilt = [&](const WrongRow& row, std::int64_t first, auto kv_head_of) {
    std::vector<double> values;
    for (std::int64_t head = row.col / dim; head < (row.col + std::ssize(row.got)) / dim; ++head) {
      const std::vector<double> one =
          model.attend(wrong.layer, row.row, {first, row.row - first + 1}, {head, kv_head_of(row, head)});
      values.insert(values.end(), one.begin(), one.end());
    }
    return values;
  };
  const auto proper = [&](const WrongRow&, std::int64_t head) { return head / share; };
  const auto merged = [&](const WrongRow& row) { return rebuilt(row, model.rows_beside(row.row)[0], proper); };
  // Over cp the rows of a rank are not one after another.
  if (!over_cp && explains(wrong.rows, merged, wrong.tolerance)) {
    return Cause{"sequence_boundaries", fmt::format("tokens on {} attend to the sequences before their own in the "
                                                    "microbatch, token {} among them",
                                                    ranks_of(wrong.rows), wrong.rows.front().row)};
  }
  for (std::int64_t shift = 1; shift < spec.kv_heads; ++shift) {
    const auto other = [&](const WrongRow&, std::int64_t head) { return (head / share + shift) % spec.kv_heads; };
    const auto predicted = [&](const WrongRow& row) {
      return rebuilt(row, row.row - model.tokens().position(row.row), other);
    };
    if (explains(wrong.rows, predicted, wrong.tolerance)) {
      const std::int64_t head = wrong.rows.front().col / dim;
      return Cause{"wrong_kv_head", fmt::format("query head {} attends with key/value head {}, not {}, on {}", head,
                                                other(wrong.rows.front(), head), head / share, ranks_of(wrong.rows))};
    }
  }
  return std::nullopt;
}

namespace {

using PartialSumOf = std::function<std::vector<double>(std::int64_t row, int tp)>;

/// The reduction that should run over tp ran over the ranks of another axis.
std::optional<Cause> wrong_group_cause(const WrongTap& wrong, const PartialSumOf& partial) {
  Recompute& model = wrong.model;
  const Parallel& parallel = model.plan().parallel;
  for (const Axis axis : {Axis::dp, Axis::cp, Axis::pp, Axis::etp, Axis::ep, Axis::edp}) {
    const int degree = model.mesh().degree(axis);
    // A reduce-scatter takes as many counts as there are ranks.
    if (degree < 2 || (parallel.sp && degree != parallel.tp)) continue;
    const auto predicted = [&](const WrongRow& row) -> std::vector<double> {
      const RowHome home = model.tokens().home(row.row);
      const std::vector<int> group = model.mesh().group(axis, row.rank);
      const auto place = static_cast<int>(std::ranges::find(group, row.rank) - group.begin());
      const std::int64_t local = *model.tokens().stream(home.at, home.microbatch).place_of(row.row);
      std::vector<double> sum(row.got.size(), 0.0);
      for (const int member : group) {
        const Coordinates at = model.mesh().coordinates(member);
        // A reduce-scatter gives the rank the rows that its place in this group would have in a tp group.
        const TokenRows rows = model.tokens().stream({.tp = place, .cp = at.cp, .dp = at.dp}, home.microbatch);
        if (local >= rows.count()) return {};
        const std::vector<double> part = partial(rows[local], at.tp);
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
      }
      model.finish(sum);
      return sum;
    };
    if (explains(wrong.rows, predicted, wrong.tolerance)) {
      return Cause{"wrong_group", fmt::format("{} hold the sum over their {} group, not over tp", ranks_of(wrong.rows),
                                              to_string(axis))};
    }
  }
  return std::nullopt;
}

/// The sum of the partial sums, each made with the weights that `weights(tp)` names.
template <class Weights>
bool explained_by_weights(const WrongTap& wrong, const Weights& weights) {
  Recompute& model = wrong.model;
  const auto predicted = [&](const WrongRow& row) {
    std::vector<double> sum(row.got.size(), 0.0);
    for (int m = 0; m < model.plan().parallel.tp; ++m) {
      const std::vector<double> part = model.attention_partial_sum(wrong.layer, row.row, m, weights(m));
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
    }
    model.finish(sum);
    return sum;
  };
  return explains(wrong.rows, predicted, wrong.tolerance);
}

std::optional<Cause> output_weights_cause(const WrongTap& wrong) {
  const int tp = wrong.model.plan().parallel.tp;
  const int layers = static_cast<int>(wrong.model.plan().model.layers.size());
  for (int layer = 0; layer < layers; ++layer) {
    if (!is_like(wrong, layer)) continue;
    for (int member = -1; member < tp; ++member) {
      const auto weights = [&](int m) { return WeightsFrom{member < 0 || m == member ? layer : wrong.layer, m}; };
      if (!explained_by_weights(wrong, weights)) continue;
      return Cause{"weights_of_another_layer", fmt::format("the output projection{} uses the weights of layer {}",
                                                           member < 0 ? "" : fmt::format(" of tp {}", member), layer)};
    }
  }
  for (int shift = 1; shift < tp; ++shift) {
    for (int member = -1; member < tp; ++member) {
      const auto weights = [&](int m) {
        return WeightsFrom{wrong.layer, member < 0 || m == member ? (m + shift) % tp : m};
      };
      if (!explained_by_weights(wrong, weights)) continue;
      return Cause{"wrong_slice", fmt::format("tp {} multiplies with the output projection's slice of tp {}",
                                              std::max(member, 0), (std::max(member, 0) + shift) % tp)};
    }
  }
  return std::nullopt;
}

/// A replicated term that every rank adds before the reduction.
std::optional<Cause> output_term_cause(const WrongTap& wrong) {
  Recompute& model = wrong.model;
  const int tp = model.plan().parallel.tp;
  const ExpectedTap& stream = model.norm_input(wrong.layer, TapKind::attention_norm);
  for (const int times : std::set<int>{1, tp}) {
    const auto predicted = [&](const WrongRow& row) {
      std::vector<double> sum(row.got.size(), 0.0);
      for (int m = 0; m < tp; ++m) {
        const std::vector<double> part = model.attention_partial_sum(wrong.layer, row.row, m, {wrong.layer, m});
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
      }
      const std::span<const double> term = model.row(stream, row.row);
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += times * term[i];
      model.finish(sum);
      return sum;
    };
    if (explains(wrong.rows, predicted, wrong.tolerance)) {
      return Cause{"term_on_every_rank",
                   fmt::format("the output holds {} times the residual stream too much, tp = {}", times, tp)};
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<Cause> mlp_output_cause(const WrongTap& wrong) {
  Recompute& model = wrong.model;
  const int tp = model.plan().parallel.tp;
  const PartialSumOf partial = [&](std::int64_t row, int m) { return model.mlp_partial_sum(wrong.layer, row, m); };
  const PartialSums sum{.members = tp,
                        .partial = [&](const WrongRow& row, int m) { return partial(row.row, m); },
                        .own = [&](const WrongRow& row) { return wrong.at(row).tp; },
                        .finish = [&](std::vector<double>& values) { model.finish(values); }};
  if (const auto fault = partial_sum_fault(wrong.witnesses, sum, wrong.tolerance)) return cause_of(*fault, "tp", tp);
  if (tp > 1) return wrong_group_cause(wrong, partial);
  return std::nullopt;
}

std::optional<Cause> attention_output_cause(const WrongTap& wrong) {
  Recompute& model = wrong.model;
  const int tp = model.plan().parallel.tp;
  const PartialSumOf partial = [&](std::int64_t row, int m) {
    return model.attention_partial_sum(wrong.layer, row, m, {wrong.layer, m});
  };
  const PartialSums sum{.members = tp,
                        .partial = [&](const WrongRow& row, int m) { return partial(row.row, m); },
                        .own = [&](const WrongRow& row) { return wrong.at(row).tp; },
                        .finish = [&](std::vector<double>& values) { model.finish(values); }};
  if (const auto fault = partial_sum_fault(wrong.witnesses, sum, wrong.tolerance)) return cause_of(*fault, "tp", tp);
  if (auto cause = output_weights_cause(wrong)) return cause;
  if (auto cause = output_term_cause(wrong)) return cause;
  if (tp > 1) return wrong_group_cause(wrong, partial);
  return std::nullopt;
}

}  // namespace shardproof::diagnosis
