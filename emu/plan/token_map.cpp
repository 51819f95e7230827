#include "emu/plan/token_map.h"

#include <algorithm>
#include <numeric>

namespace shardproof {
namespace {

/// The query at place p of its sequence sees min(p + 1, window) keys.
double pairs_of(std::span<const Chunk> chunks, std::int64_t window) {
  const auto keys_up_to = [&](double places) {
    const double beyond = window > 0 ? std::max(0.0, places - static_cast<double>(window)) : 0;
    return places * (places + 1) / 2 - beyond * (beyond + 1) / 2;
  };
  double sum = 0;
  for (const Chunk& chunk : chunks) {
    sum += keys_up_to(static_cast<double>(chunk.end())) - keys_up_to(static_cast<double>(chunk.begin));
  }
  return sum;
}

}  // namespace

TokenMap::TokenMap(const Parallel& parallel, const Workload& workload)
    : parallel_(parallel), microbatches_of_step_(workload.microbatches), offsets_(workload.lengths.size() + 1, 0) {
  std::inclusive_scan(workload.lengths.begin(), workload.lengths.end(), offsets_.begin() + 1);
  for (const ReplicaSchedule& replica : make_schedule(parallel, workload)) {
    microbatches_ = std::ssize(replica) * microbatches_of_step_;
    for (const std::vector<Chunk>& step : replica) {
      for (std::int64_t m = 0; m < microbatches_of_step_; ++m) {
        const Range share = partition(std::ssize(step), microbatches_of_step_, m);
        add_part(std::span(step).subspan(static_cast<std::size_t>(share.begin), static_cast<std::size_t>(share.count)));
      }
    }
  }
  std::ranges::sort(homes_);
}

void TokenMap::add_part(std::span<const Chunk> chunks) {
  Part part{.chunks = {std::ssize(chunks_), std::ssize(chunks)}, .rows = {}};
  part.rows.runs.clear();
  std::vector<Range>& runs = part.rows.runs;
  for (const Chunk& chunk : chunks) {
    const std::int64_t first = offsets_[static_cast<std::size_t>(chunk.sequence)] + chunk.begin;
    homes_.emplace_back(first, std::ssize(parts_));
    if (!runs.empty() && runs.back().end() == first) {
      runs.back().count += chunk.count;
    } else {
      runs.push_back({first, chunk.count});
    }
  }
  // Where its rows would be: after those of the part before.
  if (runs.empty()) runs.push_back({parts_.empty() ? 0 : parts_.back().rows.runs.back().end(), 0});
  chunks_.insert(chunks_.end(), chunks.begin(), chunks.end());
  parts_.push_back(std::move(part));
}

const TokenMap::Part& TokenMap::part(int dp, std::int64_t microbatch) const {
  return parts_[static_cast<std::size_t>(dp * microbatches_ + microbatch)];
}

Range TokenMap::sequences(int dp) const {
  return sequences_of_replica(parallel_, std::ssize(offsets_) - 1, dp);
}

std::span<const Chunk> TokenMap::chunks(int dp, std::int64_t microbatch) const {
  const Range& range = part(dp, microbatch).chunks;
  return std::span(chunks_).subspan(static_cast<std::size_t>(range.begin), static_cast<std::size_t>(range.count));
}

void TokenMap::set_past(std::span<const std::int64_t> tokens) {
  for (Chunk& chunk : chunks_) chunk.begin = tokens[static_cast<std::size_t>(chunk.sequence)];
}

double TokenMap::pairs(int dp, std::int64_t microbatch, std::int64_t window) const {
  return pairs_of(chunks(dp, microbatch), window);
}

double RankTokens::pairs_within(std::int64_t window) const {
  return pairs_of(chunks, window) / cp;
}

Range TokenMap::own_places(std::int64_t rows, int tp) const {
  return partition(rows, parallel_.tp, tp);
}

TokenRows TokenMap::rows(const Coordinates& at, std::int64_t microbatch) const {
  const TokenRows& all = part(at.dp, microbatch).rows;
  if (parallel_.cp == 1) return all;
  return all.part(partition(all.count(), parallel_.cp, at.cp));
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
  const std::span<const Chunk> all = chunks(at.dp, microbatch);
  result.chunks.assign(all.begin(), all.end());
  result.cp = parallel_.cp;
  const std::int64_t count = result.rows.count();
  result.own = own_places(count, at.tp);
  result.stream = parallel_.sp ? result.own : Range{0, count};
  for (int tp = 0; tp < parallel_.tp; ++tp) result.own_counts.push_back(own_places(count, tp).count);
  std::int64_t before = 0;
  for (const Chunk& chunk : all) {
    const std::int64_t first = offsets_[static_cast<std::size_t>(chunk.sequence)] + chunk.begin;
    result.offsets.push_back(parallel_.cp == 1 ? before : result.rows.places_before(first));
    before += chunk.count;
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
  const auto after = std::ranges::upper_bound(homes_, row, {}, &std::pair<std::int64_t, std::int64_t>::first);
  const std::int64_t index = std::prev(after)->second;
  RowHome result;
  result.at.dp = static_cast<int>(index / microbatches_);
  result.microbatch = index % microbatches_;
  const TokenRows& all = parts_[static_cast<std::size_t>(index)].rows;
  result.at.cp = static_cast<int>(shard_of(all.count(), parallel_.cp, *all.place_of(row)));
  const TokenRows held = rows(result.at, result.microbatch);
  result.at.tp = static_cast<int>(shard_of(held.count(), parallel_.tp, *held.place_of(row)));
  return result;
}

}  // namespace shardproof
