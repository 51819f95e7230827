#include "emu/plan/token_map.h"

#include <algorithm>
#include <numeric>

namespace shardproof {
namespace {

/// The query at place p of its sequence sees min(p + 1, window) keys.
double pairs_of(const std::vector<SequenceSpan>& sequences, std::int64_t window) {
  const auto keys_up_to = [&](double places) {
    const double beyond = window > 0 ? std::max(0.0, places - static_cast<double>(window)) : 0;
    return places * (places + 1) / 2 - beyond * (beyond + 1) / 2;
  };
  double sum = 0;
  for (const SequenceSpan& sequence : sequences) {
    const auto past = static_cast<double>(sequence.past);
    sum += keys_up_to(past + static_cast<double>(sequence.length)) - keys_up_to(past);
  }
  return sum;
}

}  // namespace

Range sequences_of_replica(const Parallel& parallel, std::int64_t sequences, int dp) {
  return partition(sequences, parallel.dp, dp);
}

TokenMap::TokenMap(const Parallel& parallel, const Workload& workload)
    : parallel_(parallel), microbatches_(workload.microbatches), offsets_(workload.lengths.size() + 1, 0) {
  std::inclusive_scan(workload.lengths.begin(), workload.lengths.end(), offsets_.begin() + 1);
}

Range TokenMap::sequences(int dp) const {
  return sequences_of_replica(parallel_, std::ssize(offsets_) - 1, dp);
}

Range TokenMap::sequences(int dp, std::int64_t microbatch) const {
  const Range replica = sequences(dp);
  Range part = partition(replica.count, microbatches_, microbatch);
  part.begin += replica.begin;
  return part;
}

Range TokenMap::microbatch_rows(int dp, std::int64_t microbatch) const {
  const Range part = sequences(dp, microbatch);
  const std::int64_t first = offsets_[static_cast<std::size_t>(part.begin)];
  return {first, offsets_[static_cast<std::size_t>(part.end())] - first};
}

std::vector<SequenceSpan> TokenMap::spans(int dp, std::int64_t microbatch) const {
  const Range part = sequences(dp, microbatch);
  std::vector<SequenceSpan> result;
  for (auto s = static_cast<std::size_t>(part.begin); s < static_cast<std::size_t>(part.end()); ++s) {
    result.push_back({offsets_[s + 1] - offsets_[s], past_.empty() ? 0 : past_[s]});
  }
  return result;
}

double TokenMap::pairs(int dp, std::int64_t microbatch, std::int64_t window) const {
  return pairs_of(spans(dp, microbatch), window);
}

double RankTokens::pairs_within(std::int64_t window) const {
  return pairs_of(sequences, window) / cp;
}

Range TokenMap::own_places(std::int64_t rows, int tp) const {
  return partition(rows, parallel_.tp, tp);
}

TokenRows TokenMap::rows(const Coordinates& at, std::int64_t microbatch) const {
  const Range all = microbatch_rows(at.dp, microbatch);
  const Range share = partition(all.count, parallel_.cp, at.cp);
  return {{{all.begin + share.begin, share.count}}};
}

TokenRows TokenMap::own(const Coordinates& at, std::int64_t microbatch) const {
  const TokenRows all = rows(at, microbatch);
  return all.part(own_places(all.count(), at.tp));
}

TokenRows TokenMap::stream(const Coordinates& at, std::int64_t microbatch) const {
  return parallel_.sp ? own(at, microbatch) : rows(at, microbatch);
}

RankTokens TokenMap::rank_shapes(const Coordinates& at, std::int64_t microbatch) const {
  RankTokens result{
      .rows = rows(at, microbatch), .own = {}, .stream = {}, .own_counts = {}, .offsets = {}, .positions = {}};
  // Shares of a context-parallel group are balanced.
  result.sequences = spans(at.dp, microbatch);
  result.cp = parallel_.cp;
  const std::int64_t count = result.rows.count();
  result.own = own_places(count, at.tp);
  result.stream = parallel_.sp ? result.own : Range{0, count};
  for (int tp = 0; tp < parallel_.tp; ++tp) result.own_counts.push_back(own_places(count, tp).count);
  const Range held = sequences(at.dp, microbatch);
  for (std::int64_t sequence = held.begin; sequence < held.end(); ++sequence) {
    result.offsets.push_back(result.rows.places_before(offsets_[static_cast<std::size_t>(sequence)]));
  }
  result.offsets.push_back(count);
  return result;
}

RankTokens TokenMap::rank_tokens(const Coordinates& at, std::int64_t microbatch) const {
  RankTokens result = rank_shapes(at, microbatch);
  result.positions.reserve(static_cast<std::size_t>(result.rows.count()));
  for (const Range& run : result.rows.runs) {
    std::int64_t sequence = sequence_of(run.begin);
    for (std::int64_t row = run.begin; row < run.end(); ++row) {
      while (row >= offsets_[static_cast<std::size_t>(sequence) + 1]) ++sequence;
      result.positions.push_back(row - offsets_[static_cast<std::size_t>(sequence)]);
    }
  }
  return result;
}

std::int64_t TokenMap::sequence_of(std::int64_t row) const {
  return std::ranges::upper_bound(offsets_, row) - offsets_.begin() - 1;
}

std::int64_t TokenMap::position(std::int64_t row) const {
  return row - offsets_[static_cast<std::size_t>(sequence_of(row))];
}

RowHome TokenMap::home(std::int64_t row) const {
  const std::int64_t sequence = sequence_of(row);
  RowHome result;
  result.at.dp = static_cast<int>(shard_of(std::ssize(offsets_) - 1, parallel_.dp, sequence));
  const Range replica = sequences(result.at.dp);
  result.microbatch = shard_of(replica.count, microbatches_, sequence - replica.begin);
  const Range all = microbatch_rows(result.at.dp, result.microbatch);
  result.at.cp = static_cast<int>(shard_of(all.count, parallel_.cp, row - all.begin));
  const TokenRows held = rows(result.at, result.microbatch);
  result.at.tp = static_cast<int>(shard_of(held.count(), parallel_.tp, *held.place_of(row)));
  return result;
}

}  // namespace shardproof
