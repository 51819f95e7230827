// Of Computations (computations.h), what some families do to the residual stream; included by computations.cpp alone.
#pragma once

#include "emu/run/computations.h"
#include "ops/elementwise.h"
#include "ops/norm.h"

namespace shardproof {

template <class T>
typename Computations<T>::Tensor Computations<T>::norm(Op op, int layer, const Tensor& x, Weight weight, Weight bias) {
  if (!model_.layer_norm) return rms_norm(op, layer, x, weight);
  Tensor y(x.rows(), x.cols());
  if constexpr (!kDry) {
    ops::layer_norm<T>(x, slice(weight, layer).load().view().span(), slice(bias, layer).load().view().span(),
                       model_.rms_norm_eps, format_, y);
    inject_result_fault(op, layer, y.view());
  }
  record(op, layer, y.rows(), y.cols(), ops::layer_norm_cost(y.rows(), y.cols(), element_bytes()));
  return y;
}

template <class T>
void Computations<T>::scale(Op op, int layer, Tensor& x, [[maybe_unused]] double factor) {
  if constexpr (!kDry) {
    ops::scale<T>(x, factor, format_);
    inject_result_fault(op, layer, x.view());
  }
  record(op, layer, x.rows(), x.cols(), ops::scale_cost(x.rows(), x.cols(), element_bytes()));
}

template <class T>
void Computations<T>::add_scaled(Op op, int layer, Tensor& x, [[maybe_unused]] const Tensor& y,
                                 [[maybe_unused]] double factor) {
  if constexpr (!kDry) {
    ops::add_scaled<T>(x, y, factor, format_, x);
    inject_result_fault(op, layer, x.view());
  }
  ops::Cost cost = ops::add_cost(x.rows(), x.cols(), element_bytes());
  cost.flops *= 2;
  record(op, layer, x.rows(), x.cols(), cost);
}

}  // namespace shardproof
