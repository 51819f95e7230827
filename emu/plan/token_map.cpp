#include "emu/plan/token_map.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "emu/plan/key_spans.h"
#include "emu/plan/latent_form.h"

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

double past_of(std::span<const Chunk> chunks, std::int64_t window) {
  double sum = 0;
  for (const Chunk& chunk : chunks) {
    sum += static_cast<double>(window > 0 ? std::min(chunk.begin, window) : chunk.begin);
  }
  return sum;
}

}  // namespace

TokenMap::TokenMap(const Parallel& parallel, const Workload& workload)
    : TokenMap(parallel, workload, make_schedule(parallel, workload)) {}

TokenMap::TokenMap(const Parallel& parallel, const Workload& workload, std::span<const ReplicaSchedule> schedule)
    : parallel_(parallel),
      microbatches_of_step_(workload.microbatches),
      padding_(workload.idle == Idle::pad ? 1 : 0),
      offsets_(workload.lengths.size() + 1, 0),
      decodes_absorbed_(shardproof::decodes_absorbed(parallel, workload)),
      absorbed_from_(absorbed_from(parallel, workload)) {
  std::inclusive_scan(workload.lengths.begin(), workload.lengths.end(), offsets_.begin() + 1);
  for (const ReplicaSchedule& replica : schedule) {
    microbatches_ = std::ssize(replica) * microbatches_of_step_;
    for (const std::vector<Chunk>& step : replica) {
      for (std::int64_t m = 0; m < microbatches_of_step_; ++m) {
        const Range share = partition(std::ssize(step), microbatches_of_step_, m);
        add_part(std::span(step).subspan(static_cast<std::size_t>(share.begin), static_cast<std::size_t>(share.count)));
      }
    }
  }
  split_over_cp(Sharing::zig_zag);
}

/// Those of none lie where they would be: after the rows before.
TokenRows TokenMap::rows_of(std::span<const Chunk> chunks, const TokenRows* before) const {
  TokenRows rows;
  rows.runs.clear();
  for (const Chunk& chunk : chunks) {
    const std::int64_t first = offsets_[static_cast<std::size_t>(chunk.sequence)] + chunk.begin;
    if (!rows.runs.empty() && rows.runs.back().end() == first) {
      rows.runs.back().count += chunk.count;
    } else {
      rows.runs.push_back({first, chunk.count});
    }
  }
  if (rows.runs.empty()) rows.runs.push_back({before == nullptr ? 0 : before->runs.back().end(), 0});
  return rows;
}

void TokenMap::add_part(std::span<const Chunk> chunks) {
  parts_.push_back({.chunks = {std::ssize(chunks_), std::ssize(chunks)},
                    .rows = rows_of(chunks, parts_.empty() ? nullptr : &parts_.back().rows)});
  chunks_.insert(chunks_.end(), chunks.begin(), chunks.end());
  for (const Chunk& chunk : chunks) {
    if (chunk.prefix_of < 0) continue;
    const std::int64_t first = offsets_[static_cast<std::size_t>(chunk.sequence)];
    prefixes_[first] = {{first, chunk.begin}, offsets_[static_cast<std::size_t>(chunk.prefix_of)]};
  }
}

std::vector<Chunk> TokenMap::pieces_of(std::span<const Chunk> chunks, Sharing sharing, int cp) const {
  if (parallel_.cp == 1) return {chunks.begin(), chunks.end()};
  std::vector<Chunk> pieces;
  if (sharing == Sharing::contiguous) {
    std::int64_t before = 0;
    for (const Chunk& chunk : chunks) before += chunk.count;
    const Range places = partition(before, parallel_.cp, cp);
    before = 0;
    for (const Chunk& chunk : chunks) {
      const std::int64_t begin = std::max(places.begin - before, std::int64_t{0});
      const std::int64_t end = std::min(places.end() - before, chunk.count);
      if (begin < end) pieces.push_back({chunk.sequence, chunk.begin + begin, end - begin});
      before += chunk.count;
    }
    return pieces;
  }
  for (const Chunk& chunk : chunks) {
    for (const int index : {cp, 2 * parallel_.cp - 1 - cp}) {
      const Range piece = partition(chunk.count, 2 * parallel_.cp, index);
      if (piece.count > 0) pieces.push_back({chunk.sequence, chunk.begin + piece.begin, piece.count});
    }
  }
  return pieces;
}

void TokenMap::split_over_cp(Sharing sharing) {
  pieces_.clear();
  shares_.clear();
  homes_.clear();
  for (std::size_t p = 0; p < parts_.size(); ++p) {
    const Range& range = parts_[p].chunks;
    const auto chunks =
        std::span(chunks_).subspan(static_cast<std::size_t>(range.begin), static_cast<std::size_t>(range.count));
    for (int cp = 0; cp < parallel_.cp; ++cp) {
      const std::vector<Chunk> pieces = pieces_of(chunks, sharing, cp);
      for (const Chunk& piece : pieces) {
        homes_.emplace_back(offsets_[static_cast<std::size_t>(piece.sequence)] + piece.begin, std::ssize(shares_));
      }
      const TokenRows* before = parallel_.cp > 1 ? &parts_[p].rows : p == 0 ? nullptr : &parts_[p - 1].rows;
      shares_.push_back({.pieces = {std::ssize(pieces_), std::ssize(pieces)}, .rows = rows_of(pieces, before)});
      pieces_.insert(pieces_.end(), pieces.begin(), pieces.end());
    }
  }
  std::ranges::sort(homes_);
}

const TokenMap::Part& TokenMap::part(int dp, std::int64_t microbatch) const {
  return parts_[static_cast<std::size_t>(dp * microbatches_ + microbatch)];
}

const TokenMap::Share& TokenMap::share(const Coordinates& at, std::int64_t microbatch) const {
  return shares_[static_cast<std::size_t>((at.dp * microbatches_ + microbatch) * parallel_.cp + at.cp)];
}

Range TokenMap::sequences(int dp) const {
  return sequences_of_replica(parallel_, std::ssize(offsets_) - 1, dp);
}

std::span<const Chunk> TokenMap::chunks(int dp, std::int64_t microbatch) const {
  const Range& range = part(dp, microbatch).chunks;
  return std::span(chunks_).subspan(static_cast<std::size_t>(range.begin), static_cast<std::size_t>(range.count));
}

std::span<const Chunk> TokenMap::pieces(const Coordinates& at, std::int64_t microbatch) const {
  const Range& range = share(at, microbatch).pieces;
  return std::span(pieces_).subspan(static_cast<std::size_t>(range.begin), static_cast<std::size_t>(range.count));
}

void TokenMap::set_past(std::span<const std::int64_t> tokens) {
  split_over_cp(Sharing::contiguous);
  for (Chunk& chunk : chunks_) chunk.begin = tokens[static_cast<std::size_t>(chunk.sequence)];
  for (Chunk& piece : pieces_) piece.begin = tokens[static_cast<std::size_t>(piece.sequence)];
  // Each comes after a prompt.
  if (decodes_absorbed_) {
    std::ranges::copy(tokens, absorbed_from_.begin());
  } else {
    std::ranges::fill(absorbed_from_, std::numeric_limits<std::int64_t>::max());
  }
}

std::int64_t TokenMap::plain_of(const Chunk& chunk) const {
  const std::int64_t from = absorbed_from_[static_cast<std::size_t>(chunk.sequence)];
  return std::clamp(from - chunk.begin, std::int64_t{0}, chunk.count);
}

double TokenMap::pairs(const Coordinates& at, std::int64_t microbatch, std::int64_t window) const {
  return pairs_of(pieces(at, microbatch), window);
}

double RankTokens::pairs_within(std::int64_t window) const {
  return pairs_of(pieces, window);
}

double RankTokens::past_within(std::int64_t window) const {
  return past_of(chunks, window);
}

double TokenMap::past(const Coordinates& at, std::int64_t microbatch, std::int64_t window) const {
  return past_of(chunks(at.dp, microbatch), window);
}

double RankTokens::pairs_of_part(int keys_of, int ranks_of_member) const {
  const int mine = cp / ranks_of_member;
  const std::vector<Chunk> queries = of_member(mine, ranks_of_member);
  double pairs = pairs_between(queries, of_member(keys_of, ranks_of_member));
  if (keys_of != mine) return pairs;
  auto chunk = chunks.begin();
  for (const Chunk& piece : queries) {
    while (chunk->sequence != piece.sequence) ++chunk;
    pairs += static_cast<double>(piece.count * chunk->begin);
  }
  return pairs;
}

std::vector<Chunk> RankTokens::of_member(int member, int ranks_of_member) const {
  std::vector<Chunk> held;
  for (int rank = member * ranks_of_member; rank < (member + 1) * ranks_of_member; ++rank) {
    const std::vector<Chunk>& share = shares[static_cast<std::size_t>(rank)];
    held.insert(held.end(), share.begin(), share.end());
  }
  if (ranks_of_member > 1) {
    std::ranges::stable_sort(held, {}, [](const Chunk& piece) { return std::pair(piece.sequence, piece.begin); });
  }
  return held;
}

double RankTokens::pairs_over_cp(std::int64_t window) const {
  return pairs_of(chunks, window);
}

Range TokenMap::own_places(std::int64_t rows, int tp) const {
  return parallel_.routes_alike() ? Range{0, rows} : partition(rows, parallel_.tp, tp);
}

TokenRows TokenMap::rows(const Coordinates& at, std::int64_t microbatch) const {
  return share(at, microbatch).rows;
}

TokenRows TokenMap::run_rows(const Coordinates& at, std::int64_t microbatch) const {
  if (padding_ == 0 || part(at.dp, microbatch).chunks.count > 0) return rows(at, microbatch);
  return {.runs = {{tokens(), padding_}}};
}

TokenRows TokenMap::run_own(const Coordinates& at, std::int64_t microbatch) const {
  const TokenRows all = run_rows(at, microbatch);
  return all.part(own_places(all.count(), at.tp));
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
      .rows = run_rows(at, microbatch), .own = {}, .stream = {}, .own_counts = {}, .offsets = {}, .positions = {}};
  const std::span<const Chunk> all = chunks(at.dp, microbatch), held = pieces(at, microbatch);
  result.chunks.assign(all.begin(), all.end());
  for (const Chunk& chunk : all) result.plain.push_back(plain_of(chunk));
  result.pieces.assign(held.begin(), held.end());
  result.cp = at.cp;
  Coordinates member = at;
  for (member.cp = 0; parallel_.cp > 1 && member.cp < parallel_.cp; ++member.cp) {
    const std::span<const Chunk> of_member = pieces(member, microbatch);
    result.shares.emplace_back(of_member.begin(), of_member.end());
  }
  const std::int64_t count = result.rows.count();
  result.padded = count > 0 && result.rows.runs.front().begin >= tokens();
  result.own = own_places(count, at.tp);
  result.stream = parallel_.sp ? result.own : Range{0, count};
  for (int tp = 0; tp < parallel_.tp; ++tp) result.own_counts.push_back(own_places(count, tp).count);
  auto piece = held.begin();
  std::int64_t before = 0;
  for (const Chunk& chunk : all) {
    result.offsets.push_back(before);
    for (; piece != held.end() && piece->sequence == chunk.sequence; ++piece) before += piece->count;
  }
  if (result.padded) result.offsets.push_back(0);
  result.offsets.push_back(count);
  return result;
}

RankTokens TokenMap::rank_tokens(const Coordinates& at, std::int64_t microbatch) const {
  RankTokens result = rank_shapes(at, microbatch);
  if (result.padded) {
    result.positions.assign(static_cast<std::size_t>(result.rows.count()), 0);
    return result;
  }
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

std::int64_t TokenMap::run_as(std::int64_t row) const {
  for (auto after = prefixes_.upper_bound(row); after != prefixes_.begin(); after = prefixes_.upper_bound(row)) {
    const SharedRows& prefix = std::prev(after)->second;
    if (row >= prefix.rows.end()) break;
    row += prefix.run_as - prefix.rows.begin;
  }
  return row;
}

std::vector<TokenMap::SharedRows> TokenMap::shared_rows() const {
  std::vector<SharedRows> shared;
  for (const auto& [first, prefix] : prefixes_) {
    for (std::int64_t row = first; row < prefix.rows.end(); ++row) {
      const std::int64_t from = run_as(row);
      const bool next =
          !shared.empty() && shared.back().rows.end() == row && shared.back().run_as + shared.back().rows.count == from;
      if (next) {
        ++shared.back().rows.count;
      } else {
        shared.push_back({{row, 1}, from});
      }
    }
  }
  return shared;
}

RowHome TokenMap::home(std::int64_t row) const {
  row = run_as(row);
  const auto after = std::ranges::upper_bound(homes_, row, {}, &std::pair<std::int64_t, std::int64_t>::first);
  const std::int64_t index = std::prev(after)->second, part = index / parallel_.cp;
  RowHome result;
  result.at.dp = static_cast<int>(part / microbatches_);
  result.at.cp = static_cast<int>(index % parallel_.cp);
  result.microbatch = part % microbatches_;
  if (parallel_.routes_alike()) return result;
  const TokenRows held = rows(result.at, result.microbatch);
  result.at.tp = static_cast<int>(shard_of(held.count(), parallel_.tp, *held.place_of(row)));
  return result;
}

}  // namespace shardproof
