#include "emu/plan/expert_map.h"

#include <algorithm>
#include <functional>
#include <set>
#include <utility>

namespace shardproof {
namespace {

/// Who comes next: whose value is before the others', the lower one of two that are equal.
template <typename Before>
class Line {
 public:
  explicit Line(const std::vector<double>& values) {
    for (std::size_t who = 0; who < values.size(); ++who) waiting_.emplace(values[who], who);
  }

  std::size_t take_first() { return waiting_.extract(waiting_.begin()).value().second; }
  void put_back(std::size_t who, double value) { waiting_.emplace(value, who); }

 private:
  using Entry = std::pair<double, std::size_t>;
  struct Order {
    bool operator()(const Entry& a, const Entry& b) const {
      return a.first == b.first ? a.second < b.second : Before{}(a.first, b.first);
    }
  };
  std::set<Entry, Order> waiting_;
};

/// Redundant copies go one at a time to the expert that has the most slots a replica, the lower one of two.
std::vector<std::int64_t> copies(const std::vector<double>& slots, std::int64_t redundant) {
  std::vector<std::int64_t> count(slots.size(), 1);
  Line<std::greater<>> line(slots);
  for (std::int64_t r = 0; r < redundant; ++r) {
    const std::size_t busiest = line.take_first();
    ++count[busiest];
    line.put_back(busiest, slots[busiest] / static_cast<double>(count[busiest]));
  }
  return count;
}

/// Physical experts, the busiest first, each to the rank with the least to do that has room, the lower one of two.
std::vector<std::int64_t> pack(const std::vector<double>& slots, const std::vector<std::int64_t>& count, int ep) {
  struct Copy {
    double load;
    std::int64_t expert;
  };
  std::vector<Copy> all;
  for (std::size_t e = 0; e < slots.size(); ++e) {
    for (std::int64_t c = 0; c < count[e]; ++c) {
      all.push_back({slots[e] / static_cast<double>(count[e]), static_cast<std::int64_t>(e)});
    }
  }
  std::ranges::stable_sort(all, [](const Copy& a, const Copy& b) { return a.load > b.load; });
  std::vector<std::vector<std::int64_t>> ranks(static_cast<std::size_t>(ep));
  std::vector<double> load(ranks.size(), 0);
  Line<std::less<>> line(load);
  for (const Copy& copy : all) {
    const auto room = [&](std::size_t r) {
      return partition(std::ssize(all), ep, static_cast<std::int64_t>(r)).count - std::ssize(ranks[r]);
    };
    std::size_t to = line.take_first();
    while (room(to) == 0) to = line.take_first();
    ranks[to].push_back(copy.expert);
    load[to] += copy.load;
    line.put_back(to, load[to]);
  }
  std::vector<std::int64_t> logical;
  for (const std::vector<std::int64_t>& rank : ranks) logical.insert(logical.end(), rank.begin(), rank.end());
  return logical;
}

}  // namespace

ExpertMap::ExpertMap(std::vector<std::int64_t> logical, std::int64_t experts)
    : logical_(std::move(logical)), replicas_(static_cast<std::size_t>(experts)) {
  for (std::size_t p = 0; p < logical_.size(); ++p) {
    replicas_[static_cast<std::size_t>(logical_[p])].push_back(static_cast<std::int32_t>(p));
  }
}

std::int32_t ExpertMap::choose(std::int64_t expert, std::int64_t row, Range own, ExpertPlacement::Replica rule) const {
  const std::span<const std::int32_t> all = replicas(expert);
  if (rule == ExpertPlacement::Replica::nearest) {
    const auto near = std::ranges::lower_bound(all, own.begin);
    if (near != all.end() && *near < own.end()) return *near;
  }
  return all[static_cast<std::size_t>(row % std::ssize(all))];
}

std::vector<std::int64_t> ExpertMap::spread(std::span<const std::int64_t> slots) const {
  std::vector<std::int64_t> physical(logical_.size(), 0);
  for (std::size_t e = 0; e < replicas_.size(); ++e) {
    const std::vector<std::int32_t>& all = replicas_[e];
    for (std::size_t i = 0; i < all.size(); ++i) {
      physical[static_cast<std::size_t>(all[i])] =
          partition(slots[e], std::ssize(all), static_cast<std::int64_t>(i)).count;
    }
  }
  return physical;
}

ExpertMap make_expert_map(const ExpertPlacement& placement, std::int64_t experts, int ep,
                          std::span<const std::int64_t> slots, std::int64_t row) {
  const std::int64_t physical = experts + placement.redundant;
  std::vector<std::int64_t> logical;
  switch (placement.map) {
    case ExpertPlacement::Map::linear:
      for (std::int64_t p = 0; p < physical; ++p) logical.push_back(p % experts);
      break;
    case ExpertPlacement::Map::round_robin:
      for (std::int64_t rank = 0; rank < ep; ++rank) {
        for (std::int64_t p = rank; p < physical; p += ep) logical.push_back(p % experts);
      }
      break;
    case ExpertPlacement::Map::balanced: {
      std::vector<double> load(static_cast<std::size_t>(experts), 1);
      if (!slots.empty()) load.assign(slots.begin(), slots.end());
      logical = pack(load, copies(load, placement.redundant), ep);
      break;
    }
    case ExpertPlacement::Map::given:
      logical = placement.given[placement.given.size() == 1 ? 0 : static_cast<std::size_t>(row)];
      break;
  }
  return {std::move(logical), experts};
}

}  // namespace shardproof
