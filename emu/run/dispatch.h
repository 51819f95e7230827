// Bookkeeping of the token dispatch: which row goes where, and how it comes back.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/matrix.h"

namespace shardproof {

/// How one rank's routed tokens are ordered for the all-to-all: by owner, then by the owner's experts, then by token.
/// A slot is one (token, choice) pair; there are tokens * top_k.
struct Permutation {
  std::vector<std::int64_t> rows;       ///< sorted slot -> token row; dry, empty
  ops::Matrix<std::int64_t> positions;  ///< [tokens, top_k]: where each slot went; dry, empty
  std::vector<std::int64_t> counts;     ///< [owners * most experts of an owner] slots
  std::int64_t slots() const;           ///< their sum
};

/// What one owner serves of the tokens of several senders, which it has all of: the slots in the order in which an
/// all-to-all would bring them, by sender, by its experts, by token.
struct Selection {
  std::int64_t count = 0;               ///< slots
  std::vector<std::int64_t> rows;       ///< slot -> token row, senders one after another; dry, empty
  std::vector<std::int64_t> choices;    ///< slot -> which of the token's it is; dry, empty
  ops::Matrix<std::int64_t> positions;  ///< [tokens, top_k]: of the slots, or ops::kElsewhere; dry, empty
  std::vector<std::int64_t> counts;     ///< [senders * most experts of an owner] slots
};

std::int64_t sum_of(std::span<const std::int64_t> counts);

/// expert_owner[e] is the ep index that holds expert e. Every owner has as many buckets as ceil(experts / owners), so
/// that counts can be exchanged as equal parts; of one that holds fewer experts, the last stays empty. Throws
/// std::out_of_range for an expert that does not exist, or an owner that has no room for it.
Permutation permute_by_owner(ops::MatrixView<const std::int32_t> ids, std::span<const int> expert_owner, int owners);

/// `tokens_of` are those of each sender.
Selection select_for_owner(ops::MatrixView<const std::int32_t> ids, std::span<const std::int64_t> tokens_of,
                           std::span<const int> expert_owner, int owners, int owner);

/// Its counts alone, of the slots of each expert.
std::vector<std::int64_t> by_owner(std::span<const std::int64_t> slots, std::span<const int> expert_owner, int owners);

/// For chunks laid one after another, chunk c holding counts[c * experts + e] rows of expert e, in order of e: the rows
/// reordered by expert, then chunk. Returns for each reordered row its place in the chunks.
std::vector<std::int64_t> sort_by_expert(std::span<const std::int64_t> counts, std::int64_t experts);

/// The inverse of a permutation of 0..n-1.
std::vector<std::int64_t> inverse(std::span<const std::int64_t> permutation);

/// Sums of consecutive runs of `run` counts, each times `width`: element counts of an all-to-all.
std::vector<std::size_t> element_counts(std::span<const std::int64_t> counts, std::int64_t run, std::int64_t width);

}  // namespace shardproof
