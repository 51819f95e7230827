#include "emu/reference/math.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
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

double sigmoid(double x, Arithmetic arithmetic) {
  const double argument = arithmetic == Arithmetic::exact ? std::clamp(-x, -40.0, 20.0) : -x;
  return rounded(1.0 / (1.0 + exponential(argument, arithmetic)), kExpStep, arithmetic);
}

double clamped_swiglu(double gate, double up, double limit, Arithmetic arithmetic) {
  const double g = std::min(gate, limit), u = std::clamp(up, -limit, limit);
  const double turned = -(1.702 * g);
  const double argument = arithmetic == Arithmetic::exact ? std::clamp(turned, -40.0, 20.0) : turned;
  return (u + 1.0) * (g / (1.0 + exponential(argument, arithmetic)));
}

double silu(double gate, Arithmetic arithmetic) {
  const double argument = arithmetic == Arithmetic::exact ? std::clamp(-gate, -40.0, 20.0) : -gate;
  return gate / (1.0 + exponential(argument, arithmetic));
}

Tensor clipped(Tensor x, double limit, Arithmetic arithmetic) {
  if (limit == 0) return x;
  const double most = rounded(limit, kActivationStep, arithmetic);
  for (double& value : x.values) value = std::min(std::max(value, -most), most);
  return x;
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

Tensor centred(const Tensor& x, Arithmetic arithmetic) {
  Tensor d = x;
  for (std::int64_t t = 0; t < x.rows; ++t) {
    double sum = 0.0;
    for (std::int64_t i = 0; i < x.cols; ++i) sum += x.row(t)[i];
    const double mean = rounded(sum / static_cast<double>(x.cols), kActivationStep, arithmetic);
    for (std::int64_t i = 0; i < x.cols; ++i) d.row(t)[i] -= mean;
  }
  return d;
}

Tensor layer_norm(const Tensor& x, std::span<const double> weight, std::span<const double> bias, double eps,
                  Arithmetic arithmetic) {
  Tensor y = centred(x, arithmetic);
  for (std::int64_t t = 0; t < y.rows; ++t) {
    double sum = 0.0;
    for (std::int64_t i = 0; i < y.cols; ++i) sum += y.row(t)[i] * y.row(t)[i];
    const double inverse = 1.0 / std::sqrt(sum / static_cast<double>(y.cols) + eps);
    for (std::int64_t i = 0; i < y.cols; ++i) {
      y.row(t)[i] = y.row(t)[i] * inverse * weight[static_cast<std::size_t>(i)] + bias[static_cast<std::size_t>(i)];
    }
  }
  return stored(std::move(y), arithmetic);
}

std::vector<double> frequencies(const RopeSpec& spec, std::int64_t d) {
  const double pi = std::acos(-1.0), context = static_cast<double>(spec.original_context);
  std::vector<double> result;
  // Yarn: the pair that turns so many times in the original context.
  const auto pair_of = [&](double turns) {
    return static_cast<double>(d) * std::log(context / (turns * 2 * pi)) / (2 * std::log(spec.theta));
  };
  double first = spec.type == RopeType::yarn ? pair_of(spec.beta_fast) : 0;
  double last = spec.type == RopeType::yarn ? pair_of(spec.beta_slow) : 1;
  if (spec.truncate) {
    first = std::floor(first);
    last = std::ceil(last);
  }
  first = std::max(first, 0.0);
  last = std::min(last, static_cast<double>(d - 1));
  if (first == last) last += 0.001;
  for (std::int64_t i = 0; i < d / 2; ++i) {
    const double f = std::pow(spec.theta, -2.0 * static_cast<double>(i) / static_cast<double>(d));
    switch (spec.type) {
      case RopeType::plain:
        result.push_back(f);
        break;
      case RopeType::longrope:
        result.push_back(f / spec.pair_factors[static_cast<std::size_t>(i)]);
        break;
      case RopeType::linear:
        result.push_back(f / spec.factor);
        break;
      case RopeType::llama3: {
        const double turns = context * f / (2 * pi);
        const double share =
            std::clamp((turns - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor), 0.0, 1.0);
        result.push_back((1 - share) * (f / spec.factor) + share * f);
        break;
      }
      case RopeType::yarn: {
        const double ramp = std::clamp((static_cast<double>(i) - first) / (last - first), 0.0, 1.0);
        result.push_back(f / spec.factor * ramp + f * (1 - ramp));
        break;
      }
    }
  }
  return result;
}

Tensor rope(const Tensor& x, std::span<const std::int64_t> positions, std::int64_t head_dim, std::int64_t begin,
            const RopeSpec& spec, Arithmetic arithmetic) {
  const std::vector<double> frequency = frequencies(spec, spec.dim > 0 ? spec.dim : head_dim);
  const auto pairs = static_cast<std::int64_t>(frequency.size());
  Tensor y = x;
  for (std::int64_t i = 0; i < pairs; ++i) {
    const std::int64_t a = spec.interleaved ? begin + 2 * i : begin + i;
    const std::int64_t b = spec.interleaved ? a + 1 : a + pairs;
    for (std::int64_t t = 0; t < x.rows; ++t) {
      const double angle =
          static_cast<double>(positions[static_cast<std::size_t>(t)]) * frequency[static_cast<std::size_t>(i)];
      const double cosine = rounded(spec.amplitude * std::cos(angle), kExpStep, arithmetic);
      const double sine = rounded(spec.amplitude * std::sin(angle), kExpStep, arithmetic);
      for (std::int64_t head = 0; head < x.cols; head += head_dim) {
        const double x0 = x.row(t)[head + a], x1 = x.row(t)[head + b];
        y.row(t)[head + a] = x0 * cosine - x1 * sine;
        y.row(t)[head + b] = x1 * cosine + x0 * sine;
      }
    }
  }
  return stored(std::move(y), arithmetic);
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, std::span<const std::int64_t> lengths,
                 const AttentionSpec& spec, std::span<const double> sinks, Arithmetic arithmetic,
                 const std::vector<bool>& wanted) {
  const std::int64_t dim = spec.head_dim, value_dim = spec.value_dim();
  const std::int64_t heads = q.cols / dim, share = heads / (k.cols / dim);
  const double scale = spec.score_scale();
  Tensor out(q.rows, heads * value_dim);
  std::vector<double> p;
  std::int64_t begin = 0;
  for (const std::int64_t length : lengths) {
    for (std::int64_t t = begin; t < begin + length; ++t) {
      if (!wanted.empty() && !wanted[static_cast<std::size_t>(t)]) continue;
      const std::int64_t first = spec.sliding_window > 0 ? std::max(begin, t + 1 - spec.sliding_window) : begin;
      for (std::int64_t head = 0; head < heads; ++head) {
        const double* query = q.row(t) + head * dim;
        const std::int64_t kv_head = head / share;
        p.assign(static_cast<std::size_t>(t - first + 1), 0.0);
        for (std::int64_t j = first; j <= t; ++j) {
          const double* key = k.row(j) + kv_head * dim;
          double dot = 0.0;
          for (std::int64_t i = 0; i < dim; ++i) dot += query[i] * key[i];
          p[static_cast<std::size_t>(j - first)] = rounded(dot * scale, kActivationStep, arithmetic);
        }
        double largest = *std::max_element(p.begin(), p.end());
        if (!sinks.empty()) largest = std::max(largest, sinks[static_cast<std::size_t>(head)]);
        double sum = 0.0;
        for (double& value : p) {
          value = exponential(value - largest, arithmetic);
          sum += value;
        }
        if (!sinks.empty()) sum += exponential(sinks[static_cast<std::size_t>(head)] - largest, arithmetic);
        double* const context = out.row(t) + head * value_dim;
        for (std::int64_t j = first; j <= t; ++j) {
          const double* value = v.row(j) + kv_head * value_dim;
          for (std::int64_t i = 0; i < value_dim; ++i) context[i] += p[static_cast<std::size_t>(j - first)] * value[i];
        }
        for (std::int64_t i = 0; i < value_dim; ++i) context[i] /= sum;
      }
    }
    begin += length;
  }
  return stored(std::move(out), arithmetic);
}

namespace {

/// Which experts may be chosen.
std::vector<bool> open_experts(const double* scores, const FeedForwardSpec& spec) {
  const std::int64_t size = spec.num_experts / spec.groups;
  std::vector<double> best;
  for (std::int64_t group = 0; group < spec.groups; ++group) {
    std::vector<double> sorted(scores + group * size, scores + (group + 1) * size);
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    best.push_back(spec.scoring == Scoring::sigmoid && size > 1 ? sorted[0] + sorted[1] : sorted[0]);
  }
  std::vector<std::int64_t> order(best.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return best[static_cast<std::size_t>(a)] > best[static_cast<std::size_t>(b)];
  });
  std::vector<bool> open(static_cast<std::size_t>(spec.num_experts), false);
  for (std::int64_t i = 0; i < spec.top_groups; ++i) {
    for (std::int64_t e = 0; e < size; ++e) {
      open[static_cast<std::size_t>(order[static_cast<std::size_t>(i)] * size + e)] = true;
    }
  }
  return open;
}

/// The weights of a row's experts, best first.
std::vector<double> sparsemixer(const double* logit, const std::vector<std::int64_t>& order,
                                const FeedForwardSpec& spec, Arithmetic arithmetic) {
  std::vector<double> weights;
  for (std::int64_t slot = 0; slot < spec.top_k; ++slot) {
    // From the slot's own on, the experts that no earlier one chose: the first has the largest logit.
    const auto first = order.begin() + slot;
    const double largest = logit[*first];
    double sum = 0.0;
    for (auto e = first; e != order.end(); ++e) {
      const double share = (largest - logit[*e]) / std::max(std::abs(logit[*e]), largest);
      if (!(share > 2 * spec.router_jitter)) sum += exponential(logit[*e] - largest, arithmetic);
    }
    weights.push_back(1.0 / sum);
  }
  return weights;
}

}  // namespace

Routing route(const Tensor& logits, const FeedForwardSpec& spec, std::span<const double> selection_bias,
              Arithmetic arithmetic) {
  const bool sigmoids = spec.scoring == Scoring::sigmoid;
  Routing routing{Tensor(logits.rows, logits.cols), Tensor(logits.rows, spec.top_k), Tensor(logits.rows, spec.top_k)};
  std::vector<double> score(static_cast<std::size_t>(logits.cols));
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    const double* logit = logits.row(t);
    double* const by = routing.scores.row(t);
    for (std::int64_t e = 0; e < logits.cols; ++e) {
      const auto index = static_cast<std::size_t>(e);
      score[index] = sigmoids ? sigmoid(logit[e], arithmetic) : 0.0;
      by[e] = sigmoids ? score[index] : logit[e];
      if (!selection_bias.empty()) by[e] += selection_bias[index];
    }
    std::vector<std::int64_t> order(static_cast<std::size_t>(logits.cols));
    std::iota(order.begin(), order.end(), 0);
    if (spec.groups > 1) {
      const std::vector<bool> open = open_experts(by, spec);
      std::erase_if(order, [&](std::int64_t e) { return !open[static_cast<std::size_t>(e)]; });
    }
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return by[a] > by[b]; });
    const double largest = *std::max_element(logit, logit + logits.cols);
    if (!sigmoids) {
      for (std::int64_t e = 0; e < logits.cols; ++e) {
        score[static_cast<std::size_t>(e)] = exponential(logit[e] - largest, arithmetic);
      }
    }
    double sum = 0.0;
    if (spec.norm_topk_prob) {
      for (std::int64_t slot = 0; slot < spec.top_k; ++slot) {
        sum += score[static_cast<std::size_t>(order[static_cast<std::size_t>(slot)])];
      }
      if (sigmoids) sum += 1e-20;
    } else {
      sum = sigmoids ? 1.0 : std::accumulate(score.begin(), score.end(), 0.0);
    }
    const bool sparse = spec.scoring == Scoring::sparsemixer;
    const std::vector<double> near = sparse ? sparsemixer(logit, order, spec, arithmetic) : std::vector<double>();
    for (std::int64_t slot = 0; slot < spec.top_k; ++slot) {
      const std::int64_t expert = order[static_cast<std::size_t>(slot)];
      routing.choice.row(t)[slot] = static_cast<double>(expert);
      if (sparse) {
        routing.weights.row(t)[slot] = near[static_cast<std::size_t>(slot)];
        continue;
      }
      routing.weights.row(t)[slot] = score[static_cast<std::size_t>(expert)] / sum * spec.routed_scaling_factor;
    }
  }
  routing.weights = stored(std::move(routing.weights), arithmetic);
  return routing;
}

}  // namespace shardproof::reference
