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

/// Of an embedding that is more than plain, at least so many pairs go on turning: what stretches them needs fast and
/// slow ones.
constexpr std::int64_t kTurningElements = 8;

/// Heads keep what they are made of: a part that turns and one that does not, latents that are narrower than they.
void set_heads(AttentionSpec& attention, const Widths& widths) {
  RopeSpec& rope = attention.rope;
  const std::int64_t dim = attention.head_dim, turned = attention.rope_dim(), still = dim - turned;
  const double score_scale = attention.score_scale();
  const bool plain = rope.type == RopeType::plain && still == 0;
  const auto shrunk = [&](std::int64_t size) { return multiple_at_least(widths.head_dim(size), 2, size); };
  if (plain) {
    attention.head_dim = shrunk(dim);
  } else {
    const std::int64_t turning = std::min(turned, std::max(shrunk(turned), kTurningElements));
    attention.head_dim = turning + (still > 0 ? std::max<std::int64_t>(still * turning / turned / 2 * 2, 2) : 0);
    if (rope.dim > 0) rope.dim = turning;
    // The factors of pairs as far apart as those that are left.
    const std::size_t before = rope.pair_factors.size(), left = static_cast<std::size_t>(turning / 2);
    for (std::size_t i = 0; before > 0 && i < left; ++i) rope.pair_factors[i] = rope.pair_factors[i * before / left];
    if (before > 0) rope.pair_factors.resize(left);
  }
  if (attention.v_head_dim > 0) {
    attention.v_head_dim = std::min(attention.v_head_dim, widths.head_dim(attention.v_head_dim));
  }
  for (std::int64_t* rank : {&attention.q_lora_rank, &attention.kv_lora_rank}) {
    if (*rank > 0) *rank = std::min(*rank, std::max<std::int64_t>(widths.intermediate_size(*rank), 2));
  }
  // A scale that is stated means a head of its width.
  if (attention.attention_multiplier > 0) {
    attention.attention_multiplier =
        score_scale * std::sqrt(static_cast<double>(dim)) / std::sqrt(static_cast<double>(attention.head_dim));
  }
}

/// Widths stay multiples of what splits them; a shared expert stays so many experts wide.
void set_mlps(FeedForwardSpec& spec, const Parallel& parallel, const Widths& widths) {
  std::int64_t& width = spec.intermediate_size;
  const std::int64_t before = width, times = spec.shared_intermediate_size / std::max<std::int64_t>(before, 1);
  const bool whole_times = times > 0 && times * before == spec.shared_intermediate_size;
  std::int64_t step = spec.dense() ? parallel.tp : parallel.etp;
  if (whole_times) step = std::lcm(step, parallel.tp / std::gcd<std::int64_t>(parallel.tp, times));
  width = multiple_at_least(widths.intermediate_size(width), step, width);
  if (spec.shared_intermediate_size == 0) return;
  spec.shared_intermediate_size = whole_times
                                      ? times * width
                                      : multiple_at_least(widths.intermediate_size(spec.shared_intermediate_size),
                                                          parallel.tp, spec.shared_intermediate_size);
}

/// The largest block that no rank's slice of a width cuts.
std::int64_t block_of(const Plan& plan) {
  std::int64_t block = 0;
  for (const LayerSpec& layer : plan.model.layers.kinds()) {
    const FeedForwardSpec& spec = layer.feed_forward;
    if (!spec.dense()) block = std::gcd(block, spec.intermediate_size / plan.parallel.etp);
    for (const std::int64_t width : {spec.dense() ? spec.intermediate_size : 0, spec.shared_intermediate_size}) {
      block = std::gcd(block, width / plan.parallel.tp);
    }
  }
  return block;
}

void set_widths(Plan& plan, const Widths& widths) {
  ModelConfig& model = plan.model;
  model.quantisation = {};  // weights are generated, and stored as they are computed with
  model.hidden_size = std::min(model.hidden_size, std::max<std::int64_t>(widths.hidden, 1));
  model.layers.edit([&](LayerSpec& layer) {
    set_heads(layer.attention, widths);
    set_mlps(layer.feed_forward, plan.parallel, widths);
  });
  if (model.weight_block > 0) model.weight_block = block_of(plan);
  const std::int64_t vocabulary = model.vocab_size;
  model.vocab_size = std::min(vocabulary, std::max<std::int64_t>({widths.vocabulary, plan.parallel.tp, 2}));
  // Its padding shrinks with the vocabulary, or ranks would hold nothing else.
  std::int64_t& multiple = plan.parallel.make_vocab_size_divisible_by;
  if (multiple > 0 && vocabulary > 0) multiple = std::max<std::int64_t>(1, multiple * model.vocab_size / vocabulary);
}

/// Which `count` sequences are taken, in the plan's order: the shortest, the longest, and evenly many of those between
/// when ordered by length. Repeated from the start when there are fewer.
std::vector<std::size_t> sampled(const std::vector<std::int64_t>& lengths, std::int64_t count) {
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
  return chosen;
}

void resample(const Workload& all, std::int64_t count, Workload& workload) {
  workload.lengths.clear();
  if (workload.serving) workload.serving->requests.clear();
  for (const std::size_t index : sampled(all.lengths, count)) {
    workload.lengths.push_back(all.lengths[index]);
    if (workload.serving) workload.serving->requests.push_back(all.serving->requests[index]);
  }
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

/// Of the sequences' mean length, what is enough to run.
double length_factor(const std::vector<std::int64_t>& lengths, std::int64_t cp) {
  const auto count = static_cast<std::int64_t>(lengths.size());
  const std::int64_t mean =
      std::max(count > 64 ? std::int64_t{2} : std::clamp<std::int64_t>(kTokens / count, 4, 32), 2 * cp);
  double total = 0;
  for (const std::int64_t length : lengths) total += static_cast<double>(length);
  return std::min(1.0, static_cast<double>(mean * count) / total);
}

std::int64_t times(std::int64_t count, double factor, std::int64_t least) {
  return std::max<std::int64_t>(std::min(count, least), std::llround(static_cast<double>(count) * factor));
}

/// Requests shrink with all that meters them: a prompt that took three steps and two blocks still takes about as many.
void shrink_requests(Workload& workload, Parallel& parallel, double factor) {
  Serving& serving = *workload.serving;
  const std::int64_t block_size = serving.kv_block_size;
  serving.kv_block_size = times(block_size, factor, 2);
  for (Request& request : serving.requests) {
    const std::int64_t own = request.prompt - request.prefix;
    const bool fills_block = request.prefix >= block_size * parallel.dcp;
    request.prefix = times(request.prefix, factor, fills_block ? serving.tokens_of_block(parallel.dcp) : 1);
    request.prompt = std::max(times(request.prompt, factor, 1), request.prefix + std::min<std::int64_t>(own, 1));
    request.output = times(request.output, factor, 2);
    request.arrival = times(request.arrival, factor, 1);
  }
  serving.max_tokens_per_step = times(serving.max_tokens_per_step, factor, 2);
  std::int64_t& interleave = parallel.dcp_interleave;
  interleave = std::max<std::int64_t>(1, std::min(interleave, interleave * serving.kv_block_size / block_size));
  while (serving.kv_block_size % interleave != 0) --interleave;
  if (serving.kv_blocks > 0) {
    const double share = factor * static_cast<double>(block_size) / static_cast<double>(serving.kv_block_size);
    serving.kv_blocks = times(serving.kv_blocks, share, 1);
    for (const Request& request : serving.requests) {
      serving.kv_blocks = std::max(serving.kv_blocks, serving.blocks_of(request.tokens(), parallel.dcp));
    }
  }
  set_lengths(workload);
}

void shrink_lengths(Workload& workload, Parallel& parallel) {
  const double factor = length_factor(workload.lengths, parallel.cp);
  if (workload.serving) return shrink_requests(workload, parallel, factor);
  for (std::int64_t& length : workload.lengths) length = times(length, factor, 1);
}

/// Windows and the context before it was stretched shrink as the longest sequence does: what lay outside still does.
void shrink_windows(const Plan& plan, Plan& small) {
  const std::int64_t before = std::ranges::max(plan.workload.lengths), now = std::ranges::max(small.workload.lengths);
  if (now >= before) return;
  const auto shrunk = [&](std::int64_t size, std::int64_t least) {
    return std::min(size, std::max(least, size * now / before));
  };
  const std::int64_t longest = small.model.max_position_embeddings;
  small.model.layers.edit([&](LayerSpec& layer) {
    std::int64_t& window = layer.attention.sliding_window;
    std::int64_t& context = layer.attention.rope.original_context;
    // One as wide as the longest sequence that the model takes stays what it is: none.
    const bool none = longest > 0 && window >= longest;
    if (window > 0 && !none) window = window >= before ? std::max(window * now / before, now) : shrunk(window, 2);
    if (context > 0) context = shrunk(context, 8);
  });
}

/// The first `each` layers of each kind in the model's order, by index.
std::vector<std::int64_t> first_of_each_kind(const LayerList& layers, std::int64_t each) {
  std::vector<std::int64_t> taken(layers.kinds().size(), 0), kept;
  for (std::int64_t i = 0; i < layers.size(); ++i) {
    if (taken[static_cast<std::size_t>(layers.kind_of(i))]++ < each) kept.push_back(i);
  }
  return kept;
}

void keep_layers(std::int64_t each, Plan& plan) {
  const LayerList all = plan.model.layers;
  std::vector<std::int64_t> kept = first_of_each_kind(all, std::max<std::int64_t>(each, 1));
  while (std::ssize(kept) < std::min<std::int64_t>(plan.parallel.pp, all.size())) {
    kept = first_of_each_kind(all, ++each);
  }
  if (std::ssize(kept) == all.size()) return;
  LayerList layers;
  for (const std::int64_t layer : kept) layers.push_back(all[layer]);
  plan.model.layers = layers;
  plan.parallel.layers_per_stage.clear();
  for (std::vector<std::vector<std::int64_t>>* by_layer :
       {&plan.workload.routing.counts, &plan.parallel.experts.given}) {
    if (std::ssize(*by_layer) != all.size()) continue;
    std::vector<std::vector<std::int64_t>> rows;
    for (const std::int64_t layer : kept) rows.push_back((*by_layer)[static_cast<std::size_t>(layer)]);
    *by_layer = std::move(rows);
  }
}

}  // namespace

Plan scaled(const Plan& plan, const ScaleOptions& options) {
  Plan small = plan;
  if (options.layers) keep_layers(*options.layers, small);
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
  // Steps that are stated say which tokens of which request they run: these stay as they are.
  const bool fixed = workload.serving && !workload.serving->steps.empty();
  if (batch != workload.batch() && !fixed) resample(plan.workload, batch, workload);
  if (options.sequence && !fixed) {
    const std::int64_t length = std::max<std::int64_t>(*options.sequence, 1);
    std::ranges::fill(workload.lengths, length);
    if (workload.serving) {
      for (Request& request : workload.serving->requests) {
        request.prompt = length;
        request.prefix = std::min(request.prefix, length);
      }
      set_lengths(workload);
    }
  } else if (options.mode == Mode::automatic && !fixed) {
    shrink_lengths(workload, small.parallel);
  }
  // They are ids of that vocabulary, in sequences of that length.
  if (small.model.vocab_size != model.vocab_size || workload.lengths != plan.workload.lengths) {
    workload.token_ids.clear();
  }
  shrink_windows(plan, small);
  const std::int64_t largest = (workload.batch() + plan.parallel.dp - 1) / plan.parallel.dp;
  workload.microbatches = std::min(workload.microbatches, largest);
  return small;
}

}  // namespace shardproof
