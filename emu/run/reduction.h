// How the residual stream enters and leaves a tensor-parallel region.
//
//                            without sp                       with sp
//   gather_rows_over_tp      the rows are there already       all-gather of the rows over tp
//   reduce_over_tp           all-reduce over tp               reduce-scatter of the rows over tp
#pragma once

#include "emu/run/stage.h"

namespace shardproof {

/// [stream rows, n] -> [all rows, n].
template <class T>
Task<ops::Matrix<T>> gather_rows_over_tp(const Stage<T>& stage, ops::Matrix<T> x);

/// Addends [all rows, n], one per tp rank -> their stored sum [stream rows, n]. An addend is rounded as a kernel stores
/// a partial sum; the sum is taken in the order of the communicator's algorithm.
template <class T>
Task<ops::Matrix<T>> reduce_over_tp(const Stage<T>& stage, ops::Matrix<T> addend);

/// [own rows, n] -> [all rows, n] without sp (all-gather over tp); unchanged with sp.
template <class T>
Task<ops::Matrix<T>> own_rows_to_stream(const Stage<T>& stage, ops::Matrix<T> own);

}  // namespace shardproof
