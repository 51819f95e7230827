#include "emu/timeline/collective_time.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "collectives/algorithm.h"
#include "collectives/traffic.h"

namespace shardproof {
namespace {

int tree_steps(Operation operation, int nodes) {
  const auto levels = static_cast<int>(std::bit_width(static_cast<unsigned>(nodes - 1)));
  return operation == Operation::all_reduce ? 2 * levels : levels;
}

struct LinkBytes {
  double inside = 0;
  double across = 0;
};

/// The wire's bytes over the two kinds of links.
LinkBytes bytes_of_links(const GroupShape& group, Operation operation, double wire) {
  const double ranks = group.ranks, nodes = group.nodes, per_node = group.per_node;
  if (group.nodes == 1) return {wire, 0};
  if (is_point_to_point(operation)) return {0, wire};
  if (operation == Operation::all_to_all) {
    const double away = (ranks - per_node) / (ranks - 1);
    return {wire * (1 - away), wire * away};
  }
  const double whole = wire * ranks / (ranks - 1);
  return {whole * (per_node - 1) / per_node, whole * (nodes - 1) / nodes / per_node};
}

double link_seconds(const Link& link, const Efficiency& efficiency, double bytes) {
  return bytes > 0 ? efficiency.effective(bytes) / link.bytes_per_second : 0;
}

double ring_alpha(const HardwareModel& hardware, const GroupShape& group, Operation operation) {
  const bool one_step = is_point_to_point(operation) || operation == Operation::all_to_all;
  const auto inside_steps = [&](int ranks) {
    return one_step || ranks == 1 ? 1 : steps(operation, Algorithm::ring, ranks);
  };
  const Link &inside = hardware.inside, &across = hardware.across;
  if (group.nodes == 1) return inside.base_seconds + inside.step_seconds * inside_steps(group.ranks);
  return across.base_seconds +
         inside.step_seconds * (group.per_node > 1 && !one_step ? inside_steps(group.per_node) : 0) +
         across.step_seconds * (one_step ? 1 : tree_steps(operation, group.nodes));
}

}  // namespace

CollectiveTime ring_time(const HardwareModel& hardware, const GroupShape& group, Operation operation, double wire) {
  if (group.ranks <= 1) return {};
  const LinkBytes split = bytes_of_links(group, operation, wire);
  return {.alpha = ring_alpha(hardware, group, operation),
          .inside = link_seconds(hardware.inside, hardware.inside.efficiency, split.inside),
          .across = link_seconds(hardware.across, hardware.across.efficiency, split.across)};
}

CollectiveTime collective_time(const HardwareModel& hardware, const GroupShape& group, Operation operation,
                               double wire) {
  const CollectiveTime ring = ring_time(hardware, group, operation, wire);
  const Link& link = hardware.inside;
  if (operation != Operation::all_reduce || group.nodes > 1 || group.ranks <= 1 || link.direct_base_seconds == 0) {
    return ring;
  }
  const CollectiveTime direct{.alpha = link.direct_base_seconds,
                              .inside = link_seconds(link, link.direct_efficiency, wire)};
  return direct.seconds() < ring.seconds() ? direct : ring;
}

std::string describe(const HardwareModel& hardware, const GroupShape& group, Operation operation, double wire) {
  const CollectiveTime time = collective_time(hardware, group, operation, wire);
  const double moving = std::max(time.inside, time.across);
  return fmt::format("{:.3g} us + {:.4g} MB {} in {:.4g} us", time.alpha * 1e6, wire * 1e-6,
                     group.nodes == 1 ? "inside a node" : fmt::format("over {} nodes", group.nodes), moving * 1e6);
}

}  // namespace shardproof
