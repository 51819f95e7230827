// Of Computations (computations.h), which rows go to which experts, and what comes of them; included by
// computations.cpp alone.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "emu/run/computations.h"
#include "emu/run/dry_run.h"
#include "emu/run/fault.h"
#include "emu/run/slot_board.h"
#include "emu/run/transformer.h"
#include "ops/permute.h"

namespace shardproof {

template <class T>
void Computations<T>::choose_replicas([[maybe_unused]] int layer, [[maybe_unused]] const Ids& ids,
                                      [[maybe_unused]] Ids& physical) const {
  if constexpr (!kDry) {
    const ExpertMap& map = (*layout_.expert_maps)[static_cast<std::size_t>(layer)];
    const TokenRows own = tokens_.rows.part(own_rows());
    const std::int64_t experts = model_.layers[layer].feed_forward.num_experts;
    for (std::int64_t i = 0; i < ids.rows(); ++i) {
      for (std::int64_t s = 0; s < ids.cols(); ++s) {
        const std::int32_t expert = ids(i, s);
        if (expert < 0 || expert >= experts) {
          throw std::out_of_range(fmt::format("token {} is routed to expert {}; there are {}", i, expert, experts));
        }
        physical(i, s) = map.choose(expert, own[i], held(layer).experts, layout_.parallel.experts.replica);
      }
    }
    if (ground_.program.fault != nullptr) {
      ground_.program.fault->edit_replicas(ground_.rank, {.layer = layer, .microbatch = microbatch_}, ids, physical);
    }
  }
}

template <class T>
typename Computations<T>::Ids Computations<T>::physical_experts(int layer, const Routing& routing) const {
  Ids physical(routing.ids.rows(), routing.ids.cols());
  if constexpr (!kDry) {
    if (layout_.expert_maps != nullptr) {
      choose_replicas(layer, routing.ids, physical);
    } else {
      std::ranges::copy(routing.ids.span(), physical.span().begin());
    }
  }
  return physical;
}

template <class T>
Permutation Computations<T>::permute(int layer, [[maybe_unused]] const Ids& experts) const {
  if constexpr (kDry) {
    return {.counts = ground_.run.sent(layer, microbatch_, layout_.at)};
  } else {
    Permutation permutation = permute_by_owner(experts, held(layer).expert_owner, layout_.parallel.ep);
    if (tapped_inside()) {
      std::vector<std::int64_t> to_each;
      for (const std::size_t count : element_counts(permutation.counts, held(layer).most_experts, 1)) {
        to_each.push_back(static_cast<std::int64_t>(count));
      }
      ground_.program.slots->post(to_int(ground_.rank.id()), {layer, microbatch_}, sent_slots(layer, permutation),
                                  std::move(to_each));
    }
    return permutation;
  }
}

template <class T>
std::vector<TokenRows> Computations<T>::own_over_ep() const {
  const auto rows_of = [&](const Mesh& mesh, const TokenMap& tokens) {
    std::vector<TokenRows> rows;
    for (const int member : mesh.group(Axis::ep, mesh.rank_at(layout_.at))) {
      rows.push_back(tokens.run_own(mesh.coordinates(member), microbatch_));
    }
    return rows;
  };
  if constexpr (kDry) {
    return rows_of(ground_.run.mesh(), ground_.run.tokens());
  } else {
    return rows_of(Mesh(layout_.parallel), ground_.program.deployment.tokens);
  }
}

template <class T>
Selection Computations<T>::select(int layer, [[maybe_unused]] const Ids& experts,
                                  [[maybe_unused]] const Counts& rows_of) const {
  if constexpr (kDry) {
    Selection selection;
    selection.counts = ground_.run.arriving(layer, microbatch_, layout_.at);
    selection.count = sum_of(selection.counts);
    return selection;
  } else {
    return select_for_owner(experts, rows_of, held(layer).expert_owner, layout_.parallel.ep, layout_.at.ep);
  }
}

template <class T>
typename Computations<T>::Tensor Computations<T>::combine_selected(Op op, int layer, const Tensor& outputs,
                                                                   [[maybe_unused]] const Selection& selection,
                                                                   const Tensor& weights) {
  Tensor y(weights.rows(), model_.hidden_size);
  const bool partial = layout_.parallel.sums_over_ep();
  if constexpr (!kDry) {
    // A partial sum is rounded as one that is to be sent, below.
    const ops::Format unrounded = std::is_same_v<T, float> ? ops::Format::fp32 : ops::Format::fp64;
    ops::combine<T>(outputs, selection.positions, weights, partial ? unrounded : format_, y);
    inject_result_fault(op, layer, y.view(), outputs.view(), weights.view(), selection.positions.view());
  }
  if (partial) round_partial(y, layout_.parallel.ep);
  record(op, layer, y.rows(), y.cols(), ops::combine_rows_cost(y.rows(), outputs.rows(), y.cols(), element_bytes()));
  return y;
}

template <class T>
std::vector<std::int64_t> Computations<T>::selected_slots(
    [[maybe_unused]] const Selection& selection, [[maybe_unused]] const std::vector<TokenRows>& rows_of) const {
  std::vector<std::int64_t> slots;
  if constexpr (!kDry) {
    if (!tapped_inside()) return slots;
    std::vector<std::int64_t> rows;
    for (const TokenRows& of_sender : rows_of) {
      for (std::int64_t place = 0; place < of_sender.count(); ++place) rows.push_back(of_sender[place]);
    }
    for (std::size_t slot = 0; slot < selection.rows.size(); ++slot) {
      const std::int64_t row = rows[static_cast<std::size_t>(selection.rows[slot])];
      slots.push_back(row * selection.positions.cols() + selection.choices[slot]);
    }
  }
  return slots;
}

template <class T>
std::vector<std::int64_t> Computations<T>::sent_slots([[maybe_unused]] int layer,
                                                      [[maybe_unused]] const Permutation& permutation) const {
  std::vector<std::int64_t> slots;
  if constexpr (!kDry) {
    if (!tapped_inside()) return slots;
    slots.resize(static_cast<std::size_t>(permutation.positions.size()));
    const TokenRows own = tokens_.rows.part(own_rows());
    const std::int64_t top_k = permutation.positions.cols();
    for (std::int64_t token = 0; token < permutation.positions.rows(); ++token) {
      const std::int64_t row = own[token];
      for (std::int64_t choice = 0; choice < top_k; ++choice) {
        slots[static_cast<std::size_t>(permutation.positions(token, choice))] = row * top_k + choice;
      }
    }
  }
  return slots;
}

template <class T>
std::vector<std::int64_t> Computations<T>::slots_of_experts([[maybe_unused]] int layer) const {
  if constexpr (!kDry) {
    if (tapped_inside()) {
      return ground_.program.slots->arriving_over_etp(to_int(ground_.rank.id()), {layer, microbatch_});
    }
  }
  return {};
}

template <class T>
RowOrder Computations<T>::order_by_expert(const Counts& counts, [[maybe_unused]] std::int64_t experts) const {
  if constexpr (kDry) {
    return {.count = sum_of(counts), .rows = {}};
  } else {
    std::vector<std::int64_t> rows = sort_by_expert(counts, experts);
    const std::int64_t count = std::ssize(rows);
    return {.count = count, .rows = std::move(rows)};
  }
}

template <class T>
RowOrder Computations<T>::inverse_of(const RowOrder& order) const {
  return {.count = order.count, .rows = kDry ? std::vector<std::int64_t>() : inverse(order.rows)};
}

}  // namespace shardproof
