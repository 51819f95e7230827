#include "emu/timeline/efficiency.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace shardproof {

Efficiency Efficiency::flat(double share) {
  return Efficiency({{1, share}});
}

Efficiency::Efficiency(std::vector<EfficiencyPoint> points) : points_(std::move(points)) {
  if (const std::string problem = problem_of(points_); !problem.empty()) throw std::invalid_argument(problem);
}

std::string Efficiency::problem_of(const std::vector<EfficiencyPoint>& points) {
  if (points.empty()) return "no points; at least one [size, share] is needed";
  for (std::size_t i = 0; i < points.size(); ++i) {
    const auto [size, share] = points[i];
    if (!(size > 0) || !std::isfinite(size)) return fmt::format("a size of {:g}; above 0 is needed", size);
    if (!(share > 0) || share > 1) return fmt::format("a share of {:g}; above 0, at most 1, is needed", share);
    if (i == 0) continue;
    const auto [before, share_before] = points[i - 1];
    if (size <= before) return fmt::format("size {:g} after {:g}; ascending sizes are needed", size, before);
    if (size / share < before / share_before) {
      return fmt::format("{:g} at a share of {:g} would take less time than {:g} at {:g}; at most {:g} is needed", size,
                         share, before, share_before, size * share_before / before);
    }
  }
  return {};
}

double Efficiency::effective(double size) const {
  const auto above = std::ranges::find_if(points_, [&](const EfficiencyPoint& point) { return point.size > size; });
  if (above == points_.begin()) return size / above->share;
  const EfficiencyPoint& below = *std::prev(above);
  if (above == points_.end()) return size / below.share;
  const double from = below.size / below.share, to = above->size / above->share;
  return from + (to - from) * (size - below.size) / (above->size - below.size);
}

double Efficiency::share(double size) const {
  return size > 0 ? size / effective(size) : points_.front().share;
}

Efficiency Efficiency::scaled(double factor) const {
  std::vector<EfficiencyPoint> points = points_;
  for (EfficiencyPoint& point : points) point.share = std::min(1.0, point.share * factor);
  // Shares that are cut at 1 rise no faster than before, so that effective sizes still do not fall.
  return Efficiency(std::move(points));
}

}  // namespace shardproof
