#include "emu/reference/math.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

namespace shardproof::reference {

namespace {

/// Four sums that advance together.
using Four = double __attribute__((vector_size(4 * sizeof(double))));

/// Tokens and outputs whose sums advance together: as many as the registers hold.
constexpr std::int64_t kTokens = 4;
constexpr std::int64_t kTile = 8;

/// y[t, begin + o] = sum over i, in order, of x[t, i] * transposed[i, o], for kCount tokens from `first` and `tile`
/// outputs o; `transposed` has kTile columns.
template <std::int64_t kCount>
void multiply_tile(const Tensor& x, std::int64_t first, const Tensor& transposed, std::int64_t begin, std::int64_t tile,
                   Tensor& y) {
  static_assert(kTile == 8);
  const double* inputs[kTokens];
  for (std::int64_t t = 0; t < kCount; ++t) inputs[t] = x.row(first + t);
  Four sum[kTokens][2] = {};
  for (std::int64_t i = 0; i < x.cols; ++i) {
    Four low, high;
    std::memcpy(&low, transposed.row(i), sizeof(low));
    std::memcpy(&high, transposed.row(i) + 4, sizeof(high));
    for (std::int64_t t = 0; t < kCount; ++t) {
      sum[t][0] += inputs[t][i] * low;
      sum[t][1] += inputs[t][i] * high;
    }
  }
  for (std::int64_t t = 0; t < kCount; ++t) {
    for (std::int64_t o = 0; o < tile; ++o) y.row(first + t)[begin + o] = sum[t][o / 4][o % 4];
  }
}

}  // namespace

double to_grid(double value, double step) {
  // The addition turns -0 into +0: which of the two a sum gives would depend on how it was started.
  return std::nearbyint(value / step) * step + 0.0;
}

double rounded(double value, double step, Arithmetic arithmetic) {
  return arithmetic == Arithmetic::exact ? to_grid(value, step) : value;
}

Tensor stored(Tensor x, Arithmetic arithmetic) {
  for (double& value : x.values) value = rounded(value, kActivationStep, arithmetic);
  return x;
}

double exponential(double x, Arithmetic arithmetic) {
  return rounded(std::exp(x), kExpStep, arithmetic);
}

double silu(double gate, Arithmetic arithmetic) {
  const double argument = arithmetic == Arithmetic::exact ? std::clamp(-gate, -40.0, 20.0) : -gate;
  return gate / (1.0 + exponential(argument, arithmetic));
}

Tensor linear(const Tensor& x, std::span<const double> w, std::int64_t outputs) {
  // Each y is one running sum over i. The sums of a few tokens with kTile outputs advance together, and the weights of
  // a tile are transposed first, so that they are contiguous: that changes the speed and no sum.
  const std::int64_t inputs = x.cols;
  Tensor y(x.rows, outputs);
  const auto tiles_from = [&](std::int64_t first, std::int64_t step, Tensor& transposed) {
    for (std::int64_t begin = first * kTile; begin < outputs; begin += step * kTile) {
      const std::int64_t tile = std::min(kTile, outputs - begin);
      for (std::int64_t o = 0; o < tile; ++o) {
        const double* weights = w.data() + (begin + o) * inputs;
        for (std::int64_t i = 0; i < inputs; ++i) transposed.row(i)[o] = weights[i];
      }
      std::int64_t t = 0;
      for (; t + kTokens <= x.rows; t += kTokens) multiply_tile<kTokens>(x, t, transposed, begin, tile, y);
      for (; t + 2 <= x.rows; t += 2) multiply_tile<2>(x, t, transposed, begin, tile, y);
      if (t < x.rows) multiply_tile<1>(x, t, transposed, begin, tile, y);
    }
  };
  // Large products share their tiles out over threads.
  constexpr std::int64_t kProductsPerThread = std::int64_t{1} << 23;
  const std::int64_t threads = std::clamp<std::int64_t>(x.rows * inputs * outputs / kProductsPerThread, 1,
                                                        std::max(1U, std::thread::hardware_concurrency()));
  std::vector<Tensor> scratch(static_cast<std::size_t>(threads), Tensor(inputs, kTile));
  std::vector<std::jthread> others;
  for (std::int64_t thread = 1; thread < threads; ++thread) {
    others.emplace_back([&, thread] { tiles_from(thread, threads, scratch[static_cast<std::size_t>(thread)]); });
  }
  tiles_from(0, threads, scratch[0]);
  others.clear();  // joins
  return y;
}

Tensor rms_norm(const Tensor& x, std::span<const double> weight, double eps, Arithmetic arithmetic) {
  Tensor y(x.rows, x.cols);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    double sum = 0.0;
    for (std::int64_t i = 0; i < x.cols; ++i) sum += x.row(t)[i] * x.row(t)[i];
    const double inverse = 1.0 / std::sqrt(sum / static_cast<double>(x.cols) + eps);
    for (std::int64_t i = 0; i < x.cols; ++i) y.row(t)[i] = x.row(t)[i] * inverse * weight[static_cast<std::size_t>(i)];
  }
  return stored(std::move(y), arithmetic);
}

Tensor rope(const Tensor& x, std::span<const std::int64_t> positions, std::int64_t head_dim, double theta,
            Arithmetic arithmetic) {
  const std::int64_t half = head_dim / 2;
  Tensor y(x.rows, x.cols);
  for (std::int64_t i = 0; i < half; ++i) {
    const double frequency = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    for (std::int64_t t = 0; t < x.rows; ++t) {
      const double angle = static_cast<double>(positions[static_cast<std::size_t>(t)]) * frequency;
      const double cosine = rounded(std::cos(angle), kExpStep, arithmetic);
      const double sine = rounded(std::sin(angle), kExpStep, arithmetic);
      for (std::int64_t head = 0; head < x.cols; head += head_dim) {
        const double x0 = x.row(t)[head + i];
        const double x1 = x.row(t)[head + i + half];
        y.row(t)[head + i] = x0 * cosine - x1 * sine;
        y.row(t)[head + i + half] = x1 * cosine + x0 * sine;
      }
    }
  }
  return stored(std::move(y), arithmetic);
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, std::span<const std::int64_t> lengths,
                 std::int64_t head_dim, Arithmetic arithmetic) {
  const std::int64_t heads = q.cols / head_dim;
  const std::int64_t queries_per_kv = heads / (k.cols / head_dim);
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  Tensor out(q.rows, q.cols);
  std::vector<double> p;
  std::int64_t begin = 0;
  for (const std::int64_t length : lengths) {
    for (std::int64_t head = 0; head < heads; ++head) {
      const std::int64_t column = head * head_dim;
      const std::int64_t kv_column = head / queries_per_kv * head_dim;
      for (std::int64_t t = begin; t < begin + length; ++t) {
        const std::int64_t keys = t - begin + 1;
        p.resize(static_cast<std::size_t>(keys));
        for (std::int64_t j = 0; j < keys; ++j) {
          const double* query = q.row(t) + column;
          const double* key = k.row(begin + j) + kv_column;
          double dot = 0.0;
          for (std::int64_t d = 0; d < head_dim; ++d) dot += query[d] * key[d];
          p[static_cast<std::size_t>(j)] = rounded(dot * scale, kActivationStep, arithmetic);
        }
        const double largest = *std::max_element(p.begin(), p.end());
        double* context = out.row(t) + column;
        double sum = 0.0;
        for (std::int64_t j = 0; j < keys; ++j) {
          const double weight = exponential(p[static_cast<std::size_t>(j)] - largest, arithmetic);
          const double* value = v.row(begin + j) + kv_column;
          sum += weight;
          for (std::int64_t d = 0; d < head_dim; ++d) context[d] += weight * value[d];
        }
        for (std::int64_t d = 0; d < head_dim; ++d) context[d] /= sum;
      }
    }
    begin += length;
  }
  return stored(std::move(out), arithmetic);
}

Routing route(const Tensor& logits, std::int64_t top_k, bool normalise, Arithmetic arithmetic) {
  Routing routing{Tensor(logits.rows, top_k), Tensor(logits.rows, top_k)};
  std::vector<std::int64_t> order(static_cast<std::size_t>(logits.cols));
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    const double* logit = logits.row(t);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return logit[a] > logit[b]; });
    const double largest = logit[order[0]];
    double sum = 0.0;
    for (std::int64_t slot = 0; slot < (normalise ? top_k : logits.cols); ++slot) {
      sum += exponential(logit[order[static_cast<std::size_t>(slot)]] - largest, arithmetic);
    }
    for (std::int64_t slot = 0; slot < top_k; ++slot) {
      const std::int64_t expert = order[static_cast<std::size_t>(slot)];
      routing.choice.row(t)[slot] = static_cast<double>(expert);
      routing.weights.row(t)[slot] = exponential(logit[expert] - largest, arithmetic) / sum;
    }
  }
  routing.weights = stored(std::move(routing.weights), arithmetic);
  return routing;
}

}  // namespace shardproof::reference
