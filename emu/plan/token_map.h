// Who holds which token rows: how data, context and sequence parallelism and microbatches split the tokens of a plan.
//
// Sequences lie one after another in the global token rows. A data-parallel replica takes a contiguous run of the
// sequences, and a step some chunks of these (schedule.h): of a forward over whole sequences, all. A microbatch is a
// contiguous run of the chunks of a step; any of them may be uneven, or empty. Microbatches are counted over all steps.
// Over cp each chunk is cut into 2 cp pieces as even as partition() makes them, of which rank r has the pieces r and
// 2 cp - 1 - r (zig-zag): under a causal mask all ranks then have about as much to do. Nothing is padded where 2 cp
// does not divide a length: pieces differ by a token, and may be empty. A decode step has one token of each sequence,
// hence its sequences are split instead, as contiguous as they lie. Within a tp group every rank's attention sees the
// same rows; each row is `own` to one rank of the group, which routes it, and holds it alone under sequence
// parallelism. Where every rank of the group routes alike (DispatchComm::all_reduce), all rows are own to each.
//
// A replica that runs nothing of a microbatch may run a padded row in its place (Idle::pad), which lies behind all
// tokens and of which only what a run computes knows.
//
// Example, lengths {3, 1, 2}, dp 2, tp 2, sp, one microbatch: attention at dp 0 sees rows 0..3; own to tp 0 are 0 and
// 1, and these are its part of the residual stream. Example, length 9, cp 2: pieces of 3, 2, 2, 2 tokens; cp 0 has rows
// 0..2 and 7..8, cp 1 has 3..6.
#pragma once

#include <cstdint>
#include <map>
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
  std::vector<Chunk> pieces;             ///< of these, what the rank's rows are, in their order
  /// With context parallelism: the pieces of every rank of its cp group, by its place in it.
  std::vector<std::vector<Chunk>> shares;
  /// Of each of the chunks, the tokens at its beginning that latent attention computes in the plain form.
  std::vector<std::int64_t> plain;
  int cp = 0;           ///< its place there
  bool padded = false;  ///< the rows are no tokens

  /// Pairs of a query among its rows and a key that it sees: causal, past included, within a window of so many keys (0:
  /// all).
  double pairs_within(std::int64_t window) const;
  /// Tokens of its sequences that came before the step, within the window (0: all).
  double past_within(std::int64_t window) const;
  /// Pairs of the queries of every rank of its cp group.
  double pairs_over_cp(std::int64_t window) const;
  /// The same of the queries of the rank's member of a ring over cp, each of so many ranks, and the keys of another.
  /// What came before the step counts as the queries' own.
  double pairs_of_part(int keys_of, int ranks_of_member) const;
  /// What the member's ranks have, in order of the sequences and their tokens.
  std::vector<Chunk> of_member(int member, int ranks_of_member) const;
};

/// Where a row is routed: the rank that it is own to, the first of those that route alike, in every stage (pp and the
/// expert axes are left 0).
struct RowHome {
  Coordinates at;
  std::int64_t microbatch = 0;
};

/// Of a rank's coordinates, tp, cp and dp count. Functions that return rows take no more time than they have runs.
class TokenMap {
 public:
  /// The plan must be valid (validate.h).
  TokenMap(const Parallel& parallel, const Workload& workload);
  /// Of these steps alone, by replica, in place of the workload's; its sequences are numbered as they are.
  TokenMap(const Parallel& parallel, const Workload& workload, std::span<const ReplicaSchedule> schedule);

  std::int64_t tokens() const { return offsets_.back(); }
  std::int64_t microbatches() const { return microbatches_; }
  std::int64_t microbatches_of_step() const { return microbatches_of_step_; }
  /// The step that a microbatch is of.
  std::int64_t step_of(std::int64_t microbatch) const { return microbatch / microbatches_of_step_; }
  Range sequences(int dp) const;
  /// In order of the sequences.
  std::span<const Chunk> chunks(int dp, std::int64_t microbatch) const;
  /// Of a chunk, the tokens at its beginning that latent attention computes in the plain form (latent_form.h).
  std::int64_t plain_of(const Chunk& chunk) const;
  bool decodes_absorbed() const { return decodes_absorbed_; }

  /// The rows that the rank's attention works on.
  TokenRows rows(const Coordinates& at, std::int64_t microbatch) const;
  /// Of these, the rows that are the rank's own within its tp group.
  TokenRows own(const Coordinates& at, std::int64_t microbatch) const;
  /// Of these, the rows of the residual stream that the rank holds: its own with sp, else all.
  TokenRows stream(const Coordinates& at, std::int64_t microbatch) const;
  /// What of rows() and own() is computed, padding included.
  TokenRows run_rows(const Coordinates& at, std::int64_t microbatch) const;
  TokenRows run_own(const Coordinates& at, std::int64_t microbatch) const;
  RankTokens rank_tokens(const Coordinates& at, std::int64_t microbatch) const;
  /// The same without `positions`, in no more time than there are sequences.
  RankTokens rank_shapes(const Coordinates& at, std::int64_t microbatch) const;
  /// What of the chunks the rank's attention has queries of, in order of its rows.
  std::span<const Chunk> pieces(const Coordinates& at, std::int64_t microbatch) const;
  /// Pairs of a query among the rank's rows and a key that it sees: causal, past included.
  double pairs(const Coordinates& at, std::int64_t microbatch, std::int64_t window = 0) const;

  /// Tokens of the microbatch's sequences that came before the step, within the window (0: all).
  double past(const Coordinates& at, std::int64_t microbatch, std::int64_t window = 0) const;

  /// How many tokens of each sequence came before these rows, and are attended to; of a decode step, which is made as a
  /// forward over whole sequences of one token: of latent attention in the form of tokens after a prompt.
  void set_past(std::span<const std::int64_t> tokens);

  /// The inverse of own(). Of a row that no rank runs, where the one is routed that it shares its cache with.
  RowHome home(std::int64_t row) const;
  /// The row that is run in its place: itself, unless a request maps what another one has in the cache.
  std::int64_t run_as(std::int64_t row) const;
  /// Rows that are not run, and the first of those that are run in place of as many.
  struct SharedRows {
    Range rows;
    std::int64_t run_as = 0;
  };
  /// In order of the rows; empty unless requests share prefixes.
  std::vector<SharedRows> shared_rows() const;
  std::int64_t sequence_of(std::int64_t row) const;
  std::int64_t first_row_of(std::int64_t sequence) const { return offsets_[static_cast<std::size_t>(sequence)]; }
  /// Of the row within its sequence.
  std::int64_t position(std::int64_t row) const;

 private:
  /// What a replica runs in a microbatch.
  struct Part {
    Range chunks;    ///< of chunks_
    TokenRows rows;  ///< of all cp ranks
  };
  /// What a rank of cp has of a part.
  struct Share {
    Range pieces;  ///< of pieces_
    TokenRows rows;
  };
  enum class Sharing { zig_zag, contiguous };

  void add_part(std::span<const Chunk> chunks);
  TokenRows rows_of(std::span<const Chunk> chunks, const TokenRows* before) const;
  void split_over_cp(Sharing sharing);
  std::vector<Chunk> pieces_of(std::span<const Chunk> chunks, Sharing sharing, int cp) const;
  const Part& part(int dp, std::int64_t microbatch) const;
  const Share& share(const Coordinates& at, std::int64_t microbatch) const;
  Range own_places(std::int64_t rows, int tp) const;

  Parallel parallel_;
  std::int64_t microbatches_of_step_;
  std::int64_t padding_ = 0;  ///< rows of a replica that runs nothing
  std::int64_t microbatches_ = 0;
  std::vector<std::int64_t> offsets_;  ///< first row of each sequence, and their end; sequences + 1
  bool decodes_absorbed_;
  std::vector<std::int64_t> absorbed_from_;  ///< by sequence, the position of its first absorbed token
  std::vector<Chunk> chunks_;                ///< of each part in turn
  std::vector<Part> parts_;                  ///< [dp, microbatch]
  std::vector<Chunk> pieces_;                ///< of each share in turn
  std::vector<Share> shares_;                ///< [dp, microbatch, cp]
  /// Of prefixes that requests share, by first row: those of another request, which may be shared themselves.
  std::map<std::int64_t, SharedRows> prefixes_;
  /// Of each piece in order of its first row: that row, and the share that it is in.
  std::vector<std::pair<std::int64_t, std::int64_t>> homes_;
};

}  // namespace shardproof
