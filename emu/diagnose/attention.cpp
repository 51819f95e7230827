// Causes at attention itself, and at sums over tp.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>
#include <set>
#include <span>

#include "emu/diagnose/internal/wrong_tap.h"
#include "emu/plan/cache_share.h"

namespace shardproof::diagnosis {
namespace {

/// The sinks that each query head attends with: those of the head so many further on, in a layer.
struct SinksOf {
  int layer = 0;
  std::int64_t shift = 0;
};

/// Over cp the sinks of some heads are as they should be.
bool attends_with(const WrongTap& wrong, const SinksOf& sinks) {
  Recompute& model = wrong.model;
  const AttentionSpec& spec = model.plan().model.layers[wrong.layer].attention;
  const std::int64_t dim = spec.value_dim(), share = spec.heads / spec.kv_heads;
  const auto predicted = [&](const WrongRow& row) {
    const std::int64_t position = model.tokens().position(row.row);
    std::vector<double> values;
    for (std::int64_t head = row.col / dim; head < (row.col + std::ssize(row.got)) / dim; ++head) {
      const auto first = static_cast<std::size_t>(head * dim - row.col), width = static_cast<std::size_t>(dim);
      const std::span<const double> want = std::span(row.want).subspan(first, width);
      if (close(std::span(row.got).subspan(first, width), want, wrong.tolerance)) {
        values.insert(values.end(), want.begin(), want.end());
        continue;
      }
      const std::vector<double> one = model.attend(wrong.layer, row.row, Range{row.row - position, position + 1},
                                                   {.query = head,
                                                    .key_value = head / share,
                                                    .sink = (head + sinks.shift) % spec.heads,
                                                    .sinks_of = sinks.layer});
      values.insert(values.end(), one.begin(), one.end());
    }
    return values;
  };
  return explains(wrong.rows, predicted, wrong.tolerance);
}

/// The first query head that is wrong; none if each is close enough for the largest row's scale.
std::optional<std::int64_t> first_wrong_head(const WrongTap& wrong, std::int64_t dim) {
  for (const WrongRow& row : wrong.rows) {
    for (std::size_t i = 0; i < row.got.size(); ++i) {
      if (close(std::span(row.got).subspan(i, 1), std::span(row.want).subspan(i, 1), wrong.tolerance)) continue;
      return (row.col + static_cast<std::int64_t>(i)) / dim;
    }
  }
  return std::nullopt;
}

/// Each query head attends with another one's sink, or with that of another layer.
std::optional<Cause> sink_cause(const WrongTap& wrong) {
  const ModelConfig& config = wrong.model.plan().model;
  const AttentionSpec& spec = config.layers[wrong.layer].attention;
  const std::optional<std::int64_t> shown = first_wrong_head(wrong, spec.value_dim());
  if (!spec.sinks || !shown) return std::nullopt;
  for (std::int64_t shift = 1; shift < spec.heads; ++shift) {
    if (!attends_with(wrong, {wrong.layer, shift})) continue;
    return Cause{"sinks_of_another_head", fmt::format("query head {} attends with the sink of head {} on {}", *shown,
                                                      (*shown + shift) % spec.heads, ranks_of(wrong.rows))};
  }
  for (int layer = 0; layer < config.layers.size(); ++layer) {
    if (!is_like(wrong, layer) || !attends_with(wrong, {layer, 0})) continue;
    return Cause{"weights_of_another_layer",
                 fmt::format("{} attends with the sinks of layer {}", ranks_of(wrong.rows), layer)};
  }
  return std::nullopt;
}

/// What each of a rank's heads does in the absorbed form, had it taken that for its own.
using FormOf = std::function<AbsorbedWith(std::int64_t head, const Range& of_rank)>;

bool explained_by_form(const WrongTap& wrong, const FormOf& form_of) {
  Recompute& model = wrong.model;
  const std::int64_t dim = model.plan().model.layers[wrong.layer].attention.value_dim();
  const auto predicted = [&](const WrongRow& row) {
    std::vector<std::int64_t> keys(static_cast<std::size_t>(model.tokens().position(row.row) + 1));
    std::iota(keys.begin(), keys.end(), row.row - std::ssize(keys) + 1);
    const Range held = model.layout(wrong.at(row).tp).layer(model.plan().model, wrong.layer).heads;
    std::vector<double> values;
    for (std::int64_t head = row.col / dim; head < (row.col + std::ssize(row.got)) / dim; ++head) {
      const std::vector<double> one = model.attend_absorbed(wrong.layer, row.row, keys, head, form_of(head, held));
      values.insert(values.end(), one.begin(), one.end());
    }
    return values;
  };
  return explains(wrong.rows, predicted, wrong.tolerance);
}

/// The rank of dcp that scales the scores of the latents that it keeps so; -1: none.
int scaled_by_rank_of_dcp(const WrongTap& wrong, double scale) {
  Recompute& model = wrong.model;
  const Parallel& parallel = model.plan().parallel;
  const AttentionSpec& spec = model.plan().model.layers[wrong.layer].attention;
  const std::int64_t dim = spec.value_dim();
  const CacheShare share = cache_share(parallel, {});
  for (int rank = 0; parallel.dcp > 1 && rank < parallel.dcp; ++rank) {
    std::vector<double> scales(static_cast<std::size_t>(parallel.dcp), spec.score_scale());
    scales[static_cast<std::size_t>(rank)] = scale;
    const auto predicted = [&](const WrongRow& row) {
      const std::int64_t position = model.tokens().position(row.row);
      std::vector<std::vector<std::int64_t>> parts(scales.size());
      for (std::int64_t token = 0; token <= position; ++token) {
        parts[static_cast<std::size_t>(share.owner_of(token))].push_back(row.row - position + token);
      }
      std::vector<double> values;
      for (std::int64_t head = row.col / dim; head < (row.col + std::ssize(row.got)) / dim; ++head) {
        const std::vector<double> one = model.attend_absorbed_parts(wrong.layer, row.row, parts, head, scales);
        values.insert(values.end(), one.begin(), one.end());
      }
      return values;
    };
    if (explains(wrong.rows, predicted, wrong.tolerance)) return rank;
  }
  return -1;
}

/// Tokens in the absorbed form of latent attention alone are wrong: by what it is computed with.
std::optional<Cause> absorbed_cause(const WrongTap& wrong) {
  Recompute& model = wrong.model;
  const AttentionSpec& spec = model.plan().model.layers[wrong.layer].attention;
  const auto absorbed = [&](const WrongRow& row) { return model.is_absorbed(wrong.layer, row.row); };
  if (!std::ranges::all_of(wrong.rows, absorbed)) return std::nullopt;
  const auto further_on = [](std::int64_t head, const Range& held, std::int64_t shift) {
    return held.begin + (head - held.begin + shift) % held.count;
  };
  const double scale = spec.score_scale();
  const std::int64_t held =
      model.layout(wrong.at(wrong.rows.front()).tp).layer(model.plan().model, wrong.layer).heads.count;
  for (std::int64_t shift = 1; shift < held; ++shift) {
    if (explained_by_form(wrong, [&](std::int64_t head, const Range& of_rank) {
          return AbsorbedWith{further_on(head, of_rank, shift), head, scale};
        })) {
      return Cause{"absorbed_keys",
                   fmt::format("queries on {} absorb the keys of the head {} further on, not of their own",
                               ranks_of(wrong.rows), shift)};
    }
    if (explained_by_form(wrong, [&](std::int64_t head, const Range& of_rank) {
          return AbsorbedWith{head, further_on(head, of_rank, shift), scale};
        })) {
      return Cause{"absorbed_values",
                   fmt::format("heads on {} make the values of the head {} further on of the latents, "
                               "not their own",
                               ranks_of(wrong.rows), shift)};
    }
  }
  const std::int64_t width = spec.kv_lora_rank + spec.rope.dim;
  const double of_latents = scale * std::sqrt(static_cast<double>(spec.head_dim) / static_cast<double>(width));
  if (explained_by_form(wrong, [&](std::int64_t head, const Range&) { return AbsorbedWith{head, head, of_latents}; })) {
    return Cause{"absorbed_scale",
                 fmt::format("scores on {} are scaled by the width of a latent, 1 / sqrt({}), not of a "
                             "key, 1 / sqrt({})",
                             ranks_of(wrong.rows), width, spec.head_dim)};
  }
  if (const int rank = scaled_by_rank_of_dcp(wrong, of_latents); rank >= 0) {
    return Cause{
        "absorbed_scale",
        fmt::format("dcp {} scales scores by the width of a latent, 1 / sqrt({}), not of a key, 1 / sqrt({}), in "
                    "what {} hold",
                    rank, width, spec.head_dim, ranks_of(wrong.rows))};
  }
  return std::nullopt;
}

}  // namespace

std::optional<Cause> context_cause(const WrongTap& wrong) {
  Recompute& model = wrong.model;
  if (auto cause = window_cause(wrong)) return cause;
  if (auto cause = absorbed_cause(wrong)) return cause;
  const bool over_dcp = model.plan().parallel.dcp > 1;
  if (auto cause = over_dcp ? dcp_merge_cause(wrong) : std::nullopt) return cause;
  // Of a short sequence fewer tokens may be just those of a wrong owner: they are fewer in any case.
  if (auto cause = model.plan().workload.serving ? cache_cause(wrong) : std::nullopt) return cause;
  if (auto cause = over_dcp ? dcp_owner_cause(wrong) : std::nullopt) return cause;
  if (auto cause = over_dcp ? dcp_group_cause(wrong) : std::nullopt) return cause;
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
  for (int layer = 0; layer < layers; ++layer) {
    const auto weights = [&](int m) { return WeightsFrom{wrong.layer, m, layer}; };
    if (!is_like(wrong, layer) || !explained_by_weights(wrong, weights)) continue;
    return Cause{"weights_of_another_layer", fmt::format("the output projection adds the bias of layer {}", layer)};
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
  const auto fits = [&](const SupposedLoads& supposed) {
    const auto predicted = [&](const WrongRow& row) {
      std::vector<double> values(row.got.size(), 0.0);
      for (int m = 0; m < tp; ++m) {
        const std::vector<double> part = model.mlp_partial_sum(wrong.layer, row.row, m, supposed.on(m));
        for (std::size_t i = 0; i < values.size(); ++i) values[i] += part[i];
      }
      model.finish(values);
      return values;
    };
    return explains(wrong.rows, predicted, wrong.tolerance);
  };
  const MlpWeights weights{.gate = Weight::mlp_gate, .up = Weight::mlp_up, .down = Weight::mlp_down};
  if (auto cause = loaded_mlp_cause(wrong, weights, Axis::tp, fits)) return cause;
  if (auto cause = rows_of_member_cause(wrong, partial)) return cause;
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
  if (auto cause = rows_of_member_cause(wrong, partial)) return cause;
  if (tp > 1) return wrong_group_cause(wrong, partial);
  return std::nullopt;
}

}  // namespace shardproof::diagnosis
