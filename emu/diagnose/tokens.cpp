// Rows that went to, or came back from, the experts in another order.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "emu/diagnose/internal/moe_slots.h"
#include "emu/plan/deployment.h"

namespace shardproof::diagnosis {
namespace {

/// Values that the search among all tokens may look at.
constexpr double kSearchedValues = 3e8;

/// A row that a rank sends: the token and its expert.
struct Sent {
  std::int64_t row = 0;
  std::int64_t expert = 0;
  std::int64_t physical = 0;  ///< that serves it (expert_map.h)
};

/// What a rank sends in one microbatch, as it lies in memory: by owner, physical expert, token.
struct Shipment {
  std::vector<Sent> sent;
  std::vector<std::size_t> chunks;                                        ///< rows for each owner
  std::map<std::pair<std::int64_t, std::int64_t>, std::size_t> position;  ///< of (token, expert)
};

Shipment shipment_of(const WrongTap& wrong, const Deployment& deployment, const TokenRows& own) {
  const Plan& plan = wrong.model.plan();
  const ExpectedTap& ids = wrong.model.tap(wrong.layer, TapKind::router_choice);
  Shipment result;
  for (std::int64_t place = 0; place < own.count(); ++place) {
    const std::int64_t row = own[place];
    for (std::int64_t s = 0; s < ids.cols; ++s) {
      const auto expert = static_cast<std::int64_t>(ids.at(row, s));
      result.sent.push_back({row, expert, physical_expert(plan.model, deployment, wrong.layer, row, expert)});
    }
  }
  std::ranges::stable_sort(result.sent, {}, &Sent::physical);
  result.chunks.resize(static_cast<std::size_t>(plan.parallel.ep), 0);
  for (std::size_t i = 0; i < result.sent.size(); ++i) {
    const Sent& sent = result.sent[i];
    ++result.chunks[static_cast<std::size_t>(serving_ep(plan.model, deployment, wrong.layer, sent.row, sent.expert))];
    result.position[{sent.row, sent.expert}] = i;
  }
  return result;
}

/// A way to misplace rows: where the row comes from that lies at each place.
struct Misplacement {
  const char* text;
  std::vector<std::size_t> (*sources)(const Shipment& shipment);
};

template <int shift>
std::vector<std::size_t> shifted(const Shipment& shipment) {
  const std::size_t n = shipment.sent.size();
  std::vector<std::size_t> sources(n);
  for (std::size_t i = 0; i < n; ++i) sources[i] = (i + (shift > 0 ? 1 : n - 1)) % n;
  return sources;
}

std::vector<std::size_t> repeated(const Shipment& shipment) {
  std::vector<std::size_t> sources = shifted<-1>(shipment);
  if (!sources.empty()) sources.front() = 0;
  return sources;
}

std::vector<std::size_t> reversed(const Shipment& shipment) {
  std::vector<std::size_t> sources(shipment.sent.size());
  std::iota(sources.rbegin(), sources.rend(), std::size_t{0});
  return sources;
}

/// The owners' chunks lie in the order that `owner_at` gives.
template <class OwnerAt>
std::vector<std::size_t> reordered(const Shipment& shipment, const OwnerAt& owner_at) {
  std::vector<std::size_t> begin(shipment.chunks.size());
  std::exclusive_scan(shipment.chunks.begin(), shipment.chunks.end(), begin.begin(), std::size_t{0});
  std::vector<std::size_t> sources;
  for (std::size_t c = 0; c < shipment.chunks.size(); ++c) {
    const std::size_t owner = owner_at(c);
    for (std::size_t i = 0; i < shipment.chunks[owner]; ++i) sources.push_back(begin[owner] + i);
  }
  return sources;
}

std::vector<std::size_t> chunks_reversed(const Shipment& shipment) {
  return reordered(shipment, [&](std::size_t c) { return shipment.chunks.size() - 1 - c; });
}

std::vector<std::size_t> chunks_rotated(const Shipment& shipment) {
  return reordered(shipment, [&](std::size_t c) { return (c + 1) % shipment.chunks.size(); });
}

constexpr Misplacement kMisplacements[] = {
    {"one place earlier", shifted<1>},
    {"one place later", shifted<-1>},
    {"twice, each in place of the next", repeated},
    {"in reverse", reversed},
    {"with the owners' chunks in reverse", chunks_reversed},
    {"with the owners' chunks one rank on", chunks_rotated},
};

/// One or two of a row's slots hold outputs for any other token.
std::optional<Cause> any_tokens_cause(const WrongTap& wrong, const MoeSlots& moe) {
  Recompute& model = wrong.model;
  const ExpectedTap& ids = model.tap(wrong.layer, TapKind::router_choice);
  // What slots may hold: every slot's proper output, and the experts' outputs for other tokens.
  const auto outputs_near = [&](std::size_t i) {
    std::vector<Row> result;
    for (std::int64_t row = 0; row < ids.rows; ++row) {
      std::set<std::int64_t> experts(moe.slots(i).experts.begin(), moe.slots(i).experts.end());
      for (std::int64_t s = 0; s < ids.cols; ++s) experts.insert(static_cast<std::int64_t>(ids.at(row, s)));
      for (const std::int64_t expert : experts) {
        result.push_back(model.expert_output(wrong.layer, row, {wrong.layer, expert}));
      }
    }
    return result;
  };
  // One or two of a row's slots may be wrong; candidates are sorted by their first element.
  const auto fits = [&](std::size_t i) {
    const Slots& slots = moe.slots(i);
    std::vector<Row> candidates = outputs_near(i);
    std::ranges::sort(candidates, {}, [](const Row& row) { return row.front(); });
    const double got = wrong.rows[i].got.front();
    const auto with = [&](std::size_t a, std::size_t b, const Row& in_a) {
      double rest = got;
      for (std::size_t s = 0; s < slots.outputs.size(); ++s) {
        if (s != b) rest -= slots.weights[s] * (s == a ? in_a : slots.outputs[s]).front();
      }
      if (slots.weights[b] == 0) return false;
      const double value = rest / slots.weights[b];
      const double slack = (wrong.step + 2 * wrong.tolerance) / slots.weights[b];
      auto it = std::ranges::lower_bound(candidates, value - slack, {}, [](const Row& row) { return row.front(); });
      for (; it != candidates.end() && it->front() <= value + slack; ++it) {
        std::vector<Row> outputs = slots.outputs;
        outputs[a] = in_a;
        outputs[b] = *it;
        if (close(moe.combine(slots.weights, outputs, i), wrong.rows[i].got, wrong.tolerance)) return true;
      }
      return false;
    };
    for (std::size_t b = 0; b < slots.outputs.size(); ++b) {
      if (with(b, b, slots.outputs[b])) return true;
    }
    for (std::size_t a = 0; a < slots.outputs.size(); ++a) {
      for (std::size_t b = a + 1; b < slots.outputs.size(); ++b) {
        for (const Row& candidate : candidates) {
          if (with(a, b, candidate)) return true;
        }
      }
    }
    return false;
  };
  for (std::size_t i = 0; i < wrong.rows.size(); ++i) {
    if (!fits(i)) return std::nullopt;
  }
  return Cause{"tokens_permuted", fmt::format("{} rows on {} hold experts' outputs for other tokens", wrong.rows.size(),
                                              ranks_of(wrong.rows))};
}

}  // namespace

std::optional<Cause> misplacement_cause(const WrongTap& wrong, const MoeSlots& moe) {
  Recompute& model = wrong.model;
  const Plan& plan = model.plan();
  const Deployment deployment = deploy(plan.model, plan.parallel, plan.workload);
  std::vector<Shipment> shipments;
  for (const WrongRow& row : wrong.rows) {
    const RowHome home = model.tokens().home(row.row);
    shipments.push_back(shipment_of(wrong, deployment, model.tokens().own(home.at, home.microbatch)));
  }
  for (const Misplacement& misplaced : kMisplacements) {
    std::vector<std::vector<std::size_t>> sources;
    for (const Shipment& shipment : shipments) sources.push_back(misplaced.sources(shipment));
    for (const bool back : {false, true}) {
      const auto output = [&](std::size_t i, std::size_t s) {
        const std::int64_t expert = moe.slots(i).experts[s];
        const Shipment& shipment = shipments[i];
        const Sent& source = shipment.sent[sources[i][shipment.position.at({wrong.rows[i].row, expert})]];
        return model.expert_output(wrong.layer, source.row, {wrong.layer, back ? source.expert : expert});
      };
      if (!moe.explained_by_outputs(output)) continue;
      return Cause{"tokens_permuted", fmt::format("rows {} the experts lie {}, on {}", back ? "back from" : "sent to",
                                                  misplaced.text, ranks_of(wrong.rows))};
    }
  }
  return std::nullopt;
}

std::optional<Cause> other_tokens_cause(const WrongTap& wrong, const MoeSlots& moe) {
  const ModelConfig& config = wrong.model.plan().model;
  const double outputs = static_cast<double>(wrong.rows.size()) * static_cast<double>(wrong.expected.rows) *
                         static_cast<double>(2 * config.layers[wrong.layer].feed_forward.top_k);
  if (outputs * static_cast<double>(config.hidden_size) > kSearchedValues) return std::nullopt;
  return any_tokens_cause(wrong, moe);
}

}  // namespace shardproof::diagnosis
