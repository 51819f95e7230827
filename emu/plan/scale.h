// A smaller plan with the same shape: what `verify` runs in place of the full widths.
#pragma once

#include <cstdint>
#include <optional>

#include "emu/plan/plan.h"

namespace shardproof {

struct ScaleOptions {
  enum class Mode {
    automatic,  ///< shrink widths, vocabulary, batch and lengths to a run of about a hundred tokens
    full,       ///< keep everything
    divide,     ///< divide widths (hidden, head, expert) and vocabulary by `divisor`
  };
  Mode mode = Mode::automatic;
  std::int64_t divisor = 1;                             ///< Mode::divide only; at least 1
  std::optional<std::int64_t> batch = std::nullopt;     ///< exactly so many sequences
  std::optional<std::int64_t> sequence = std::nullopt;  ///< every sequence exactly so long
  /// Only the first so many layers of each kind, or as many more as the stages need.
  std::optional<std::int64_t> layers = std::nullopt;
};

/// The plan at another size. Layers (unless `layers` says otherwise), heads, key-value heads, experts, top-k and every
/// degree stay; hidden_size need not equal heads * head_dim afterwards. Nothing grows, except that head_dim stays even
/// and at least 2, intermediate_size a multiple of etp, and vocab_size at least tp. Windows and the original context of
/// a stretched rotary embedding shrink as the longest sequence does; at least four pairs of such an embedding stay.
/// `automatic` keeps the spread of the sequence lengths, whether replicas share the batch evenly, and at least one
/// sequence for every microbatch that had one. Token ids stay where vocabulary and lengths do; else they are made anew.
/// Microbatches are lowered to what the batch can fill. `plan` must be valid; so is the result.
Plan scaled(const Plan& plan, const ScaleOptions& options);

}  // namespace shardproof
