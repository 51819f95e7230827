// What a call of an op depends on, and what it does on paper.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "emu/plan/key_spans.h"
#include "ops/cost.h"
#include "ops/latent.h"

namespace shardproof::tools {

/// The function of ops/ that computes it. What moves rows within a rank is timed as gather_rows.
enum class Kernel {
  embed,
  rms_norm,
  rms_norm_part,
  sum_squares,
  layer_norm,
  linear,
  rope,
  split_heads,
  absorb_queries,
  latent_attention,
  expand_context,
  attention,
  attention_part,
  merge_parts,
  add,
  add_scaled,
  scale,
  gate_rows,
  route,
  gather_rows,
  expert,
  combine,
};
const char* to_string(Kernel kernel);

/// What does not apply is 0.
struct OpShape {
  Kernel kernel{};
  std::int64_t rows = 0;   ///< of the result
  std::int64_t cols = 0;   ///< of the result
  std::int64_t inner = 0;  ///< that a product sums over; an expert's intermediate size; the table's rows; the experts
                           ///< to choose from; the slots of a token; the parts to merge; the columns of a whole norm;
                           ///< those of a key that all heads share; of a latent that heads absorb or expand
  std::int64_t head_dim = 0;   ///< of rope and attention; of what a head absorbs or expands, its key in the plain form
  std::int64_t value_dim = 0;  ///< of attention; so here
  std::int64_t kv_heads = 0;   ///< of attention
  std::int64_t keys = 0;       ///< of attention: rows of keys and values
  std::int64_t window = 0;     ///< of attention
  bool sinks = false;          ///< of attention
  std::vector<KeySpan> spans = {};  ///< of attention: whose queries see which of the keys
  std::int64_t rope_dim = 0;        ///< elements of a head that turn, also of a head that absorbs or expands
  bool interleaved = false;         ///< of rope
  bool bias = false;                ///< of linear, expert; of route, for the choice alone
  double limit = 0;                 ///< of expert: the clamp of its activation
  bool normalise = false;           ///< of route
  bool sigmoid = false;             ///< of route; so the others
  bool sparsemixer = false;
  double jitter = 0;
  std::int64_t groups = 0;
  std::int64_t top_groups = 0;
  double factor = 0;         ///< of scale, add_scaled, route
  std::int64_t present = 0;  ///< of combine: rows that are there; those of the other slots are elsewhere

  std::int64_t heads() const { return value_dim > 0 ? cols / value_dim : 0; }
  friend bool operator==(const OpShape&, const OpShape&) = default;
};

/// Of what absorbs or expands.
ops::LatentHead latent_head_of(const OpShape& shape);

/// Spans of whole sequences that lie one after another.
std::vector<KeySpan> whole_sequences(const std::vector<std::int64_t>& lengths);

/// "m 256, n 2048, k 8192".
std::string describe(const OpShape& shape);
/// "linear/m:256/n:2048/k:8192": no two shapes have the same.
std::string benchmark_name(const OpShape& shape);
/// Floating-point operations and bytes, from the op's own formula.
ops::Cost cost_of(const OpShape& shape, int bytes_per_element);

}  // namespace shardproof::tools
