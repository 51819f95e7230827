// Of Computations (computations.h), what padded rows are (Idle::pad); included by computations.cpp alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "emu/run/computations.h"

namespace shardproof {

template <class T>
void Computations<T>::poison_padding(Tensor& x) const {
  if constexpr (!kDry) {
    if (tokens_.padded) std::ranges::fill(x.span(), std::numeric_limits<T>::quiet_NaN());
  }
}

template <class T>
typename Computations<T>::Tensor Computations<T>::context_of_padding(int layer) const {
  Tensor context(rows(), held(layer).heads.count * model_.layers[layer].attention.value_dim());
  poison_padding(context);
  return context;
}

template <class T>
void Computations<T>::route_padding(Routing& routing) const {
  if constexpr (!kDry) {
    poison_padding(routing.weights);
    for (std::int64_t slot = 0; slot < routing.ids.size(); ++slot) {
      routing.ids.span()[static_cast<std::size_t>(slot)] = static_cast<std::int32_t>(slot % routing.ids.cols());
    }
  }
}

template <class T>
std::pair<typename Computations<T>::Tensor, std::vector<std::int64_t>> Computations<T>::without_padding(
    const Tensor& tensor, const std::vector<std::int64_t>& slots, std::int64_t count) const {
  std::vector<std::int64_t> held;
  for (const std::int64_t slot : slots) {
    if (slot < count) held.push_back(slot);
  }
  Tensor of_tokens(std::ssize(held), tensor.cols());
  if constexpr (!kDry) {
    std::int64_t to = 0;
    for (std::int64_t i = 0; i < tensor.rows(); ++i) {
      if (slots[static_cast<std::size_t>(i)] < count) std::ranges::copy(tensor.row(i), of_tokens.row(to++).begin());
    }
  }
  return {std::move(of_tokens), std::move(held)};
}

}  // namespace shardproof
