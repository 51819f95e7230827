// Compiled with contraction on, as gemm.cpp is: `exact` takes the other road.
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "ops/internal/attend.h"
#include "ops/internal/attention_tile.h"
#include "ops/internal/panel.h"

namespace shardproof::ops {

namespace {

using simd::Vec;
using tiles::kKeys;
using tiles::kQueries;
using tiles::Tile;

constexpr Index kLineBytes = 64;
/// Tokens whose rows are asked for ahead: rows of one head among several lie apart, and the processor's prefetcher
/// stops at every page.
constexpr Index kTokensAhead = 16;

/// Into the second level: rows of tokens lie a power of two apart, so that the first has room for a few of them only,
/// and would drop keys for values that are asked for before these are read.
template <class T>
void ask_for(const T* row, Index count) {
  constexpr int kSecondLevel = 2;
  for (Index d = 0; d < count; d += kLineBytes / static_cast<Index>(sizeof(T))) {
    __builtin_prefetch(row + d, 0, kSecondLevel);
  }
}

template <class T>
using KeysOfLanes = std::array<const T*, static_cast<std::size_t>(simd::kLanes<T>)>;

/// scores(i, l) = queries.row(i) . keys[l], each one chain along the depth, as in panel::multiply.
template <class T, std::size_t kRows>
void score(const T* queries, Index stride, const KeysOfLanes<T>& keys, Index depth, T* scores) {
  constexpr auto kL = static_cast<std::size_t>(simd::kLanes<T>);
  Vec<T> sum[kRows];
  SHARDPROOF_UNROLL
  for (std::size_t i = 0; i < kRows; ++i) sum[i] = Vec<T>{};
  const auto step = [&](Index d, Vec<T> lane) {
    SHARDPROOF_UNROLL
    for (std::size_t i = 0; i < kRows; ++i) {
      sum[i] = simd::broadcast<T>(queries[static_cast<Index>(i) * stride + d]) * lane + sum[i];
    }
  };
  Index d = 0;
  for (; d + simd::kLanes<T> <= depth; d += simd::kLanes<T>) {
    Vec<T> lanes[kL];
    SHARDPROOF_UNROLL
    for (std::size_t l = 0; l < kL; ++l) lanes[l] = simd::load<T>(keys[l] + d);
    tiles::transpose<T, 1>(lanes, std::make_integer_sequence<int, static_cast<int>(kL)>{});
    SHARDPROOF_UNROLL
    for (std::size_t l = 0; l < kL; ++l) step(d + static_cast<Index>(l), lanes[l]);
  }
  for (; d < depth; ++d) {
    std::array<T, kL> lane;
    for (std::size_t l = 0; l < kL; ++l) lane[l] = keys[l][d];
    step(d, simd::load<T>(lane.data()));
  }
  for (std::size_t i = 0; i < kRows; ++i) simd::store<T>(scores + static_cast<Index>(i) * kKeys, sum[i]);
}

template <class T>
using Score = void (*)(const T*, Index, const KeysOfLanes<T>&, Index, T*);

template <class T, std::size_t... kRow>
constexpr std::array<Score<T>, sizeof...(kRow)> scores_of(std::index_sequence<kRow...>) {
  return {&score<T, kRow + 1>...};
}

/// The token's heads that share a head of keys, kQueries at most of them.
template <class T>
struct Heads {
  Tile<T> tile;
  Index first, count;
};

template <class T>
struct KvHead {
  TokenRowsOf<T> keys, values;
  std::vector<Heads<T>> heads;
};

/// Tokens `begin` to `end` of a tile of keys, of which the first `hidden` are not seen; the sequence ends with `last`.
struct Seen {
  Index begin, end, hidden, last;
  Index count() const { return end - begin; }
};

template <class T>
void score_tile(KvHead<T>& kv, const Seen& seen) {
  static constexpr auto kScores = scores_of<T>(std::make_index_sequence<static_cast<std::size_t>(panel::kRows)>{});
  constexpr Index kL = simd::kLanes<T>;
  const Index width = kv.keys.cols(), value_width = kv.values.cols();
  for (Index j = seen.hidden / kL * kL; j < seen.count(); j += kL) {
    KeysOfLanes<T> keys;
    for (Index l = 0; l < kL; ++l) {
      const Index token = seen.begin + j + l, last = seen.end - 1;
      // What lies beyond the last is not kept.
      keys[static_cast<std::size_t>(l)] = kv.keys.row(std::min(token, last));
      ask_for(kv.keys.row(std::min(token + kTokensAhead, seen.last)), width);
      ask_for(kv.values.row(std::min(token, last)), value_width);
    }
    for (Heads<T>& heads : kv.heads) {
      for (Index i = 0; i < heads.count; i += panel::kRows) {
        const Index rows = std::min(panel::kRows, heads.count - i);
        kScores[static_cast<std::size_t>(rows - 1)](heads.tile.queries.row(i).data(), width, keys, width,
                                                    heads.tile.scores.row(i).data() + j);
      }
    }
  }
}

template <class T>
void add_values(KvHead<T>& kv, const Seen& seen, Index column) {
  for (Index j = seen.hidden; j < seen.count();) {
    const Index run = std::min(seen.count() - j, kv.values.run(seen.begin + j));
    const T* const values = kv.values.row(seen.begin + j) + column;
    for (Heads<T>& heads : kv.heads) {
      for (Index i = 0; i < heads.count; i += panel::kRows) {
        panel::multiply<T>(heads.tile.scores.row(i).data() + j, kKeys, std::min(panel::kRows, heads.count - i), values,
                           kv.values.rows.stride, run, panel::Start::sum_so_far,
                           heads.tile.context.row(i).data() + column, heads.tile.context.cols());
      }
    }
    j += run;
  }
}

/// The last columns of a value, fewer than a panel has: copied beside zeros.
template <class T>
void add_last_values(KvHead<T>& kv, const Seen& seen, Index column) {
  constexpr Index kWidth = panel::kWidth<T>;
  Matrix<T> packed = Matrix<T>::zeros(seen.count(), kWidth);
  for (Index j = seen.hidden; j < seen.count(); ++j) {
    std::copy_n(kv.values.row(seen.begin + j) + column, kv.values.cols() - column, packed.row(j).data());
  }
  for (Heads<T>& heads : kv.heads) {
    for (Index i = 0; i < heads.count; i += panel::kRows) {
      panel::multiply<T>(heads.tile.scores.row(i).data() + seen.hidden, kKeys, std::min(panel::kRows, heads.count - i),
                         packed.row(seen.hidden).data(), kWidth, seen.count() - seen.hidden, panel::Start::sum_so_far,
                         heads.tile.context.row(i).data() + column, heads.tile.context.cols());
    }
  }
}

template <class T>
void attend_tile(KvHead<T>& kv, const Seen& seen) {
  score_tile(kv, seen);
  for (Heads<T>& heads : kv.heads) {
    for (Index i = 0; i < heads.count; ++i) tiles::soften(heads.tile, i, seen.hidden, seen.count());
  }
  const Index whole = kv.values.cols() / panel::kWidth<T> * panel::kWidth<T>;
  for (Index d = 0; d < whole; d += panel::kWidth<T>) add_values(kv, seen, d);
  if (whole < kv.values.cols()) add_last_values(kv, seen, whole);
}

}  // namespace

template <class T>
void attend_from_one(std::span<const T> q, TokenRowsOf<T> k, TokenRowsOf<T> v, Index kv_heads, Index past,
                     const HeadOptions<T>& options, Format format, std::span<T> out) {
  const Index width = k.cols() / kv_heads, value_width = v.cols() / kv_heads;
  const Index group = static_cast<Index>(q.size()) / k.cols();
  std::vector<KvHead<T>> all;
  for (Index kv = 0; kv < kv_heads; ++kv) {
    KvHead<T>& of =
        all.emplace_back(KvHead<T>{k.columns(kv * width, width), v.columns(kv * value_width, value_width), {}});
    for (Index first = 0; first < group; first += kQueries) {
      const Index count = std::min(kQueries, group - first);
      Heads<T>& heads = of.heads.emplace_back(Heads<T>{Tile<T>(width, value_width, count), kv * group + first, count});
      for (Index i = 0; i < count; ++i) {
        tiles::begin_row(heads.tile, i, q.data() + (heads.first + i) * width, heads.first + i, options);
      }
    }
  }
  for (Index begin = tiles::first_tile(past, options.window); begin <= past; begin += kKeys) {
    const Index end = std::min(begin + kKeys, past + 1);
    const Seen seen{begin, end, std::clamp(past + 1 - options.window - begin, Index{0}, end - begin), past};
    for (KvHead<T>& kv : all) attend_tile(kv, seen);
  }
  simd::with_rounding<T>(format, [&](auto rounding) {
    for (const KvHead<T>& kv : all) {
      for (const Heads<T>& heads : kv.heads) {
        for (Index i = 0; i < heads.count; ++i) {
          tiles::end_row(heads.tile, i, value_width, rounding, out.data() + (heads.first + i) * value_width);
        }
      }
    }
  });
}

template void attend_from_one(std::span<const float>, TokenRowsOf<float>, TokenRowsOf<float>, Index, Index,
                              const HeadOptions<float>&, Format, std::span<float>);
template void attend_from_one(std::span<const double>, TokenRowsOf<double>, TokenRowsOf<double>, Index, Index,
                              const HeadOptions<double>&, Format, std::span<double>);

}  // namespace shardproof::ops
