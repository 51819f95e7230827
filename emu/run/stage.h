// What one rank carries through one microbatch: who it is, which rows it has, and how it reports what it does.
#pragma once

#include <fmt/format.h>

#include <cassert>
#include <string>
#include <string_view>
#include <vector>

#include "emu/run/transformer.h"
#include "ops/cost.h"
#include "ops/rope.h"
#include "ops/threads.h"

namespace shardproof {

/// "layer.3.attention.q"; without a layer (-1) the name alone.
inline std::string tap_name(int layer, std::string_view name) {
  return layer < 0 ? std::string(name) : fmt::format("layer.{}.{}", layer, name);
}

/// The rank's place in the run, for one microbatch. Row ranges are places among the rows of its attention.
template <class T>
struct Stage {
  Rank& rank;
  const TransformerProgram<T>& program;
  const Layout& layout;
  const RankTokens& tokens;
  const ops::RopeTable<T>& rope;  // of every position in the microbatch
  int microbatch_index = 0;

  const ModelConfig& model() const { return program.model; }
  const LayerLayout& layer_layout(int layer) const { return layout.layer(program.model, layer); }
  ops::Format format() const { return program.format; }
  std::int64_t rows() const { return tokens.rows.count(); }
  /// The rows that belong to this rank alone within its tp group: its sequence-parallel shard, and the tokens it
  /// routes.
  Range own_rows() const { return tokens.own; }
  /// The rows of the residual stream that this rank holds.
  Range stream_rows() const { return tokens.stream; }

  /// Element counts of every tp rank's own rows, `width` elements each.
  std::vector<std::size_t> own_counts(std::int64_t width) const {
    std::vector<std::size_t> counts;
    for (const std::int64_t count : tokens.own_counts) counts.push_back(static_cast<std::size_t>(count * width));
    return counts;
  }

  /// One call for each run of the rows.
  template <class U>
  void tap(int layer, std::string_view name, ops::MatrixView<const U> part, Range part_rows, std::int64_t cols,
           Range part_cols) const {
    if (!rank.tapped()) return;
    assert(part.rows == part_rows.count);
    std::int64_t first = 0;
    for (const Range& run : tokens.rows.part(part_rows).runs) {
      rank.tap<U>(tap_name(layer, name), part.row_range(first, run.count),
                  Placement{program.deployment.tokens.tokens(), cols, run, part_cols, {}});
      first += run.count;
    }
  }
  template <class U>
  void tap(int layer, std::string_view name, const ops::Matrix<U>& part, Range part_rows) const {
    tap<U>(layer, name, part.view(), part_rows, part.cols(), {0, part.cols()});
  }

  void record(std::string_view op, int layer, std::int64_t rows_, std::int64_t cols, ops::Cost cost,
              int expert = -1) const {
    rank.trace().ops.push_back({.op = op,
                                .layer = layer,
                                .microbatch = microbatch_index,
                                .expert = expert,
                                .rows = rows_,
                                .cols = cols,
                                .flops = cost.flops,
                                .bytes = cost.bytes,
                                .collectives = rank.collectives_done()});
  }
  /// To be held around a call of an op, and across no co_await.
  ops::ThreadScope op_threads() const { return ops::ThreadScope(program.threads_per_rank); }
  int element_bytes() const { return ops::bytes_per_element(program.format); }
};

}  // namespace shardproof
