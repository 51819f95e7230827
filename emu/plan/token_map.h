// Who holds which token rows: how data, context and sequence parallelism and microbatches split the tokens of a plan.
//
// Sequences lie one after another in the global token rows. A data-parallel replica takes a contiguous run of the
// sequences, and a step some chunks of these (schedule.h): of a forward over whole sequences, all. A microbatch is a
// contiguous run of the chunks of a step; any of them may be uneven, or empty. Microbatches are counted over all steps.
// Over cp the rows of a microbatch are split into contiguous shares (counted on paper only: no program runs cp > 1).
// Within a tp group every rank's attention sees the same rows; each row is `own` to one rank of the group, which routes
// it, and holds it alone under sequence parallelism.
//
// Example, lengths {3, 1, 2}, dp 2, tp 2, sp, one microbatch: attention at dp 0 sees rows 0..3; own to tp 0 are 0 and
// 1, and these are its part of the residual stream.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "emu/plan/mesh.h"
#include "emu/plan/partition.h"
#include "emu/plan/plan.h"
#include "emu/plan/schedule.h"
#include "emu/plan/token_rows.h"

namespace shardproof {

/// What one rank holds of a microbatch. `own` and `stream` are places among `rows`.
struct RankTokens {
  TokenRows rows;                        ///< that its attention works on
  Range own;                             ///< its own within its tp group
  Range stream;                          ///< of the residual stream
  std::vector<std::int64_t> own_counts;  ///< rows own to each rank of its tp group
  std::vector<std::int64_t> offsets;     ///< where each sequence of the microbatch begins, and their end; sequences + 1
  std::vector<std::int64_t> positions;   ///< of each row within its sequence
  std::vector<Chunk> chunks;             ///< of the microbatch, over all of cp
  int cp = 1;                            ///< ranks that share them evenly

  /// Pairs of a query and a key that it sees, which the rank's attention works on: causal, past included, within a
  /// window of so many keys (0: all).
  double pairs_within(std::int64_t window) const;
};

/// Where a row is routed: the rank that it is own to, in every stage (pp and the expert axes are left 0).
struct RowHome {
  Coordinates at;
  std::int64_t microbatch = 0;
};

/// Of a rank's coordinates, tp, cp and dp count. Functions that return rows take no more time than they have runs.
class TokenMap {
 public:
  /// The plan must be valid (validate.h).
  TokenMap(const Parallel& parallel, const Workload& workload);

  std::int64_t tokens() const { return offsets_.back(); }
  std::int64_t microbatches() const { return microbatches_; }
  std::int64_t microbatches_of_step() const { return microbatches_of_step_; }
  /// The step that a microbatch is of.
  std::int64_t step_of(std::int64_t microbatch) const { return microbatch / microbatches_of_step_; }
  Range sequences(int dp) const;
  /// In order of the sequences.
  std::span<const Chunk> chunks(int dp, std::int64_t microbatch) const;

  /// The rows that the rank's attention works on.
  TokenRows rows(const Coordinates& at, std::int64_t microbatch) const;
  /// Of these, the rows that are the rank's own within its tp group.
  TokenRows own(const Coordinates& at, std::int64_t microbatch) const;
  /// Of these, the rows of the residual stream that the rank holds: its own with sp, else all.
  TokenRows stream(const Coordinates& at, std::int64_t microbatch) const;
  RankTokens rank_tokens(const Coordinates& at, std::int64_t microbatch) const;
  /// The same without `positions`, in no more time than there are sequences.
  RankTokens rank_shapes(const Coordinates& at, std::int64_t microbatch) const;
  /// Pairs of a query and a key that it sees, over the sequences of the microbatch: causal, past included.
  double pairs(int dp, std::int64_t microbatch, std::int64_t window = 0) const;

  /// How many tokens of each sequence came before these rows, and are attended to; of a forward over whole sequences.
  void set_past(std::span<const std::int64_t> tokens);

  /// The inverse of own().
  RowHome home(std::int64_t row) const;
  std::int64_t sequence_of(std::int64_t row) const;
  /// Of the row within its sequence.
  std::int64_t position(std::int64_t row) const;

 private:
  /// What a replica runs in a microbatch.
  struct Part {
    Range chunks;    ///< of chunks_
    TokenRows rows;  ///< of all cp ranks
  };

  void add_part(std::span<const Chunk> chunks);
  const Part& part(int dp, std::int64_t microbatch) const;
  Range own_places(std::int64_t rows, int tp) const;

  Parallel parallel_;
  std::int64_t microbatches_of_step_;
  std::int64_t microbatches_ = 0;
  std::vector<std::int64_t> offsets_;  ///< first row of each sequence, and their end; sequences + 1
  std::vector<Chunk> chunks_;          ///< of each part in turn
  std::vector<Part> parts_;            ///< [dp, microbatch]
  /// Of each chunk in order of its first row: that row, and the part that it is in.
  std::vector<std::pair<std::int64_t, std::int64_t>> homes_;
};

}  // namespace shardproof
