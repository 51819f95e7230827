#include "emu/plan/batch.h"

#include <numeric>
#include <utility>

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

Batch::Batch(const Workload& workload, std::int64_t vocab_size)
    : Batch(workload.lengths, make_tokens(workload.tokens(), workload.seed, vocab_size), workload.microbatches) {}

Batch::Batch(std::vector<std::int64_t> lengths, std::vector<std::int32_t> tokens, std::int64_t microbatches)
    : lengths_(std::move(lengths)),
      offsets_(lengths_.size() + 1, 0),
      tokens_(std::move(tokens)),
      microbatches_(microbatches) {
  std::inclusive_scan(lengths_.begin(), lengths_.end(), offsets_.begin() + 1);
}

MicroBatch Batch::microbatch(int dp, int dp_index, std::int64_t index) const {
  const Range replica = partition(std::ssize(lengths_), dp, dp_index);
  Range sequences = partition(replica.count, microbatches_, index);
  sequences.begin += replica.begin;

  MicroBatch result;
  const std::int64_t first = offsets_[static_cast<std::size_t>(sequences.begin)];
  result.rows = {first, offsets_[static_cast<std::size_t>(sequences.end())] - first};
  for (std::int64_t s = sequences.begin; s <= sequences.end(); ++s) {
    result.offsets.push_back(offsets_[static_cast<std::size_t>(s)] - first);
  }
  for (std::int64_t s = sequences.begin; s < sequences.end(); ++s) {
    for (std::int64_t p = 0; p < lengths_[static_cast<std::size_t>(s)]; ++p) result.positions.push_back(p);
  }
  return result;
}

}  // namespace shardproof
