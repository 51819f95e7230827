#include "emu/run/tap.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <limits>
#include <numeric>

namespace shardproof {
namespace {

/// The product, or -1 where it cannot be counted.
std::int64_t counted_product(std::span<const std::int64_t> extents) {
  std::int64_t product = 1;
  for (const std::int64_t extent : extents) {
    if (extent < 0 || (extent > 0 && product > std::numeric_limits<std::int64_t>::max() / extent)) return -1;
    product *= extent;
  }
  return product;
}

}  // namespace

std::vector<std::int64_t> folded_rows(const std::vector<std::int64_t>& dims, int dim, Range part) {
  if (counted_product(dims) < 0) {
    throw std::invalid_argument(fmt::format("[{}] is no shape of a tensor", fmt::join(dims, ", ")));
  }
  if (dim < 0 || dim + 1 >= std::ssize(dims)) {
    throw std::invalid_argument(
        fmt::format("dim {} of [{}] is not folded into rows; those before the last are", dim, fmt::join(dims, ", ")));
  }
  const auto at = static_cast<std::size_t>(dim);
  if (part.begin < 0 || part.count < 0 || part.begin > dims[at] || part.count > dims[at] - part.begin) {
    throw std::invalid_argument(
        fmt::format("{} from {} reach outside dim {} of [{}]", part.count, part.begin, dim, fmt::join(dims, ", ")));
  }
  std::vector<std::int64_t> rows;
  if (counted_product(dims) == 0) return rows;
  const std::int64_t outer = counted_product(std::span(dims).first(at));
  const std::int64_t inner = counted_product(std::span(dims).subspan(at + 1, dims.size() - at - 2));
  for (std::int64_t block = 0; block < outer; ++block) {
    const std::size_t first = rows.size();
    rows.resize(first + static_cast<std::size_t>(part.count * inner));
    std::iota(rows.begin() + static_cast<std::ptrdiff_t>(first), rows.end(), (block * dims[at] + part.begin) * inner);
  }
  return rows;
}

}  // namespace shardproof
