// Schemes as a user writes them: each passes when it is right, and is caught and named when it is not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include "collectives/exchange_handle.h"
#include "emu/judge/scheme.h"

namespace shardproof {
namespace {

using Values = std::vector<double>;
using Counts = std::vector<std::size_t>;

double value(std::int64_t i, std::int64_t j) {
  return static_cast<double>((3 * i + 7 * j + i * j) % 11 - 5);
}

Values filled(std::int64_t rows, std::int64_t cols, const std::function<double(std::int64_t, std::int64_t)>& f) {
  Values values;
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) values.push_back(f(i, j));
  }
  return values;
}

ops::MatrixView<const double> view(const Values& values, std::int64_t rows) {
  return {values.data(), rows, rows == 0 ? 0 : std::ssize(values) / rows};
}

/// A scheme, right or wrong in one place.
struct Scheme {
  const char* name;
  Parallel parallel;
  Cluster::Program (*program)(bool wrong);
  ExpectedTaps (*expected)();
  const char* tap;    ///< that is wrong; empty: it stalls
  const char* cause;  ///< of a tap or a stall; null: a rank hands nothing in
  friend std::ostream& operator<<(std::ostream& out, const Scheme& scheme) { return out << scheme.name; }
};

ExpectedTaps one(const char* name, std::int64_t rows, std::int64_t cols,
                 const std::function<double(std::int64_t, std::int64_t)>& f) {
  ExpectedTaps expected;
  expected.add(name, rows, cols, filled(rows, cols, f));
  return expected;
}

// y = (x A) B, A split by columns and B by rows over tp.
double mlp_at(std::int64_t i, std::int64_t j) {
  double sum = 0;
  for (std::int64_t h = 0; h < 8; ++h) sum += (value(i, h) + value(i + 1, h)) * value(h, j);
  return sum;
}
Cluster::Program mlp(bool wrong) {
  return [wrong](Rank& rank) -> Task<> {
    const Range part = partition(8, rank.tp().size(), rank.at().tp);
    Values y = filled(4, 3, [&](std::int64_t i, std::int64_t j) {
      double sum = 0;
      for (std::int64_t h = part.begin; h < part.end(); ++h) sum += (value(i, h) + value(i + 1, h)) * value(h, j);
      return sum;
    });
    if (!wrong) co_await rank.tp().all_reduce(y);
    rank.tap<double>("y", view(y, 4), Placement::replicate(4, 3));
  };
}

// Rows to heads and back, as Ulysses does; each head sums over the rows before.
double ulysses_at(std::int64_t i, std::int64_t j) {
  double sum = 0;
  for (std::int64_t t = 0; t <= i; ++t) sum += value(t, j);
  return sum;
}
Cluster::Program ulysses(bool wrong) {
  return [wrong](Rank& rank) -> Task<> {
    const int n = rank.tp().size(), me = rank.at().tp;
    const std::int64_t rows = 8 / n, heads = 4 / n;
    Values sent, received(static_cast<std::size_t>(8 * heads));
    for (int to = 0; to < n; ++to) {
      for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t h = 0; h < heads; ++h) sent.push_back(value(me * rows + i, to * heads + h));
      }
    }
    co_await rank.tp().all_to_all(sent, received);
    for (std::int64_t i = 1; i < 8; ++i) {
      for (std::int64_t h = 0; h < heads; ++h) {
        received[static_cast<std::size_t>(i * heads + h)] += received[static_cast<std::size_t>((i - 1) * heads + h)];
      }
    }
    co_await rank.tp().all_to_all(received, sent);
    Values y(sent.size());
    for (int from = 0; from < n; ++from) {
      for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t h = 0; h < heads; ++h) {
          const std::int64_t to = wrong ? rows - 1 - i : i;
          y[static_cast<std::size_t>(to * 4 + from * heads + h)] =
              sent[static_cast<std::size_t>((from * rows + i) * heads + h)];
        }
      }
    }
    rank.tap<double>("context", view(y, rows), Placement::shard(0, 8, 4, {me * rows, rows}));
  };
}

// Keys and values go around the ring; every rank adds what its queries see of them.
double ring_at(std::int64_t i, std::int64_t j) {
  double sum = 0;
  for (std::int64_t t = 0; t < 8; ++t) sum += value(i, t) * value(t, j);
  return sum;
}
/// What rank `me`'s rows see of the keys that are rank `from`'s.
void add_block(int me, std::int64_t from, std::int64_t rows, const Values& keys, Values& sum) {
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t t = 0; t < rows; ++t) {
      for (std::int64_t j = 0; j < 2; ++j) {
        sum[static_cast<std::size_t>(i * 2 + j)] +=
            value(me * rows + i, from * rows + t) * keys[static_cast<std::size_t>(t * 2 + j)];
      }
    }
  }
}
Cluster::Program ring_of(bool wrong, bool taps_blocks) {
  return [=](Rank& rank) -> Task<> {
    const int n = rank.tp().size(), me = rank.at().tp;
    const std::int64_t rows = 8 / n;
    Values keys = filled(rows, 2, [&](std::int64_t i, std::int64_t j) { return value(me * rows + i, j); });
    Values sum(static_cast<std::size_t>(rows * 2)), next(keys.size());
    for (int hop = 0; hop < n; ++hop) {
      const std::int64_t from = (me - hop + n) % n;
      if (taps_blocks) {
        const std::string name = "keys." + std::to_string(hop);
        rank.tap<double>(name, view(keys, rows), Placement::shard(0, 8, 2, {from * rows, rows}));
      }
      add_block(me, from, rows, keys, sum);
      if (wrong && hop == 1) continue;  // a block is used again instead of the next
      const Send sends[] = {{keys, GroupRank{(me + 1) % n}}};
      const Recv recvs[] = {{next, GroupRank{(me + n - 1) % n}}};
      co_await rank.tp().exchange({sends, recvs});
      std::swap(keys, next);
    }
    rank.tap<double>("context", view(sum, rows), Placement::shard(0, 8, 2, {me * rows, rows}));
  };
}

Cluster::Program ring(bool wrong) {
  return ring_of(wrong, false);
}

// Each block tapped as it comes: of a wrong sum alone, expected and got do not tell which block is in it.
Cluster::Program tapped_ring(bool wrong) {
  return ring_of(wrong, true);
}
ExpectedTaps tapped_ring_expected() {
  ExpectedTaps expected;
  for (int hop = 0; hop < 4; ++hop) expected.add("keys." + std::to_string(hop), 8, 2, filled(8, 2, value));
  expected.add("context", 8, 2, filled(8, 2, ring_at));
  return expected;
}

// The same, the next block under way while the one that is here is used.
Cluster::Program overlapped_ring(bool wrong) {
  return [wrong](Rank& rank) -> Task<> {
    const int n = rank.tp().size(), me = rank.at().tp;
    const std::int64_t rows = 8 / n;
    Values keys = filled(rows, 2, [&](std::int64_t i, std::int64_t j) { return value(me * rows + i, j); });
    Values sum(static_cast<std::size_t>(rows * 2)), next(keys.size());
    for (int hop = 0; hop < n; ++hop) {
      ExchangeHandle coming;
      if (hop + 1 < n) {
        const Send sends[] = {{keys, GroupRank{(me + 1) % n}}};
        const Recv recvs[] = {{next, GroupRank{(me + n - 1) % n}}};
        coming = iexchange(rank.tp(), {sends, recvs});
      }
      const std::int64_t from = (me - hop + n) % n;
      const Values& used = wrong && hop == 1 ? next : keys;  // the block that has not been waited for
      add_block(me, from, rows, used, sum);
      if (hop + 1 == n) break;
      co_await coming;
      std::swap(keys, next);
    }
    rank.tap<double>("context", view(sum, rows), Placement::shard(0, 8, 2, {me * rows, rows}));
  };
}

// Token t goes to expert t mod n, which multiplies it.
double expert_at(std::int64_t t, std::int64_t j) {
  return value(t, j) * static_cast<double>(t % 4 + 2);
}
Cluster::Program dispatch(bool wrong) {
  return [wrong](Rank& rank) -> Task<> {
    const int n = rank.ep().size(), me = rank.at().ep;
    const std::int64_t rows = 12 / n;
    Counts to(static_cast<std::size_t>(n)), from(to.size());
    Values sent;
    std::vector<std::int64_t> order;
    for (int expert = 0; expert < n; ++expert) {
      for (std::int64_t i = 0; i < rows; ++i) {
        if ((me * rows + i) % n != expert) continue;
        order.push_back(i);
        for (std::int64_t j = 0; j < 2; ++j) sent.push_back(value(me * rows + i, j));
        to[static_cast<std::size_t>(expert)] += 2;
      }
    }
    co_await rank.ep().all_to_all(to, from);
    if (wrong && me == 0) std::rotate(from.begin(), from.begin() + 1, from.end());
    Values here(std::accumulate(from.begin(), from.end(), std::size_t{0}));
    co_await rank.ep().all_to_all_v(sent, to, here, from);
    for (double& x : here) x *= me + 2;
    co_await rank.ep().all_to_all_v(here, from, sent, to);
    Values y(sent.size());
    for (std::size_t s = 0; s < order.size(); ++s) {
      for (std::size_t j = 0; j < 2; ++j) y[static_cast<std::size_t>(order[s]) * 2 + j] = sent[s * 2 + j];
    }
    rank.tap<double>("y", view(y, rows), Placement::shard(0, 12, 2, {me * rows, rows}));
  };
}

// Stages pass microbatches on, each adding its number.
double pipeline_at(std::int64_t i, std::int64_t j) {
  return value(i, j) + 1 + 2 + 3;
}
Cluster::Program pipeline(bool wrong) {
  return [wrong](Rank& rank) -> Task<> {
    const int stages = rank.pp().size(), me = rank.at().pp;
    for (std::int64_t m = 0; m < 4; ++m) {
      Values x = filled(1, 3, [&](std::int64_t, std::int64_t j) { return value(m, j); });
      if (me > 0) co_await rank.pp().recv(x, GroupRank{me - 1});
      for (double& v : x) v += me + 1;
      if (wrong && me == 1 && m == 3) co_return;
      if (me + 1 < stages) co_await rank.pp().send(x, GroupRank{me + 1});
      if (me + 1 == stages) rank.tap<double>("y", view(x, 1), Placement::shard(0, 4, 3, {m, 1}));
    }
  };
}

// Gradients are reduced and scattered, each rank updates its shard, and the parameters are gathered.
double gradient_at(std::int64_t, std::int64_t j) {
  double sum = 0;
  for (std::int64_t r = 0; r < 4; ++r) sum += value(r, j);
  return sum;
}
Cluster::Program zero1(bool wrong) {
  return [wrong](Rank& rank) -> Task<> {
    const int n = rank.dp().size(), me = rank.at().dp;
    Values gradient = filled(1, 8, [&](std::int64_t, std::int64_t j) { return value(me, j); });
    if (wrong) co_await rank.dp().all_reduce(gradient);
    Values shard(static_cast<std::size_t>(8 / n));
    co_await rank.dp().reduce_scatter(gradient, shard);
    rank.tap<double>("gradient", view(shard, 1), Placement::shard(1, 1, 8, {me * 8 / n, 8 / n}));
    for (double& g : shard) g = 1 - 2 * g;
    Values parameters(8);
    co_await rank.dp().all_gather(shard, parameters);
    rank.tap<double>("parameters", view(parameters, 1), Placement::replicate(1, 8));
  };
}
ExpectedTaps zero1_expected() {
  ExpectedTaps expected = one("gradient", 1, 8, gradient_at);
  expected.add("parameters", 1, 8,
               filled(1, 8, [](std::int64_t i, std::int64_t j) { return 1 - 2 * gradient_at(i, j); }));
  return expected;
}

// C = A B on a grid, blocks broadcast along rows and columns of it.
double summa_at(std::int64_t i, std::int64_t j) {
  double sum = 0;
  for (std::int64_t k = 0; k < 4; ++k) sum += value(i, k) * value(k, j);
  return sum;
}
Cluster::Program summa(bool wrong) {
  return [wrong](Rank& rank) -> Task<> {
    const int row = rank.at().dp, col = rank.at().tp;
    const auto block = [](int r, int c) {
      return filled(2, 2, [&](std::int64_t i, std::int64_t j) { return value(2 * r + i, 2 * c + j); });
    };
    Values sum(4);
    for (int k = 0; k < 2; ++k) {
      Values a = block(row, col), b = block(row, col);
      co_await rank.tp().broadcast(a, GroupRank{k});
      co_await rank.dp().broadcast(b, GroupRank{wrong ? 1 - k : k});
      for (std::size_t i = 0; i < 2; ++i) {
        for (std::size_t j = 0; j < 2; ++j) sum[2 * i + j] += a[2 * i] * b[j] + a[2 * i + 1] * b[2 + j];
      }
    }
    rank.tap<double>("c", view(sum, 2), Placement{4, 4, {2 * row, 2}, {2 * col, 2}});
  };
}

// Ranks lie on a grid, each with the block at its place; wrong, with the one at its place turned over.
Cluster::Program grid(bool wrong) {
  return [wrong](Rank& rank) -> Task<> {
    const int row = rank.at().dp, col = rank.at().tp;
    const Values block = filled(2, 2, [&](std::int64_t i, std::int64_t j) {
      return value(2 * (wrong ? col : row) + i, 2 * (wrong ? row : col) + j);
    });
    rank.tap<double>("c", view(block, 2), Placement{4, 4, {2 * row, 2}, {2 * col, 2}});
    co_return;
  };
}

// Parameters lie in shards and are gathered where they are used.
Cluster::Program fsdp(bool wrong) {
  return [wrong](Rank& rank) -> Task<> {
    const int n = rank.dp().size(), me = rank.at().dp;
    const int shard_of = wrong ? n - 1 - me : me;
    Values shard = filled(8 / n, 3, [&](std::int64_t i, std::int64_t j) { return value(shard_of * 8 / n + i, j); });
    Values whole(24);
    co_await rank.dp().all_gather(shard, whole);
    rank.tap<double>("weight", view(whole, 8), Placement::replicate(8, 3));
  };
}

// Each rank norms its rows of the stream; here it doubles them.
Cluster::Program sequence_parallel(bool wrong) {
  return [wrong](Rank& rank) -> Task<> {
    const Range own = partition(7, rank.tp().size(), rank.at().tp);
    Values mine = filled(own.count, 2, [&](std::int64_t i, std::int64_t j) { return 2 * value(own.begin + i, j); });
    if (wrong && rank.at().tp == 1) std::swap_ranges(mine.begin(), mine.begin() + 2, mine.begin() + 2);
    Counts counts;
    for (int r = 0; r < rank.tp().size(); ++r) {
      counts.push_back(static_cast<std::size_t>(2 * partition(7, rank.tp().size(), r).count));
    }
    Values all(14);
    co_await rank.tp().all_gather_v(mine, all, counts);
    rank.tap<double>("stream", view(all, 7), Placement::replicate(7, 2));
  };
}

// Each rank looks up the ids of its slice of the vocabulary: a partial sum.
Cluster::Program vocabulary_parallel(bool wrong) {
  return [wrong](Rank& rank) -> Task<> {
    const Range slice = partition(6, rank.tp().size(), rank.at().tp);
    const Values rows = filled(
        6, 2, [&](std::int64_t i, std::int64_t j) { return i >= slice.begin && i < slice.end() ? value(i, j) : 0.0; });
    if (wrong && rank.at().tp == 1) co_return;
    rank.tap<double>("embedding", view(rows, 6), Placement::partial_sum(6, 2, Axis::tp));
  };
}

// Query heads are split over tp, of fewer key-value heads every rank holds the one that its own share.
Cluster::Program grouped_query(bool wrong) {
  return [wrong](Rank& rank) -> Task<> {
    const int me = rank.at().tp, kv = (wrong ? 1 - me / 2 : me / 2);
    const Values y = filled(3, 1, [&](std::int64_t i, std::int64_t) { return value(i, 10 + kv); });
    rank.tap<double>("context", view(y, 3), Placement::shard(1, 3, 4, {me, 1}));
    co_return;
  };
}

// Replicas of an expert share its tokens; their outputs are whole.
Cluster::Program expert_replicas(bool wrong) {
  return [wrong](Rank& rank) -> Task<> {
    Values y = filled(4, 2, [&](std::int64_t i, std::int64_t j) { return rank.at().ep == i % 2 ? value(i, j) : 0.0; });
    co_await rank.ep().all_reduce(y);
    if (wrong) co_await rank.edp().all_reduce(y);
    rank.tap<double>("y", view(y, 4), Placement::replicate(4, 2));
  };
}

// Gradients are averaged over dp, in two buckets.
Cluster::Program buckets(bool wrong) {
  return [wrong](Rank& rank) -> Task<> {
    Values gradient = filled(1, 8, [&](std::int64_t, std::int64_t j) { return 4 * value(rank.at().dp, j); });
    const ReduceOptions average{.reduction = wrong ? Reduction::sum : Reduction::average};
    co_await rank.dp().all_reduce(std::span(gradient).first(5), average);
    co_await rank.dp().all_reduce(std::span(gradient).subspan(5), average);
    rank.tap<double>("gradient", view(gradient, 1), Placement::replicate(1, 8));
  };
}

// Rank r holds the chunks r and 2 n - 1 - r of the rows: two blocks.
Cluster::Program zig_zag(bool wrong) {
  return [wrong](Rank& rank) -> Task<> {
    const int n = rank.cp().size(), me = rank.at().cp;
    for (const int chunk : {me, 2 * n - 1 - me}) {
      const int holds = wrong && chunk >= n ? 3 * n - 1 - chunk : chunk;
      const Values rows = filled(2, 2, [&](std::int64_t i, std::int64_t j) { return value(2 * holds + i, j); });
      rank.tap<double>("k", view(rows, 2), Placement::shard(0, 4 * n, 2, {2 * chunk, 2}));
    }
    co_return;
  };
}

const Scheme kSchemes[] = {
    {"Mlp", {.tp = 4}, mlp, [] { return one("y", 4, 3, mlp_at); }, "y", "reduction_dropped"},
    {"Ulysses", {.tp = 4}, ulysses, [] { return one("context", 8, 4, ulysses_at); }, "context", "rows_permuted"},
    {"RingAttention", {.tp = 4}, ring, [] { return one("context", 8, 2, ring_at); }, "context", "unknown"},
    {"TappedRing", {.tp = 4}, tapped_ring, tapped_ring_expected, "keys.2", "rows_permuted"},
    {"Grid", {.tp = 2, .dp = 2}, grid, [] { return one("c", 4, 4, value); }, "c", "blocks_permuted"},
    {"OverlappedRing",
     {.tp = 4},
     overlapped_ring,
     [] { return one("context", 8, 2, ring_at); },
     "context",
     "not_finite"},
    {"Dispatch", {.dp = 4, .ep = 4}, dispatch, [] { return one("y", 12, 2, expert_at); }, "", "split_sizes"},
    {"Pipeline", {.pp = 3}, pipeline, [] { return one("y", 4, 3, pipeline_at); }, "", "message_lost"},
    {"ZeroOne", {.dp = 4}, zero1, zero1_expected, "gradient", "counted_n_times"},
    {"Summa", {.tp = 2, .dp = 2}, summa, [] { return one("c", 4, 4, summa_at); }, "c", "unknown"},
    {"Fsdp", {.dp = 4}, fsdp, [] { return one("weight", 8, 3, value); }, "weight", "rows_permuted"},
    {"SequenceParallel",
     {.tp = 3},
     sequence_parallel,
     [] { return one("stream", 7, 2, [](std::int64_t i, std::int64_t j) { return 2 * value(i, j); }); },
     "stream",
     "rows_permuted"},
    {"VocabularyParallel",
     {.tp = 3},
     vocabulary_parallel,
     [] { return one("embedding", 6, 2, value); },
     "embedding",
     nullptr},
    {"GroupedQuery",
     {.tp = 4},
     grouped_query,
     [] { return one("context", 3, 4, [](std::int64_t i, std::int64_t j) { return value(i, 10 + j / 2); }); },
     "context",
     "blocks_permuted"},
    {"ExpertReplicas",
     {.dp = 4, .ep = 2},
     expert_replicas,
     [] { return one("y", 4, 2, value); },
     "y",
     "counted_n_times"},
    {"Buckets", {.dp = 4}, buckets, [] { return one("gradient", 1, 8, gradient_at); }, "gradient", "counted_n_times"},
    {"ZigZag", {.cp = 4}, zig_zag, [] { return one("k", 16, 2, value); }, "k", "rows_permuted"},
};

class Schemes : public ::testing::TestWithParam<Scheme> {};

TEST_P(Schemes, PassWhenTheyAreRightUnderEverySchedule) {
  const Scheme& scheme = GetParam();

  const VerifyReport report =
      verify_scheme(scheme.parallel, scheme.program(false), scheme.expected(), {.schedules = 20});

  EXPECT_EQ(report.verdict, Verdict::pass) << (report.stall              ? report.stall->text
                                               : report.first_divergence ? report.first_divergence->message
                                                                         : "");
}

TEST_P(Schemes, AreCaughtAndNamedWhenTheyAreWrong) {
  const Scheme& scheme = GetParam();

  const VerifyReport report = verify_scheme(scheme.parallel, scheme.program(true), scheme.expected());

  if (*scheme.tap == '\0') {
    ASSERT_EQ(report.verdict, Verdict::deadlock);
    EXPECT_EQ(report.stall->cause.name, scheme.cause) << report.stall->cause.evidence;
    EXPECT_EQ(report.stall->graph.has_value(), report.stall->kind == StallKind::deadlock);
    return;
  }
  ASSERT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, scheme.tap);
  if (scheme.cause == nullptr) {
    EXPECT_EQ(report.first_divergence->verdict, TapVerdict::missing);
    EXPECT_FALSE(report.first_divergence->ranks.empty());
    return;
  }
  ASSERT_TRUE(report.first_divergence->cause.has_value());
  EXPECT_EQ(report.first_divergence->cause->name, scheme.cause) << report.first_divergence->cause->evidence;
}

INSTANTIATE_TEST_SUITE_P(Users, Schemes, ::testing::ValuesIn(kSchemes),
                         [](const auto& tested) { return tested.param.name; });

}  // namespace
}  // namespace shardproof
