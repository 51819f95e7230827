#include "emu/plan/batch.h"

#include "emu/plan/random.h"

namespace shardproof {
namespace {

std::int32_t made(std::uint64_t key, std::size_t index, std::int64_t vocab_size) {
  return static_cast<std::int32_t>(random_below(key, index, static_cast<std::uint64_t>(vocab_size)));
}

std::vector<std::int32_t> make_tokens(const Workload& workload, std::int64_t vocab_size) {
  const std::uint64_t key = random_key(workload.seed, "tokens");
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(workload.tokens()));
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = made(key, i, vocab_size);
  if (!workload.serving) return tokens;
  const std::uint64_t groups = random_key(workload.seed, "prefixes");
  std::size_t first = 0;
  for (const Request& request : workload.serving->requests) {
    const std::uint64_t of_group = random_at(groups, static_cast<std::uint64_t>(request.prefix_group));
    for (std::size_t i = 0; i < static_cast<std::size_t>(request.prefix); ++i) {
      tokens[first + i] = made(of_group, i, vocab_size);
    }
    first += static_cast<std::size_t>(request.tokens());
  }
  return tokens;
}

}  // namespace

Batch::Batch(const Workload& workload, std::int64_t vocab_size) : lengths_(workload.lengths) {
  if (workload.token_ids.empty()) tokens_ = make_tokens(workload, vocab_size);
  for (const std::vector<std::int32_t>& ids : workload.token_ids) tokens_.insert(tokens_.end(), ids.begin(), ids.end());
}

std::vector<std::int32_t> Batch::tokens(const TokenRows& rows) const {
  std::vector<std::int32_t> ids;
  for (const Range& run : rows.runs) {
    const bool padding = run.begin >= std::ssize(tokens_);
    if (padding) ids.resize(ids.size() + static_cast<std::size_t>(run.count), 0);
    if (!padding) ids.insert(ids.end(), tokens_.begin() + run.begin, tokens_.begin() + run.end());
  }
  return ids;
}

}  // namespace shardproof
