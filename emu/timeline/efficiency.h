// The share of a peak that work of a size reaches: of a product its flops, of a copy or a message its bytes.
//
// A table of points. Between two of them the *effective* size (size / share: what the work would be at the full peak)
// is interpolated linearly, below the first and above the last the share stays. So effective sizes never fall as work
// grows, which the constructor demands of the points: more work never takes less time.
//
// Example: {{1e6, 0.25}, {1e8, 0.8}}: 1e6 bytes count as 4e6, 1e8 as 1.25e8, and what lies between as between them.
#pragma once

#include <string>
#include <vector>

namespace shardproof {

struct EfficiencyPoint {
  double size = 0;
  double share = 1;  ///< 0 < share <= 1
  bool operator==(const EfficiencyPoint&) const = default;
};

class Efficiency {
 public:
  /// Everything at the full peak.
  Efficiency() = default;
  /// The same share at any size.
  static Efficiency flat(double share);
  /// Sizes ascend, shares lie in (0, 1], size / share does not fall; else throws std::invalid_argument (see
  /// problem_of).
  explicit Efficiency(std::vector<EfficiencyPoint> points);
  /// What is wrong with the points; empty when nothing is.
  static std::string problem_of(const std::vector<EfficiencyPoint>& points);

  /// size / share(size): 0 for 0, never falls.
  double effective(double size) const;
  double share(double size) const;
  /// Every share times the factor, at most 1.
  Efficiency scaled(double factor) const;
  const std::vector<EfficiencyPoint>& points() const { return points_; }

 private:
  std::vector<EfficiencyPoint> points_{{1, 1}};
};

}  // namespace shardproof
