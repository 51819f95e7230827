#include "emu/run/rope_pairs.h"

#include <utility>

namespace shardproof {

ops::RopePairs rope_pairs(const AttentionSpec& attention) {
  const RopeSpec& rope = attention.rope;
  const std::int64_t turned = attention.rope_dim();
  std::vector<double> frequencies = ops::rope_frequencies(turned, rope.theta);
  const auto context = static_cast<double>(rope.original_context);
  switch (rope.type) {
    case RopeType::plain:
      break;
    case RopeType::longrope:
      for (std::size_t i = 0; i < frequencies.size(); ++i) frequencies[i] /= rope.pair_factors[i];
      break;
    case RopeType::linear:
      for (double& frequency : frequencies) frequency /= rope.factor;
      break;
    case RopeType::llama3:
      frequencies = ops::llama3_frequencies(std::move(frequencies), rope.factor, context, rope.low_freq_factor,
                                            rope.high_freq_factor);
      break;
    case RopeType::yarn:
      frequencies = ops::yarn_frequencies(std::move(frequencies), rope.theta, rope.factor, context, rope.beta_fast,
                                          rope.beta_slow, rope.truncate);
      break;
  }
  return {.head_dim = attention.head_dim,
          .begin = attention.latent() ? attention.head_dim - turned : 0,
          .interleaved = rope.interleaved,
          .frequencies = std::move(frequencies),
          .amplitude = rope.amplitude};
}

}  // namespace shardproof
