// Causes at attention over a cache: what the rows attended to instead of their own sequence's keys.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "emu/diagnose/internal/wrong_tap.h"
#include "emu/plan/deployment.h"
#include "emu/run/slot_history.h"

namespace shardproof::diagnosis {
namespace {

/// A wrong row's columns, had it attended to these keys.
template <class Keys>
std::vector<double> over_keys(const WrongTap& wrong, const WrongRow& row, const Keys& keys) {
  const AttentionSpec& spec = wrong.model.plan().model.layers[wrong.layer].attention;
  const std::int64_t dim = spec.value_dim(), share = spec.heads / spec.kv_heads;
  std::vector<double> values;
  for (std::int64_t head = row.col / dim; head < (row.col + std::ssize(row.got)) / dim; ++head) {
    const std::vector<double> one = wrong.model.attend(wrong.layer, row.row, keys, {head, head / share});
    values.insert(values.end(), one.begin(), one.end());
  }
  return values;
}

/// Where the sequences of the row's replica begin, and how many tokens they have.
std::vector<Range> sequences_beside(const WrongTap& wrong, const WrongRow& row) {
  const std::span<const std::int64_t> lengths = wrong.model.batch().lengths();
  const Range held = wrong.model.tokens().sequences(wrong.at(row).dp);
  std::vector<Range> sequences;
  std::int64_t first = 0;
  for (std::int64_t s = 0; s < held.end(); ++s) {
    const std::int64_t length = lengths[static_cast<std::size_t>(s)];
    if (s >= held.begin) sequences.push_back({first, length});
    first += length;
  }
  return sequences;
}

/// Of its own sequence fewer keys, or more.
std::optional<Cause> length_cause(const WrongTap& wrong) {
  std::optional<std::int64_t> shown;
  for (const WrongRow& row : wrong.rows) {
    const std::int64_t position = wrong.model.tokens().position(row.row);
    const std::int64_t length =
        wrong.model.batch().lengths()[static_cast<std::size_t>(wrong.model.tokens().sequence_of(row.row))];
    std::int64_t keys = 1;
    while (keys <= length && !close(over_keys(wrong, row, Range{row.row - position, keys}), row.got, wrong.tolerance))
      ++keys;
    if (keys > length) return std::nullopt;
    if (!shown) shown = keys;
  }
  const WrongRow& first = wrong.rows.front();
  return Cause{"cache_length", fmt::format("{} tokens on {} attend to another number of their sequence's tokens: token "
                                           "{} to the first {}, not {}",
                                           wrong.rows.size(), ranks_of(wrong.rows), first.row, *shown,
                                           wrong.model.tokens().position(first.row) + 1)};
}

std::optional<Cause> table_cause(const WrongTap& wrong) {
  std::optional<std::int64_t> shown;
  for (const WrongRow& row : wrong.rows) {
    const std::int64_t position = wrong.model.tokens().position(row.row);
    const std::vector<Range> sequences = sequences_beside(wrong, row);
    const auto from = std::ranges::find_if(sequences, [&](const Range& other) {
      return other.begin != row.row - position && position < other.count &&
             close(over_keys(wrong, row, Range{other.begin, position + 1}), row.got, wrong.tolerance);
    });
    if (from == sequences.end()) return std::nullopt;
    if (!shown) shown = wrong.model.tokens().sequence_of(from->begin);
  }
  const std::int64_t own = wrong.model.tokens().sequence_of(wrong.rows.front().row);
  return Cause{"block_table", fmt::format("{} read the cache through another request's block table: request {} "
                                          "through that of request {}",
                                          ranks_of(wrong.rows), own, *shown)};
}

bool has_nan(const WrongRow& row) {
  return std::ranges::any_of(row.got, [](double x) { return std::isnan(x); });
}

/// The first tokens that a request runs of a prompt whose beginning it shares attend as if more of it were cached.
std::optional<Cause> prefix_cause(const WrongTap& wrong) {
  const auto explained = [&](const WrongRow& row, std::int64_t more) {
    const std::int64_t position = wrong.model.tokens().position(row.row), keys = position + 1 + more;
    const Chunk chunk = chunk_of(wrong.model.tokens(), row.row);
    if (chunk.prefix_of < 0) return false;
    if (keys > chunk.end()) return has_nan(row);  // nobody has written those
    return close(over_keys(wrong, row, Range{row.row - position, keys}), row.got, wrong.tolerance);
  };
  if (std::ranges::all_of(wrong.rows, has_nan)) return std::nullopt;
  for (std::int64_t more = 1; more < wrong.model.plan().workload.serving->kv_block_size; ++more) {
    if (!std::ranges::all_of(wrong.rows, [&](const WrongRow& row) { return explained(row, more); })) continue;
    const WrongRow& first = wrong.rows.front();
    const Chunk chunk = chunk_of(wrong.model.tokens(), first.row);
    return Cause{
        "prefix_length",
        fmt::format("{} attend as if {} tokens of request {}'s prompt were in the cache before it runs: {} are, "
                    "in full blocks that it shares with request {}",
                    ranks_of(wrong.rows), chunk.begin + more, chunk.sequence, chunk.begin, chunk.prefix_of)};
  }
  return std::nullopt;
}

/// A later chunk of a prompt attends to its own tokens and to those before it apart, and both count alike.
std::optional<Cause> past_cause(const WrongTap& wrong) {
  const TokenMap& tokens = wrong.model.tokens();
  const auto averaged = [&](const WrongRow& row) -> std::vector<double> {
    const Chunk chunk = chunk_of(tokens, row.row);
    const std::int64_t position = tokens.position(row.row), begin = row.row - position;
    if (chunk.begin == 0 || position < chunk.begin) return {};
    std::vector<double> values = over_keys(wrong, row, Range{begin, chunk.begin});
    const std::vector<double> own = over_keys(wrong, row, Range{begin + chunk.begin, position + 1 - chunk.begin});
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = (values[i] + own[i]) / 2;
    wrong.model.finish(values);
    return values;
  };
  if (!explains(wrong.rows, averaged, wrong.tolerance)) return std::nullopt;
  const Chunk chunk = chunk_of(tokens, wrong.rows.front().row);
  return Cause{"past_not_weighed",
               fmt::format("{} hold the mean of what tokens {} to {} of request {} give and what the {} before them "
                           "do, whatever these weigh",
                           ranks_of(wrong.rows), chunk.begin, chunk.end() - 1, chunk.sequence, chunk.begin)};
}

/// The row's chunk was written so many blocks beside its own: what its keys then are, or none where one is not written.
std::vector<std::int64_t> keys_beside(const WrongTap& wrong, const WrongRow& row, std::int64_t shift) {
  const TokenMap& tokens = wrong.model.tokens();
  const Serving& serving = *wrong.model.plan().workload.serving;
  const std::int64_t position = tokens.position(row.row);
  const int dcp = wrong.model.plan().parallel.dcp;
  const Chunk chunk = chunk_of(tokens, row.row);
  const std::int64_t blocks = serving.blocks_of(chunk.end(), dcp), size = serving.tokens_of_block(dcp);
  std::vector<std::int64_t> keys;
  for (std::int64_t at = 0; at <= position; ++at) {
    const std::int64_t written = (at / size + blocks - shift) % blocks * size + at % size;
    const bool by_chunk = written >= chunk.begin && written < chunk.end();
    if (!by_chunk && at >= chunk.begin) return {};
    keys.push_back(row.row - position + (by_chunk ? written : at));
  }
  return keys;
}

std::optional<Cause> slots_cause(const WrongTap& wrong) {
  const auto explained = [&](const WrongRow& row) {
    const std::vector<std::int64_t> keys = keys_beside(wrong, row, 1);
    return keys.empty() ? has_nan(row) : close(over_keys(wrong, row, keys), row.got, wrong.tolerance);
  };
  if (!std::ranges::all_of(wrong.rows, explained)) return std::nullopt;
  return Cause{"cache_slots",
               fmt::format("{} wrote a request's tokens to the cache one block beside their own, token {} "
                           "among them",
                           ranks_of(wrong.rows), wrong.rows.front().row)};
}

/// From one chunk on, keys are what a request that is done left in the blocks that the wrong rows' one got.
std::optional<Cause> finished_cause(const WrongTap& wrong) {
  const TokenMap& tokens = wrong.model.tokens();
  const Plan& plan = wrong.model.plan();
  if (plan.parallel.dcp > 1) return std::nullopt;
  const WrongRow& first = *std::ranges::min_element(wrong.rows, {}, &WrongRow::row);
  const RowHome home = tokens.home(first.row);
  const std::span<const Chunk> chunks = tokens.chunks(home.at.dp, home.microbatch);
  const Chunk chunk = chunk_of(tokens, first.row);
  const auto index = std::ranges::find(chunks, chunk) - chunks.begin();
  const std::vector<std::int64_t> blocks = deploy(plan.model, plan.parallel, plan.workload).kv_blocks;
  const std::vector<SlotToken> left =
      left_behind(tokens, *plan.workload.serving, blocks[static_cast<std::size_t>(home.at.dp)], home.at.dp,
                  home.microbatch, static_cast<std::size_t>(index));
  if (std::ranges::any_of(left, [](const SlotToken& slot) { return slot.sequence < 0; })) return std::nullopt;
  std::vector<std::int64_t> begins{0};
  for (const std::int64_t length : wrong.model.batch().lengths()) begins.push_back(begins.back() + length);
  const auto explained = [&](const WrongRow& row) {
    if (tokens.sequence_of(row.row) != chunk.sequence) return false;
    std::vector<std::int64_t> keys;
    for (std::int64_t at = 0; at <= tokens.position(row.row); ++at) {
      const bool stale = at >= chunk.begin && at < chunk.end();
      const SlotToken slot = stale ? left[static_cast<std::size_t>(at - chunk.begin)] : SlotToken{chunk.sequence, at};
      keys.push_back(begins[static_cast<std::size_t>(slot.sequence)] + slot.token);
    }
    return close(over_keys(wrong, row, keys), row.got, wrong.tolerance);
  };
  if (!std::ranges::all_of(wrong.rows, explained)) return std::nullopt;
  return Cause{
      "cache_of_finished_request",
      fmt::format("{} attend to what request {} left in the cache when it was done, in place of tokens {} to {} "
                  "of request {}",
                  ranks_of(wrong.rows), left.front().sequence, chunk.begin, chunk.end() - 1, chunk.sequence)};
}

}  // namespace

Chunk chunk_of(const TokenMap& tokens, std::int64_t row) {
  const RowHome home = tokens.home(row);
  const std::span<const Chunk> chunks = tokens.chunks(home.at.dp, home.microbatch);
  return *std::ranges::find(chunks, tokens.sequence_of(tokens.run_as(row)), &Chunk::sequence);
}

std::optional<Cause> cache_cause(const WrongTap& wrong) {
  if (std::ranges::all_of(wrong.rows, has_nan)) {
    const WrongRow& first = wrong.rows.front();
    return Cause{"cache_unwritten",
                 fmt::format("{} tokens on {} attend to a slot of the cache that was never written, or "
                             "was freed: token {}, at position {} of request {}, the first of them",
                             wrong.rows.size(), ranks_of(wrong.rows), first.row,
                             wrong.model.tokens().position(first.row), wrong.model.tokens().sequence_of(first.row))};
  }
  if (auto cause = prefix_cause(wrong)) return cause;
  if (auto cause = length_cause(wrong)) return cause;
  if (auto cause = slots_cause(wrong)) return cause;
  if (auto cause = table_cause(wrong)) return cause;
  if (auto cause = past_cause(wrong)) return cause;
  return finished_cause(wrong);
}

}  // namespace shardproof::diagnosis
