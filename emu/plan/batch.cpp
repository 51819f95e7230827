#include "emu/plan/batch.h"

#include "emu/plan/random.h"

namespace shardproof {
namespace {

std::vector<std::int32_t> make_tokens(std::int64_t count, std::uint64_t seed, std::int64_t vocab_size) {
  const std::uint64_t key = random_key(seed, "tokens");
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<std::int32_t>(random_below(key, i, static_cast<std::uint64_t>(vocab_size)));
  }
  return tokens;
}

}  // namespace

Batch::Batch(const Workload& workload, std::int64_t vocab_size) : lengths_(workload.lengths) {
  if (workload.token_ids.empty()) tokens_ = make_tokens(workload.tokens(), workload.seed, vocab_size);
  for (const std::vector<std::int32_t>& ids : workload.token_ids) tokens_.insert(tokens_.end(), ids.begin(), ids.end());
}

std::vector<std::int32_t> Batch::tokens(const TokenRows& rows) const {
  std::vector<std::int32_t> ids;
  for (const Range& run : rows.runs) ids.insert(ids.end(), tokens_.begin() + run.begin, tokens_.begin() + run.end());
  return ids;
}

}  // namespace shardproof
