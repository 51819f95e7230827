// The token ids of a run, its sequences one after another. Who holds which of them is TokenMap's to say.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "emu/plan/plan.h"
#include "emu/plan/token_rows.h"

namespace shardproof {

class Batch {
 public:
  /// The workload's token ids; where it names none, uniform ones over the vocabulary, made from its seed: those of
  /// prefixes from their group's.
  Batch(const Workload& workload, std::int64_t vocab_size);

  std::span<const std::int32_t> tokens() const { return tokens_; }
  std::span<const std::int64_t> lengths() const { return lengths_; }
  /// The ids of these rows; 0 of padding behind them all.
  std::vector<std::int32_t> tokens(const TokenRows& rows) const;

 private:
  std::vector<std::int64_t> lengths_;
  std::vector<std::int32_t> tokens_;
};

}  // namespace shardproof
