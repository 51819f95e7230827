#include "emu/run/slot_board.h"

#include <cstddef>
#include <numeric>
#include <utility>

namespace shardproof {

void SlotBoard::post(int rank, const Dispatch& dispatch, std::vector<std::int64_t> slots,
                     std::vector<std::int64_t> to_each) {
  const std::lock_guard lock(mutex_);
  posted_[{dispatch.layer, dispatch.microbatch, rank}] = {std::move(slots), std::move(to_each)};
}

std::vector<std::int64_t> SlotBoard::arriving(int rank, const Dispatch& dispatch) const {
  const auto place = static_cast<std::ptrdiff_t>(mesh_.coordinates(rank).ep);
  std::vector<std::int64_t> slots;
  const std::lock_guard lock(mutex_);
  for (const int sender : mesh_.group(Axis::ep, rank)) {
    const auto found = posted_.find({dispatch.layer, dispatch.microbatch, sender});
    if (found == posted_.end() || place >= std::ssize(found->second.to_each)) continue;
    const Posted& sent = found->second;
    const std::int64_t begin = std::accumulate(sent.to_each.begin(), sent.to_each.begin() + place, std::int64_t{0});
    const auto first = sent.slots.begin() + begin;
    slots.insert(slots.end(), first, first + sent.to_each[static_cast<std::size_t>(place)]);
  }
  return slots;
}

std::vector<std::int64_t> SlotBoard::arriving_over_etp(int rank, const Dispatch& dispatch) const {
  std::vector<std::int64_t> slots;
  for (const int member : mesh_.group(Axis::etp, rank)) {
    const std::vector<std::int64_t> its = arriving(member, dispatch);
    slots.insert(slots.end(), its.begin(), its.end());
  }
  return slots;
}

}  // namespace shardproof
