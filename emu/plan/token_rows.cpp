#include "emu/plan/token_rows.h"

#include <algorithm>

namespace shardproof {

std::int64_t TokenRows::count() const {
  std::int64_t sum = 0;
  for (const Range& run : runs) sum += run.count;
  return sum;
}

std::int64_t TokenRows::operator[](std::int64_t place) const {
  std::size_t i = 0;
  for (; i + 1 < runs.size() && place >= runs[i].count; ++i) place -= runs[i].count;
  return runs[i].begin + place;
}

std::optional<std::int64_t> TokenRows::place_of(std::int64_t row) const {
  std::int64_t first = 0;
  for (const Range& run : runs) {
    if (row >= run.begin && row < run.end()) return first + row - run.begin;
    first += run.count;
  }
  return std::nullopt;
}

TokenRows TokenRows::part(Range places) const {
  std::vector<Range> parts;
  std::int64_t first = 0;
  for (const Range& run : runs) {
    const std::int64_t begin = std::max(places.begin, first);
    const std::int64_t end = std::min(places.end(), first + run.count);
    if (begin < end) parts.push_back({run.begin + begin - first, end - begin});
    first += run.count;
  }
  if (parts.empty()) parts.push_back({(*this)[places.begin], 0});
  return {std::move(parts)};
}

}  // namespace shardproof
