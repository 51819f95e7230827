#include "emu/diagnose/capture.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace shardproof {
namespace {

constexpr std::string_view kNorm = ".attention.norm";

void sort_parts(std::vector<TapPart>& parts) {
  std::ranges::stable_sort(
      parts, {}, [](const TapPart& part) { return std::tuple(part.tap, part.rank, part.placement.row_part.begin); });
}

}  // namespace

CapturingSink::CapturingSink(std::string tap) : tap_(std::move(tap)), norms_(tap_.ends_with(kNorm)) {}

template <class T>
void CapturingSink::keep(GlobalRank rank, std::string_view name, const Placement& placement,
                         ops::MatrixView<const T> part) {
  const bool mine = name == tap_;
  if (!mine && !(norms_ && name.ends_with(kNorm))) return;
  TapPart kept{.tap = std::string(name), .rank = to_int(rank), .placement = placement, .values = {}};
  kept.values.reserve(static_cast<std::size_t>(part.size()));
  for (ops::Index i = 0; i < part.rows; ++i) {
    for (const T value : part.row(i)) kept.values.push_back(static_cast<double>(value));
  }
  const std::lock_guard lock(mutex_);
  (mine ? parts_ : norm_parts_).push_back(std::move(kept));
}

void CapturingSink::tap(GlobalRank rank, std::string_view name, const Placement& placement, const TapValues& part) {
  std::visit([&](const auto& values) { keep(rank, name, placement, values); }, part);
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
