// The functions the reference model is made of, over whole row-major matrices of float64.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "emu/model/config.h"

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

/// gpt-oss's activation: (u + 1) * (g / (1 + E(-1.702 g))), g = min(gate, limit), u = up held within -limit..limit.
double clamped_swiglu(double gate, double up, double limit, Arithmetic arithmetic);

/// silu(g) = g / (1 + E(-g)). In `exact`, -g is first clamped to [-40, 20], so that 1 + E(-g) needs at most 50 bits.
double silu(double gate, Arithmetic arithmetic);

/// Every element held within -limit..limit; no limit where it is 0.
Tensor clipped(Tensor x, double limit, Arithmetic arithmetic);

/// y[t, o] = sum over i, in order, of x[t, i] * w[o, i], for w of [outputs, x.cols]. Not rounded. A
/// large product is shared out over the cores, whole outputs to each.
Tensor linear(const Tensor& x, std::span<const double> w, std::int64_t outputs);

/// y[t, i] = stored((x[t, i] * inv) * weight[i]), inv = 1 / sqrt(sum over i of x[t, i]^2 / cols + eps).
Tensor rms_norm(const Tensor& x, std::span<const double> weight, double eps, Arithmetic arithmetic);

/// y[t, i] = stored(((x[t, i] - mean) * inv) * weight[i] + bias[i]), mean = stored(sum over i of x[t, i] / cols), inv =
/// 1 / sqrt(sum over i of (x[t, i] - mean)^2 / cols + eps).
Tensor layer_norm(const Tensor& x, std::span<const double> weight, std::span<const double> bias, double eps,
                  Arithmetic arithmetic);
/// x, less the mean of each row.
Tensor centred(const Tensor& x, Arithmetic arithmetic);

/// The angle a position of each pair of elements that turns, d / 2 of them (RopeType, emu/model/config.h).
std::vector<double> frequencies(const RopeSpec& spec, std::int64_t d);

/// Rotates each head of head_dim elements, of which those from `begin` on turn: pair i by the angle
/// position * frequency[i]. A pair is (begin + i, begin + i + pairs), or neighbours where the spec interleaves them.
/// Stores the result. positions has one entry a row.
Tensor rope(const Tensor& x, std::span<const std::int64_t> positions, std::int64_t head_dim, std::int64_t begin,
            const RopeSpec& spec, Arithmetic arithmetic);

/// Causal grouped-query attention inside each sequence: query head h reads key-value head h / (heads / kv_heads), a
/// token the keys of the spec's window. s_j = stored(score_scale q . k_j), p_j = E(s_j - m), m the largest s_j, out =
/// stored((sum_j p_j v_j) / (sum_j p_j)). A head's sink is one more s_j, of value zero. Where `wanted` names rows of q,
/// the others are zeros.
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, std::span<const std::int64_t> lengths,
                 const AttentionSpec& spec, std::span<const double> sinks, Arithmetic arithmetic,
                 const std::vector<bool>& wanted = {});

/// 1 / (1 + E(-x)), itself rounded to kExpStep in `exact`, where -x is clamped as silu() says.
double sigmoid(double x, Arithmetic arithmetic);

struct Routing {
  Tensor scores;   ///< [tokens, experts]: with sigmoid, what the choice is made by
  Tensor choice;   ///< [tokens, top_k] expert ids by falling logit or score, of equal ones the lower id first
  Tensor weights;  ///< [tokens, top_k]
};

/// Of softmax, weight = stored(scale e / sum of e), e = E(logit - the row's largest logit), the sum over the chosen
/// experts if they are normalised, else over all. Of sigmoid, scores s = sigmoid(logit); the choice is by s + bias; a
/// weight is stored(scale s / (sum of the chosen s + 1e-20)), or stored(scale s). With groups, only experts of the best
/// ones are chosen: by the sum of the two best s + bias, or by the best logit.
/// Of sparsemixer, weight = stored(e / sum of e), e = E(logit - m) with m the largest logit of the experts that no
/// earlier slot chose, the sum over those of them whose (m - l) / max(|l|, m) is not above twice the jitter.
Routing route(const Tensor& logits, const FeedForwardSpec& spec, std::span<const double> selection_bias,
              Arithmetic arithmetic);

}  // namespace shardproof::reference
