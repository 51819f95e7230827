#include "emu/diagnose/capture.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace shardproof {
namespace {

void sort_parts(std::vector<TapPart>& parts) {
  std::ranges::stable_sort(parts, {}, [](const TapPart& part) {
    return std::tuple(part.tap.layer, part.rank, part.placement.row_part.begin);
  });
}

}  // namespace

template <class T>
void CapturingSink::keep(GlobalRank rank, const TapId& id, const Placement& placement, ops::MatrixView<const T> part) {
  const bool mine = id == tap_;
  const bool norms = tap_.kind == TapKind::attention_norm;
  if (!mine && !(norms && id.kind == tap_.kind)) return;
  TapPart kept{.tap = id, .rank = to_int(rank), .placement = placement, .values = {}};
  kept.values.reserve(static_cast<std::size_t>(part.size()));
  for (ops::Index i = 0; i < part.rows; ++i) {
    for (const T value : part.row(i)) kept.values.push_back(static_cast<double>(value));
  }
  const std::lock_guard lock(mutex_);
  (mine ? parts_ : norm_parts_).push_back(std::move(kept));
}

void CapturingSink::tap(GlobalRank rank, const TapKey& key, const Placement& placement, const TapValues& part) {
  if (!key.name.empty()) return;
  std::visit([&](const auto& values) { keep(rank, key.id, placement, values); }, part);
}

const std::vector<TapPart>& CapturingSink::parts() {
  sort_parts(parts_);
  return parts_;
}

const std::vector<TapPart>& CapturingSink::norm_parts() {
  sort_parts(norm_parts_);
  return norm_parts_;
}

}  // namespace shardproof
