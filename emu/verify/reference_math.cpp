#include "emu/verify/reference_math.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>
#include <vector>

namespace shardproof::reference {

double to_grid(double value, double step) {
  // The addition turns -0 into +0: which of the two a sum gives would depend on how it was started.
  return std::nearbyint(value / step) * step + 0.0;
}

Matrix stored(Matrix x, bool exact) {
  if (exact) {
    for (double& value : x.values) value = to_grid(value, kActivationStep);
  }
  return x;
}

double exponential(double x, bool exact) {
  return exact ? to_grid(std::exp(x), kExpStep) : std::exp(x);
}

double silu(double gate, bool exact) {
  const double argument = exact ? std::clamp(-gate, -40.0, 20.0) : -gate;
  return gate / (1.0 + exponential(argument, exact));
}

Matrix linear(const Matrix& x, std::span<const double> w, std::int64_t outputs) {
  // Each output is one running sum over i. kTile of them advance together, and the weights of a tile are transposed
  // first, so that the innermost loop is contiguous: that changes the speed and no sum.
  constexpr std::int64_t kTile = 32;
  const std::int64_t inputs = x.cols;
  Matrix y(x.rows, outputs);
  const auto tiles_from = [&](std::int64_t first, std::int64_t step, Matrix& transposed) {
    for (std::int64_t begin = first * kTile; begin < outputs; begin += step * kTile) {
      const std::int64_t tile = std::min(kTile, outputs - begin);
      for (std::int64_t i = 0; i < inputs; ++i) {
        for (std::int64_t o = 0; o < tile; ++o)
          transposed.row(i)[o] = w[static_cast<std::size_t>((begin + o) * inputs + i)];
      }
      for (std::int64_t t = 0; t < x.rows; ++t) {
        double sum[kTile] = {};
        for (std::int64_t i = 0; i < inputs; ++i) {
          const double input = x.row(t)[i];
          const double* weights = transposed.row(i);
          for (std::int64_t o = 0; o < kTile; ++o) sum[o] += input * weights[o];
        }
        std::copy_n(sum, tile, y.row(t) + begin);
      }
    }
  };
  // Large products share their tiles out over threads.
  constexpr std::int64_t kProductsPerThread = std::int64_t{1} << 23;
  const std::int64_t threads = std::clamp<std::int64_t>(x.rows * inputs * outputs / kProductsPerThread, 1,
                                                        std::max(1U, std::thread::hardware_concurrency()));
  std::vector<Matrix> scratch(static_cast<std::size_t>(threads), Matrix(inputs, kTile));
  std::vector<std::jthread> others;
  for (std::int64_t thread = 1; thread < threads; ++thread) {
    others.emplace_back([&, thread] { tiles_from(thread, threads, scratch[static_cast<std::size_t>(thread)]); });
  }
  tiles_from(0, threads, scratch[0]);
  others.clear();  // joins
  return y;
}

Matrix rms_norm(const Matrix& x, std::span<const double> weight, double eps, bool exact) {
  Matrix y(x.rows, x.cols);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    double sum = 0.0;
    for (std::int64_t i = 0; i < x.cols; ++i) sum += x.row(t)[i] * x.row(t)[i];
    const double inverse = 1.0 / std::sqrt(sum / static_cast<double>(x.cols) + eps);
    for (std::int64_t i = 0; i < x.cols; ++i) y.row(t)[i] = x.row(t)[i] * inverse * weight[static_cast<std::size_t>(i)];
  }
  return stored(std::move(y), exact);
}

Matrix rope(const Matrix& x, std::span<const std::int64_t> positions, std::int64_t head_dim, double theta, bool exact) {
  const std::int64_t half = head_dim / 2;
  Matrix y(x.rows, x.cols);
  for (std::int64_t i = 0; i < half; ++i) {
    const double frequency = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    for (std::int64_t t = 0; t < x.rows; ++t) {
      const double angle = static_cast<double>(positions[static_cast<std::size_t>(t)]) * frequency;
      const double cosine = exact ? to_grid(std::cos(angle), kExpStep) : std::cos(angle);
      const double sine = exact ? to_grid(std::sin(angle), kExpStep) : std::sin(angle);
      for (std::int64_t head = 0; head < x.cols; head += head_dim) {
        const double x0 = x.row(t)[head + i];
        const double x1 = x.row(t)[head + i + half];
        y.row(t)[head + i] = x0 * cosine - x1 * sine;
        y.row(t)[head + i + half] = x1 * cosine + x0 * sine;
      }
    }
  }
  return stored(std::move(y), exact);
}

Matrix attention(const Matrix& q, const Matrix& k, const Matrix& v, std::span<const std::int64_t> lengths,
                 std::int64_t head_dim, bool exact) {
  const std::int64_t heads = q.cols / head_dim;
  const std::int64_t queries_per_kv = heads / (k.cols / head_dim);
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  Matrix out(q.rows, q.cols);
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
          p[static_cast<std::size_t>(j)] = exact ? to_grid(dot * scale, kActivationStep) : dot * scale;
        }
        const double largest = *std::max_element(p.begin(), p.end());
        double* context = out.row(t) + column;
        double sum = 0.0;
        for (std::int64_t j = 0; j < keys; ++j) {
          const double weight = exponential(p[static_cast<std::size_t>(j)] - largest, exact);
          const double* value = v.row(begin + j) + kv_column;
          sum += weight;
          for (std::int64_t d = 0; d < head_dim; ++d) context[d] += weight * value[d];
        }
        for (std::int64_t d = 0; d < head_dim; ++d) context[d] /= sum;
      }
    }
    begin += length;
  }
  return stored(std::move(out), exact);
}

Routing route(const Matrix& logits, std::int64_t top_k, bool normalise, bool exact) {
  Routing routing{Matrix(logits.rows, top_k), Matrix(logits.rows, top_k)};
  std::vector<std::int64_t> order(static_cast<std::size_t>(logits.cols));
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    const double* logit = logits.row(t);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return logit[a] > logit[b]; });
    const double largest = logit[order[0]];
    double sum = 0.0;
    for (std::int64_t slot = 0; slot < (normalise ? top_k : logits.cols); ++slot) {
      sum += exponential(logit[order[static_cast<std::size_t>(slot)]] - largest, exact);
    }
    for (std::int64_t slot = 0; slot < top_k; ++slot) {
      const std::int64_t expert = order[static_cast<std::size_t>(slot)];
      routing.choice.row(t)[slot] = static_cast<double>(expert);
      routing.weights.row(t)[slot] = exponential(logit[expert] - largest, exact) / sum;
    }
  }
  routing.weights = stored(std::move(routing.weights), exact);
  return routing;
}

}  // namespace shardproof::reference
