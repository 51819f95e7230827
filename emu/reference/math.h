// The functions the reference model is made of, over whole row-major matrices of float64.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace shardproof::reference {

struct Tensor {
  Tensor() = default;
  Tensor(std::int64_t rows_, std::int64_t cols_)
      : rows(rows_), cols(cols_), values(static_cast<std::size_t>(rows_ * cols_)) {}

  double* row(std::int64_t r) { return values.data() + r * cols; }
  const double* row(std::int64_t r) const { return values.data() + r * cols; }

  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<double> values;
};

/// float64: nothing is rounded; exact: what a kernel would store, exponentials, sines and cosines are.
enum class Arithmetic { float64, exact };

/// What is rounded, and to which multiples. kActivationStep is the grid of stored values, kExpStep that of exponentials
/// and of the sines and cosines of RoPE. Ties go to the even multiple; a zero is always +0.
inline constexpr double kActivationStep = 0x1p-10;
inline constexpr double kExpStep = 0x1p-20;
double to_grid(double value, double step);
/// to_grid in `exact`, else the value.
double rounded(double value, double step, Arithmetic arithmetic);

/// Every element as a kernel would store it: on the grid of kActivationStep in `exact`, else unchanged.
Tensor stored(Tensor x, Arithmetic arithmetic);

/// E(x) = exp(x), rounded to a multiple of kExpStep in `exact`.
double exponential(double x, Arithmetic arithmetic);

/// silu(g) = g / (1 + E(-g)). In `exact`, -g is first clamped to [-40, 20], so that 1 + E(-g) needs at most 50 bits.
double silu(double gate, Arithmetic arithmetic);

/// y[t, o] = sum over i, in order, of x[t, i] * w[o, i], for w of [outputs, x.cols]. Not rounded. A
/// large product is shared out over the cores, whole outputs to each.
Tensor linear(const Tensor& x, std::span<const double> w, std::int64_t outputs);

/// y[t, i] = stored((x[t, i] * inv) * weight[i]), inv = 1 / sqrt(sum over i of x[t, i]^2 / cols + eps).
Tensor rms_norm(const Tensor& x, std::span<const double> weight, double eps, Arithmetic arithmetic);

/// Rotates each head: pairs (i, i + head_dim / 2) by the angle position * theta^(-2 i / head_dim), and stores the
/// result. positions has one entry a row.
Tensor rope(const Tensor& x, std::span<const std::int64_t> positions, std::int64_t head_dim, double theta,
            Arithmetic arithmetic);

/// Causal grouped-query attention inside each sequence: query head h reads key-value head h / (heads / kv_heads).
/// s_j = stored(q . k_j / sqrt(head_dim)), p_j = E(s_j - max s), out = stored((sum_j p_j v_j) / (sum_j p_j)).
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, std::span<const std::int64_t> lengths,
                 std::int64_t head_dim, Arithmetic arithmetic);

struct Routing {
  Tensor choice;   ///< [tokens, top_k] expert ids by falling logit, of equal ones the lower id first
  Tensor weights;  ///< [tokens, top_k]
};

/// weight = stored(e / sum of e), e = E(logit - the row's largest logit), the sum over the chosen experts if
/// `normalise`, else over all.
Routing route(const Tensor& logits, std::int64_t top_k, bool normalise, Arithmetic arithmetic);

}  // namespace shardproof::reference
