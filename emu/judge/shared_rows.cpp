#include "emu/judge/shared_rows.h"

#include <algorithm>
#include <type_traits>
#include <variant>

namespace shardproof {

SharedRowsSink::SharedRowsSink(const TokenMap& tokens, TapSink& sink) : tokens_(tokens.tokens()), sink_(sink) {
  for (const TokenMap::SharedRows& shared : tokens.shared_rows()) {
    for (std::int64_t i = 0; i < shared.rows.count; ++i) {
      rows_for_[shared.run_as + i].push_back(shared.rows.begin + i);
    }
  }
}

void SharedRowsSink::tap(GlobalRank rank, const TapKey& key, const Placement& placement, const TapValues& part) {
  sink_.tap(rank, key, placement, part);
  // Of a tensor of slots, a token has several rows.
  const std::int64_t each = placement.rows / tokens_;
  std::vector<std::int64_t> places, rows;
  for (std::int64_t i = 0; i < placement.row_part.count; ++i) {
    const std::int64_t row = placement.row(i);
    const auto shared = rows_for_.find(row / each);
    if (shared == rows_for_.end()) continue;
    for (const std::int64_t token : shared->second) {
      places.push_back(i);
      rows.push_back(token * each + row % each);
    }
  }
  if (rows.empty()) return;
  std::visit(
      [&]<class T>(ops::MatrixView<const T> values) {
        ops::Matrix<std::remove_const_t<T>> copies(std::ssize(rows), values.cols);
        for (std::int64_t i = 0; i < copies.rows(); ++i) {
          std::ranges::copy(values.row(places[static_cast<std::size_t>(i)]), copies.row(i).begin());
        }
        Placement theirs = placement;
        theirs.row_part = {0, std::ssize(rows)};
        theirs.row_list = rows;
        const ops::Matrix<std::remove_const_t<T>>& handed = copies;
        sink_.tap(rank, key, theirs, handed.view());
      },
      part);
}

}  // namespace shardproof
