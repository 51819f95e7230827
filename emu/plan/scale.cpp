#include "emu/plan/scale.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <numeric>
#include <vector>

namespace shardproof {
namespace {

using Mode = ScaleOptions::Mode;

constexpr std::int64_t kHidden = 48;
constexpr std::int64_t kHeadDim = 4;
constexpr std::int64_t kIntermediateSize = 16;
constexpr std::int64_t kVocabulary = 96;
constexpr std::int64_t kTokens = 128;

/// The smallest multiple of `step` that is at least `wanted`, unless `most` (itself a multiple) is less.
std::int64_t multiple_at_least(std::int64_t wanted, std::int64_t step, std::int64_t most) {
  return std::min(most, (std::max<std::int64_t>(wanted, 1) + step - 1) / step * step);
}

/// Widths that a plan is scaled to; those of a layer are functions of what it has.
struct Widths {
  std::int64_t hidden = 0;
  std::int64_t vocabulary = 0;
  std::function<std::int64_t(std::int64_t)> head_dim;
  std::function<std::int64_t(std::int64_t)> intermediate_size;
};

void set_widths(Plan& plan, const Widths& widths) {
  ModelConfig& model = plan.model;
  model.hidden_size = std::min(model.hidden_size, std::max<std::int64_t>(widths.hidden, 1));
  model.layers.edit([&](LayerSpec& layer) {
    std::int64_t& dim = layer.attention.head_dim;
    std::int64_t& intermediate = layer.feed_forward.intermediate_size;
    dim = multiple_at_least(widths.head_dim(dim), 2, dim);
    intermediate = multiple_at_least(widths.intermediate_size(intermediate), plan.parallel.etp, intermediate);
  });
  const std::int64_t vocabulary = model.vocab_size;
  model.vocab_size = std::min(vocabulary, std::max<std::int64_t>({widths.vocabulary, plan.parallel.tp, 2}));
  // Its padding shrinks with the vocabulary, or ranks would hold nothing else.
  std::int64_t& multiple = plan.parallel.make_vocab_size_divisible_by;
  if (multiple > 0 && vocabulary > 0) multiple = std::max<std::int64_t>(1, multiple * model.vocab_size / vocabulary);
}

/// `count` of the lengths in the plan's order: the shortest, the longest, and evenly many of those between when ordered
/// by length. Repeated from the start when there are fewer.
std::vector<std::int64_t> resampled(const std::vector<std::int64_t>& lengths, std::int64_t count) {
  const std::size_t size = lengths.size();
  const auto wanted = static_cast<std::size_t>(count);
  std::vector<std::size_t> chosen(wanted);
  if (wanted >= size) {
    for (std::size_t i = 0; i < wanted; ++i) chosen[i] = i % size;
  } else {
    std::vector<std::size_t> by_length(size);
    std::iota(by_length.begin(), by_length.end(), std::size_t{0});
    std::stable_sort(by_length.begin(), by_length.end(),
                     [&](std::size_t a, std::size_t b) { return lengths[a] < lengths[b]; });
    for (std::size_t i = 0; i < wanted; ++i) {
      chosen[i] = by_length[wanted == 1 ? size - 1 : i * (size - 1) / (wanted - 1)];
    }
    std::sort(chosen.begin(), chosen.end());
  }
  std::vector<std::int64_t> picked;
  picked.reserve(wanted);
  for (const std::size_t index : chosen) picked.push_back(lengths[index]);
  return picked;
}

/// How many sequences are enough to keep what the batch exercises.
std::int64_t enough_sequences(const Plan& plan) {
  const std::int64_t batch = plan.workload.batch();
  const std::int64_t dp = plan.parallel.dp;
  if (batch <= dp) return batch;
  const std::int64_t microbatches = std::min<std::int64_t>(plan.workload.microbatches, 8);
  const std::int64_t each = std::max({microbatches, std::int64_t{1}, std::min<std::int64_t>(4, 16 / dp)});
  return std::min(batch, dp * each + batch % dp);
}

void shrink_lengths(std::vector<std::int64_t>& lengths, std::int64_t cp) {
  const auto count = static_cast<std::int64_t>(lengths.size());
  const std::int64_t mean =
      std::max(count > 64 ? std::int64_t{2} : std::clamp<std::int64_t>(kTokens / count, 4, 32), 2 * cp);
  double total = 0;
  for (const std::int64_t length : lengths) total += static_cast<double>(length);
  const double factor = std::min(1.0, static_cast<double>(mean * count) / total);
  for (std::int64_t& length : lengths) {
    length = std::max<std::int64_t>(1, std::llround(static_cast<double>(length) * factor));
  }
}

}  // namespace

Plan scaled(const Plan& plan, const ScaleOptions& options) {
  Plan small = plan;
  const ModelConfig& model = plan.model;
  Workload& workload = small.workload;
  if (options.mode == Mode::automatic) {
    set_widths(small, {.hidden = kHidden,
                       .vocabulary = kVocabulary,
                       .head_dim = [](std::int64_t) { return kHeadDim; },
                       .intermediate_size = [](std::int64_t) { return kIntermediateSize; }});
  } else if (options.mode == Mode::divide) {
    const std::int64_t n = std::max<std::int64_t>(options.divisor, 1);
    const auto divided = [n](std::int64_t size) { return size / n; };
    set_widths(small, {.hidden = model.hidden_size / n,
                       .vocabulary = model.vocab_size / n,
                       .head_dim = divided,
                       .intermediate_size = divided});
  }
  const std::int64_t batch = std::max<std::int64_t>(
      options.batch.value_or(options.mode == Mode::automatic ? enough_sequences(plan) : workload.batch()), 1);
  if (batch != workload.batch()) workload.lengths = resampled(plan.workload.lengths, batch);
  if (options.sequence) {
    std::fill(workload.lengths.begin(), workload.lengths.end(), std::max<std::int64_t>(*options.sequence, 1));
  } else if (options.mode == Mode::automatic) {
    shrink_lengths(workload.lengths, plan.parallel.cp);
  }
  const std::int64_t largest = (workload.batch() + plan.parallel.dp - 1) / plan.parallel.dp;
  workload.microbatches = std::min(workload.microbatches, largest);
  return small;
}

}  // namespace shardproof
