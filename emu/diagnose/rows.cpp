// Causes at the embedding, the norms and the residual stream, and those that need no knowledge of the tap.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "emu/diagnose/internal/wrong_tap.h"

namespace shardproof::diagnosis {

bool is_like(const WrongTap& wrong, int layer) {
  const LayerList& layers = wrong.model.plan().model.layers;
  return layer != wrong.layer && layers.kind_of(layer) == layers.kind_of(wrong.layer);
}

std::string ranks_of(const std::vector<WrongRow>& wrong) {
  std::set<int> ranks;
  for (const WrongRow& row : wrong) ranks.insert(row.rank);
  constexpr std::size_t kShown = 8;
  std::vector<int> shown(ranks.begin(), ranks.end());
  if (shown.size() == 1) return fmt::format("rank {}", shown.front());
  if (shown.size() <= kShown) return fmt::format("ranks {}", fmt::join(shown, ", "));
  return fmt::format("{} ranks from {} on", shown.size(), shown.front());
}

std::vector<std::pair<std::string, int>> degrees(const Parallel& p) {
  std::vector<std::pair<std::string, int>> result;
  for (const auto& [name, degree] :
       {std::pair{"tp", p.tp}, {"etp", p.etp}, {"ep", p.ep}, {"edp", p.edp}, {"dp", p.dp}, {"pp", p.pp}}) {
    if (degree > 1) result.emplace_back(name, degree);
  }
  return result;
}

Cause cause_of(const PartialSumFault& fault, std::string_view axis, int members) {
  using Kind = PartialSumFault::Kind;
  switch (fault.kind) {
    case Kind::own_only:
      return {"reduction_dropped",
              fmt::format("each rank holds its own partial sum of the {} over {}: it was not reduced", members, axis)};
    case Kind::missing:
      return {"partial_sum_missing",
              fmt::format("the partial sum of {} {} of {} is not in the sum", axis, fault.member, members)};
    case Kind::doubled:
      return {"partial_sum_doubled",
              fmt::format("the partial sum of {} {} of {} is in the sum twice", axis, fault.member, members)};
    case Kind::subgroup:
      return {"partial_group", fmt::format("each rank holds the sum over its {} neighbours of the {} along {}",
                                           fault.size, members, axis)};
    case Kind::average:
      return {"averaged", fmt::format("ratio 1/{} = 1/{}: averaged where it should be summed", members, axis)};
    case Kind::repeated:
      return {"reduced_twice", fmt::format("ratio {} = {}: the sum was reduced once more", members, axis)};
    case Kind::replaced:
      return {"wrong_slice", fmt::format("the partial sum of {} {} is not in the sum, that of {} {} is in it twice",
                                         axis, fault.member, axis, fault.other)};
    case Kind::maximum:
      return {"wrong_reduction",
              fmt::format("the greatest of the {} partial sums over {} instead of their sum", members, axis)};
  }
  return {"unknown", ""};
}

std::optional<Cause> embedding_cause(const WrongTap& wrong) {
  Recompute& model = wrong.model;
  const int tp = model.plan().parallel.tp;
  const auto finish = [&](std::vector<double>& values) { model.finish(values); };
  const PartialSums sum{.members = tp,
                        .partial = [&](const WrongRow& row, int m) { return model.embedding_partial_sum(row.row, m); },
                        .own = [&](const WrongRow& row) { return wrong.at(row).tp; },
                        .finish = finish};
  if (const auto fault = partial_sum_fault(wrong.witnesses, sum, wrong.tolerance)) return cause_of(*fault, "tp", tp);
  const WeightSpec table = weight_spec(model.plan().model, Weight::embedding);
  for (const std::int64_t shift : {1, -1}) {
    const auto neighbour = [&](const WrongRow& row) -> std::vector<double> {
      const std::int64_t id = model.batch().tokens()[static_cast<std::size_t>(row.row)] + shift;
      if (id < 0 || id >= table.rows) return {};
      const LoadedWeight<double> loaded = model.slice(table, {id, 1}, {0, table.cols});
      std::vector<double> values(loaded.view().row(0).begin(), loaded.view().row(0).end());
      model.finish(values);
      return values;
    };
    if (explains(wrong.rows, neighbour, wrong.tolerance)) {
      return Cause{"vocabulary_shifted", fmt::format("token id t has the embedding of id t {} 1 on {}",
                                                     shift > 0 ? "+" : "-", ranks_of(wrong.rows))};
    }
  }
  return rows_of_member_cause(wrong, [&](std::int64_t row, int m) { return model.embedding_partial_sum(row, m); });
}

std::optional<Cause> rows_of_member_cause(const WrongTap& wrong, const PartialSumOf& partial) {
  Recompute& model = wrong.model;
  const int tp = model.plan().parallel.tp;
  // What the row's rank adds up when the member's rows lie otherwise: of itself the others' rows do.
  const auto sum = [&](const WrongRow& row, int member, std::int64_t other) {
    std::vector<double> values(row.got.size(), 0.0);
    for (int m = 0; m < tp; ++m) {
      const bool elsewhere = (m == member) != (wrong.at(row).tp == member);
      const std::vector<double> part = partial(elsewhere ? other : row.row, m);
      for (std::size_t i = 0; i < values.size(); ++i) values[i] += part[i];
    }
    model.finish(values);
    return values;
  };
  for (int member = 0; member < tp && tp > 1; ++member) {
    std::vector<std::int64_t> sources;
    for (const WrongRow& row : wrong.rows) {
      const TokenRows near = model.rows_beside(row.row);
      std::int64_t place = 0;
      while (place < near.count() && !close(sum(row, member, near[place]), row.got, wrong.tolerance)) ++place;
      if (place == near.count()) break;
      sources.push_back(near[place]);
    }
    if (sources.size() < wrong.rows.size()) continue;
    return Cause{
        "rows_permuted",
        fmt::format("tp {} has the rows in another order than its group, and {} hold sums over different rows: "
                    "row {} of it and row {}",
                    member, ranks_of(wrong.rows), wrong.rows.front().row, sources.front())};
  }
  return std::nullopt;
}

namespace {

WeightSpec norm_weight(const ModelConfig& model, TapKind kind, int layer) {
  if (kind == TapKind::final_norm) return weight_spec(model, Weight::final_norm);
  return kind == TapKind::moe_norm ? weight_spec(model, Weight::moe_norm, layer)
                                   : weight_spec(model, Weight::attention_norm, layer);
}

/// Every stream that some norm reads, in program order: its tap, and the layer that it enters.
std::vector<std::pair<const ExpectedTap*, int>> streams(Recompute& model) {
  std::vector<std::pair<const ExpectedTap*, int>> result;
  for (int layer = 0; layer <= model.plan().model.layers.size(); ++layer) {
    result.emplace_back(&model.norm_input(layer, TapKind::attention_norm), layer);
  }
  return result;
}

/// A layer that ran on the input of another: its own norm weight, the other's stream.
std::optional<Cause> layer_order_cause(const WrongTap& wrong) {
  Recompute& model = wrong.model;
  for (const auto& [stream, layer] : streams(model)) {
    const auto on_stream = [&, stream = stream](const WrongRow& row) {
      return model.norm(model.row(*stream, row.row), norm_weight(model.plan().model, wrong.kind, wrong.layer));
    };
    if (!explains(wrong.rows, on_stream, wrong.tolerance)) continue;
    const std::string text = fmt::format("the layer's input on {} is {}, not the output of the layer before",
                                         ranks_of(wrong.rows), stream->name);
    return Cause{layer > wrong.layer ? "layer_repeated" : "layer_skipped", text};
  }
  // The stream that should enter this layer entered another.
  const ExpectedTap& own_input = model.norm_input(wrong.layer, TapKind::attention_norm);
  for (const TapPart& part : wrong.norm_parts) {
    const int other = part.tap.layer;
    if (other == wrong.layer || part.values.empty()) continue;
    const std::int64_t row = part.placement.row_part.begin;
    const auto width = static_cast<std::size_t>(part.placement.cols);
    const std::vector<double> predicted =
        model.norm(model.row(own_input, row), norm_weight(model.plan().model, wrong.kind, other));
    if (close(predicted, std::span(part.values).first(width), wrong.tolerance)) {
      return Cause{"layer_order", fmt::format("{} entered layer {} on rank {}, and layer {} ran on something else",
                                              own_input.name, other, part.rank, wrong.layer)};
    }
  }
  return std::nullopt;
}

/// A layer norm with its own weight and another layer's bias.
std::optional<Cause> norm_bias_cause(const WrongTap& wrong) {
  Recompute& model = wrong.model;
  const ModelConfig& config = model.plan().model;
  if (!config.layer_norm || wrong.layer < 0) return std::nullopt;
  const ExpectedTap& input = model.norm_input(wrong.layer, wrong.kind);
  for (int layer = 0; layer < config.layers.size(); ++layer) {
    const WeightSpec biased = norm_weight(config, wrong.kind, layer);
    const auto with_bias = [&](const WrongRow& row) {
      return model.norm(model.row(input, row.row), norm_weight(config, wrong.kind, wrong.layer), &biased);
    };
    if (layer == wrong.layer || !explains(wrong.rows, with_bias, wrong.tolerance)) continue;
    return Cause{"weights_of_another_layer", fmt::format("{} uses the bias of layer {}'s {}", ranks_of(wrong.rows),
                                                         layer, tap_row(wrong.kind).name)};
  }
  return std::nullopt;
}

}  // namespace

std::optional<Cause> norm_cause(const WrongTap& wrong) {
  Recompute& model = wrong.model;
  const ModelConfig& config = model.plan().model;
  const ExpectedTap& input = model.norm_input(wrong.layer, wrong.kind);
  for (int layer = 0; layer < config.layers.size(); ++layer) {
    for (const TapKind kind : {TapKind::attention_norm, TapKind::moe_norm}) {
      if (layer == wrong.layer && kind == wrong.kind) continue;
      // With its bias, or with the right one.
      const WeightSpec own = norm_weight(config, wrong.kind, wrong.layer);
      const auto with_weight = [&](const WrongRow& row) {
        return model.norm(model.row(input, row.row), norm_weight(config, kind, layer));
      };
      const auto with_own_bias = [&](const WrongRow& row) {
        return model.norm(model.row(input, row.row), norm_weight(config, kind, layer), &own);
      };
      if (explains(wrong.rows, with_weight, wrong.tolerance) ||
          (config.layer_norm && explains(wrong.rows, with_own_bias, wrong.tolerance))) {
        return Cause{"weights_of_another_layer", fmt::format("{} uses the weight of layer {}'s {}",
                                                             ranks_of(wrong.rows), layer, tap_row(kind).name)};
      }
    }
  }
  if (auto cause = norm_bias_cause(wrong)) return cause;
  if (const auto sources = row_sources(wrong.rows, wrong.expected, wrong.tolerance)) {
    return row_order_cause(wrong, *sources);
  }
  if (wrong.kind == TapKind::attention_norm) return layer_order_cause(wrong);
  return std::nullopt;
}

std::optional<Cause> residual_cause(const WrongTap& wrong) {
  Recompute& model = wrong.model;
  const bool moe = wrong.kind == TapKind::moe_residual;
  const ExpectedTap& stream = model.norm_input(wrong.layer, moe ? TapKind::moe_norm : TapKind::attention_norm);
  const ExpectedTap& branch = model.tap(
      wrong.layer, moe ? feed_forward_addend(model.plan().model.layers[wrong.layer]) : TapKind::attention_output);
  std::vector<double> factors{0, 1, 2};
  for (const auto& [name, degree] : degrees(model.plan().parallel)) factors.push_back(degree);
  for (const double a : factors) {
    for (const double b : factors) {
      const auto combined = [&](const WrongRow& row) {
        std::vector<double> values(static_cast<std::size_t>(stream.cols));
        const std::span<const double> x = model.row(stream, row.row);
        const std::vector<double> y = model.branch(branch, row.row);
        for (std::size_t i = 0; i < values.size(); ++i) values[i] = a * x[i] + b * y[i];
        model.finish(values);
        return values;
      };
      if (explains(wrong.rows, combined, wrong.tolerance)) {
        return Cause{"wrong_residual_sum",
                     fmt::format("the sum is {} * residual + {} * output on {}", a, b, ranks_of(wrong.rows))};
      }
    }
  }
  return std::nullopt;
}

std::optional<Cause> row_order_cause(const WrongTap& wrong, const std::vector<std::int64_t>& sources) {
  const std::vector<WrongRow>& rows = wrong.rows;
  bool other_microbatch = true;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const RowHome to = wrong.model.tokens().home(rows[i].row);
    const RowHome from = wrong.model.tokens().home(sources[i]);
    other_microbatch = other_microbatch && to.at.dp == from.at.dp && to.microbatch != from.microbatch;
  }
  return Cause{
      other_microbatch ? "microbatch_order" : "rows_permuted",
      fmt::format("{} rows on {} hold other tokens' values: row {} that of row {}{}", rows.size(), ranks_of(rows),
                  rows.front().row, sources.front(), other_microbatch ? ", of another microbatch" : "")};
}

std::optional<Cause> gather_cause(const WrongTap& wrong) {
  // Where every rank of tp routes all tokens, none holds the others' rows.
  if (wrong.model.plan().parallel.routes_alike() || !all_zero(wrong.rows)) return std::nullopt;
  const bool others = std::ranges::none_of(
      wrong.rows, [&](const WrongRow& row) { return wrong.model.tokens().home(row.row).at.tp == wrong.at(row).tp; });
  if (!others) return std::nullopt;
  return Cause{"gather_dropped",
               fmt::format("{} hold zeros in the rows of the other ranks of their tp group", ranks_of(wrong.rows))};
}

std::optional<Cause> general_cause(const WrongTap& wrong) {
  const std::vector<WrongRow>& rows = wrong.rows;
  const auto finite = [](double value) { return std::isfinite(value); };
  if (std::ranges::any_of(rows, [&](const WrongRow& row) { return !std::ranges::all_of(row.got, finite); })) {
    return Cause{"not_finite", fmt::format("values on {} are not finite", ranks_of(rows))};
  }
  if (all_zero(rows)) return Cause{"zero", fmt::format("every wrong value on {} is zero", ranks_of(rows))};
  std::vector<double> candidates{2, 0.5};
  for (const auto& [name, degree] : degrees(wrong.model.plan().parallel)) {
    candidates.push_back(degree);
    candidates.push_back(1.0 / degree);
  }
  if (const auto ratio = constant_ratio(rows, candidates, wrong.tolerance + wrong.step)) {
    std::string names;
    for (const auto& [name, degree] : degrees(wrong.model.plan().parallel)) {
      if (degree == *ratio || 1.0 / degree == *ratio) names += (names.empty() ? " = " : " or ") + name;
    }
    return Cause{*ratio > 1 ? "counted_n_times" : "averaged",
                 fmt::format("every value is {} times what it should be{}", *ratio, names)};
  }
  if (const auto offset = constant_offset(rows, wrong.tolerance + wrong.step)) {
    const int tp = wrong.model.plan().parallel.tp;
    return Cause{"constant_offset",
                 fmt::format("every value is {:.6g} too large{}", *offset,
                             tp > 1 ? fmt::format(": {:.6g} from each of {} ranks", *offset / tp, tp) : "")};
  }
  if (const auto sources = row_sources(rows, wrong.expected, wrong.tolerance)) return row_order_cause(wrong, *sources);
  return std::nullopt;
}

}  // namespace shardproof::diagnosis
