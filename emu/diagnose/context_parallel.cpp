// Causes at attention whose keys are spread over cp: which keys a row attended to, and how often.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "emu/diagnose/internal/wrong_tap.h"
#include "emu/plan/cache_share.h"

namespace shardproof::diagnosis {
namespace {

/// Keys by the rank of cp that holds them.
using Parts = std::vector<std::vector<std::int64_t>>;
using KeysOf = std::function<Parts(const WrongRow&)>;

class Hypotheses {
 public:
  explicit Hypotheses(const WrongTap& wrong)
      : wrong_(wrong), spec_(wrong.model.plan().model.layers[wrong.layer].attention) {
    const CacheShare share = cache_share(parallel(), {});
    const TokenMap& tokens = wrong.model.tokens();
    for (std::int64_t row = 0; row < tokens.tokens(); ++row) {
      const int cp = tokens.home(row).at.cp;
      cp_of_.push_back(cp);
      part_of_.push_back(parallel().dcp > 1     ? share.owner_of(tokens.position(row))
                         : parallel().in_ring() ? cp / parallel().heads_dealt()
                                                : cp);
    }
  }

  const Parallel& parallel() const { return wrong_.model.plan().parallel; }
  int ranks() const {
    return parallel().dcp > 1 ? parallel().dcp : parallel().in_ring() ? parallel().ring() : parallel().cp;
  }
  std::string_view axis() const {
    return parallel().dcp > 1 ? "dcp" : parallel().cp_comm == CpComm::a2a_p2p ? "cp_p2p" : "cp";
  }
  std::int64_t begin_of(std::int64_t row) const { return row - wrong_.model.tokens().position(row); }
  std::int64_t end_of(std::int64_t row) const {
    const std::int64_t begin = begin_of(row), tokens = wrong_.model.tokens().tokens();
    std::int64_t end = row + 1;
    while (end < tokens && begin_of(end) == begin) ++end;
    return end;
  }
  int part_of(std::int64_t row) const { return part_of_[static_cast<std::size_t>(row)]; }

  /// The keys that the row should see.
  Parts seen(const WrongRow& row) const {
    Parts parts(static_cast<std::size_t>(ranks()));
    for (std::int64_t key = begin_of(row.row); key <= row.row; ++key) {
      parts[static_cast<std::size_t>(part_of(key))].push_back(key);
    }
    return parts;
  }

  /// `without`: a part of the keys that the row should see, whose largest score counts though they do not.
  bool explain(const KeysOf& keys_of, bool weighed = true, std::optional<std::size_t> without = {}) const {
    return std::ranges::all_of(wrong_.rows, [&](const WrongRow& row) {
      return close(predicted(row, keys_of, weighed, without), row.got, wrong_.tolerance);
    });
  }

  /// One rank of dcp keeps the tokens of that share: of what is attended to where it is kept, and of latents of tokens
  /// in the plain form, which are gathered.
  bool kept_by(int rank, const CacheShare& share) const {
    return std::ranges::all_of(wrong_.rows, [&](const WrongRow& row) {
      const bool gathered = spec_.latent() && !wrong_.model.is_absorbed(wrong_.layer, row.row);
      const std::vector<std::int64_t> keys = gathered ? gathered_with(row, rank, share) : std::vector<std::int64_t>();
      if (gathered && keys.empty()) return std::ranges::any_of(row.got, [](double value) { return std::isnan(value); });
      const auto keys_of = [&](const WrongRow&) { return gathered ? Parts{keys} : seen_with(row, rank, share); };
      return close(predicted(row, keys_of, true, {}), row.got, wrong_.tolerance);
    });
  }

  /// What the row should see had one rank of dcp kept the tokens of that share.
  Parts seen_with(const WrongRow& row, int rank, const CacheShare& share) const {
    Parts parts = seen(row);
    std::vector<std::int64_t>& kept = parts[static_cast<std::size_t>(rank)];
    kept.clear();
    for (std::int64_t key = begin_of(row.row); key <= row.row; ++key) {
      if (share.owns(key - begin_of(row.row))) kept.push_back(key);
    }
    return parts;
  }

  /// Where each token would be if the ranks of cp held one contiguous share each, of as many tokens as they hold.
  Parts seen_in_contiguous_shares(const WrongRow& row) const {
    const std::int64_t begin = begin_of(row.row), end = end_of(row.row);
    std::vector<std::int64_t> order;  // by believed position
    for (int cp = 0; cp < parallel().cp; ++cp) {
      for (std::int64_t key = begin; key < end; ++key) {
        if (cp_of_[static_cast<std::size_t>(key)] == cp) order.push_back(key);
      }
    }
    const auto last = std::ranges::find(order, row.row) - order.begin();
    const std::int64_t window = spec_.sliding_window;
    const std::int64_t first = window > 0 ? std::max<std::int64_t>(0, last + 1 - window) : 0;
    return {{order.begin() + first, order.begin() + last + 1}};
  }

 private:
  std::vector<double> predicted(const WrongRow& row, const KeysOf& keys_of, bool weighed,
                                std::optional<std::size_t> without) const {
    const std::int64_t dim = spec_.value_dim(), share = spec_.heads / spec_.kv_heads;
    const Parts parts = keys_of(row);
    const std::vector<std::int64_t> beside = without ? seen(row)[*without] : std::vector<std::int64_t>();
    std::vector<double> values;
    for (std::int64_t head = row.col / dim; head < (row.col + std::ssize(row.got)) / dim; ++head) {
      if (is_right(row, head * dim - row.col, dim)) {
        values.insert(values.end(), row.got.begin() + head * dim - row.col,
                      row.got.begin() + (head + 1) * dim - row.col);
        continue;
      }
      const std::vector<double> one =
          wrong_.model.attend_to_parts(wrong_.layer, row.row, parts, {head, head / share}, weighed, beside);
      values.insert(values.end(), one.begin(), one.end());
    }
    return values;
  }

  /// What then stands in place of the row's keys in what is gathered; none where one of them was not written.
  std::vector<std::int64_t> gathered_with(const WrongRow& row, int rank, const CacheShare& share) const {
    const CacheShare right = cache_share(parallel(), {.dcp = rank});
    const Chunk chunk = chunk_of(wrong_.model.tokens(), row.row);
    const std::int64_t end = chunk.begin + wrong_.model.tokens().plain_of(chunk), begin = begin_of(row.row);
    std::vector<std::int64_t> keys;
    for (std::int64_t token = 0; token <= row.row - begin; ++token) {
      const std::int64_t place = right.place_of(token);
      if (right.owns(token) && place >= share.count_of(end)) return {};
      keys.push_back(begin + (right.owns(token) ? share.token_at(place) : token));
    }
    return keys;
  }

  /// Heads that are dealt out are computed by several ranks, of which one may be wrong.
  bool is_right(const WrongRow& row, std::int64_t begin, std::int64_t count) const {
    if (parallel().cp_comm != CpComm::a2a_p2p) return false;
    return std::equal(row.got.begin() + begin, row.got.begin() + begin + count, row.want.begin() + begin);
  }

  const WrongTap& wrong_;
  const AttentionSpec& spec_;
  std::vector<int> part_of_;
  std::vector<int> cp_of_;
};

std::optional<Cause> ring_cause(const WrongTap& wrong, const Hypotheses& hypotheses) {
  const std::string on = ranks_of(wrong.rows);
  const std::string_view axis = hypotheses.axis();
  for (int index = 0; index < hypotheses.ranks(); ++index) {
    const auto at = static_cast<std::size_t>(index);
    const auto without = [&](const WrongRow& row) {
      Parts parts = hypotheses.seen(row);
      parts[at].clear();
      return parts;
    };
    if (hypotheses.explain(without, true, at)) {
      return Cause{"keys_missing", fmt::format("the keys of {} {} are not in what {} attend to", axis, index, on)};
    }
    const auto twice = [&](const WrongRow& row) {
      Parts parts = hypotheses.seen(row);
      parts.push_back(parts[at]);
      return parts;
    };
    if (hypotheses.explain(twice)) {
      return Cause{"keys_counted_twice",
                   fmt::format("the keys of {} {} count twice in what {} attend to", axis, index, on)};
    }
    const auto unmasked = [&](const WrongRow& row) {
      Parts parts = hypotheses.seen(row);
      for (std::int64_t key = row.row + 1; key < hypotheses.end_of(row.row); ++key) {
        if (hypotheses.part_of(key) == index) parts[at].push_back(key);
      }
      return parts;
    };
    if (hypotheses.explain(unmasked)) {
      return Cause{"ring_mask", fmt::format("{} attend to all keys of {} {}, token {} to those behind it too", on, axis,
                                            index, wrong.rows.front().row)};
    }
  }
  if (hypotheses.explain([&](const WrongRow& row) { return hypotheses.seen(row); }, false)) {
    return Cause{
        "parts_not_weighed",
        fmt::format("{} hold the mean of what the keys of each rank of {} give, whatever these weigh", on, axis)};
  }
  return std::nullopt;
}

/// All that is wrong is no number, where a query sees none of the keys of some rank.
bool is_nan_of_no_key(const WrongTap& wrong, const Hypotheses& hypotheses) {
  return std::ranges::all_of(wrong.rows, [&](const WrongRow& row) {
    const Parts parts = hypotheses.seen(row);
    const bool dealt = wrong.model.plan().parallel.cp_comm == CpComm::a2a_p2p;
    const auto is_nan = [](double value) { return std::isnan(value); };
    return (dealt ? std::ranges::any_of(row.got, is_nan) : std::ranges::all_of(row.got, is_nan)) &&
           std::ranges::any_of(parts, [](const auto& keys) { return keys.empty(); });
  });
}

Cause nan_cause(const WrongTap& wrong, const Hypotheses& hypotheses) {
  return {"nan_of_no_key", fmt::format("{} hold no numbers where a rank of {} has no key that is seen",
                                       ranks_of(wrong.rows), hypotheses.axis())};
}

bool is_on_one_rank(const WrongTap& wrong) {
  const int rank = wrong.rows.front().rank;
  return std::ranges::all_of(wrong.rows, [&](const WrongRow& row) { return row.rank == rank; });
}

/// A rank of dcp that takes another's tokens for its own, or shares them out in runs of another length.
std::optional<Cause> owner_cause(const WrongTap& wrong, const Hypotheses& hypotheses) {
  const Parallel& p = hypotheses.parallel();
  const std::int64_t block_size = wrong.model.plan().workload.serving->kv_block_size;
  for (std::int64_t interleave = 1; interleave <= block_size; ++interleave) {
    if (block_size % interleave != 0) continue;
    for (int rank = 0; rank < p.dcp; ++rank) {
      for (int taken = 0; taken < p.dcp; ++taken) {
        const CacheShare share{p.dcp, interleave, taken};
        if (share == CacheShare{p.dcp, p.dcp_interleave, rank}) continue;
        if (!hypotheses.kept_by(rank, share)) continue;
        return Cause{"dcp_owner", fmt::format("dcp {} keeps the tokens that dcp {} would at interleave {}; its own at "
                                              "interleave {} are missing from what {} attend to",
                                              rank, taken, interleave, p.dcp_interleave, ranks_of(wrong.rows))};
      }
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<Cause> dcp_merge_cause(const WrongTap& wrong) {
  if (!is_on_one_rank(wrong)) return std::nullopt;
  const Hypotheses hypotheses(wrong);
  if (is_nan_of_no_key(wrong, hypotheses)) return nan_cause(wrong, hypotheses);
  return ring_cause(wrong, hypotheses);
}

std::optional<Cause> dcp_owner_cause(const WrongTap& wrong) {
  if (is_on_one_rank(wrong)) return std::nullopt;
  return owner_cause(wrong, Hypotheses(wrong));
}

std::optional<Cause> cp_cause(const WrongTap& wrong) {
  const Hypotheses hypotheses(wrong);
  if (wrong.model.plan().parallel.in_ring()) {
    if (is_nan_of_no_key(wrong, hypotheses)) return nan_cause(wrong, hypotheses);
    if (auto cause = ring_cause(wrong, hypotheses)) return cause;
  }
  if (hypotheses.explain([&](const WrongRow& row) { return hypotheses.seen_in_contiguous_shares(row); })) {
    return Cause{"cp_order", fmt::format("{} attend as if each rank of cp held one contiguous share of a sequence, "
                                         "where they hold pieces in zig-zag",
                                         ranks_of(wrong.rows))};
  }
  return std::nullopt;
}

}  // namespace shardproof::diagnosis
