#include "emu/run/dispatch.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "ops/permute.h"

namespace shardproof {
namespace {

std::size_t at(std::int64_t index) {
  return static_cast<std::size_t>(index);
}

std::int64_t most_of_an_owner(std::span<const int> expert_owner, int owners) {
  return (std::ssize(expert_owner) + owners - 1) / owners;
}

/// Expert -> its bucket: an owner's buckets are consecutive, in order of the experts that it holds.
std::vector<std::int64_t> buckets_of(std::span<const int> expert_owner, int owners) {
  const std::int64_t per_owner = most_of_an_owner(expert_owner, owners);
  std::vector<std::int64_t> bucket(expert_owner.size());
  std::vector<std::int64_t> held(at(owners), 0);
  for (std::size_t expert = 0; expert < expert_owner.size(); ++expert) {
    const int owner = expert_owner[expert];
    if (owner < 0 || owner >= owners || held[at(owner)] == per_owner) {
      throw std::out_of_range(fmt::format("expert {} is mapped to rank {} of {}, which holds {} experts", expert, owner,
                                          owners, per_owner));
    }
    bucket[expert] = owner * per_owner + held[at(owner)]++;
  }
  return bucket;
}

std::vector<std::int64_t> count_slots(ops::MatrixView<const std::int32_t> ids, std::span<const std::int64_t> bucket,
                                      std::int64_t buckets) {
  std::vector<std::int64_t> counts(at(buckets), 0);
  for (std::int64_t token = 0; token < ids.rows; ++token) {
    for (const std::int32_t expert : ids.row(token)) {
      if (expert < 0 || expert >= std::ssize(bucket)) {
        throw std::out_of_range(
            fmt::format("token {} is routed to expert {}; there are {}", token, expert, bucket.size()));
      }
      ++counts[at(bucket[at(expert)])];
    }
  }
  return counts;
}

}  // namespace

std::int64_t sum_of(std::span<const std::int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

std::int64_t Permutation::slots() const {
  return sum_of(counts);
}

std::vector<std::int64_t> by_owner(std::span<const std::int64_t> slots, std::span<const int> expert_owner, int owners) {
  const std::vector<std::int64_t> bucket = buckets_of(expert_owner, owners);
  std::vector<std::int64_t> counts(at(most_of_an_owner(expert_owner, owners) * owners), 0);
  for (std::size_t expert = 0; expert < bucket.size(); ++expert) counts[at(bucket[expert])] = slots[expert];
  return counts;
}

Permutation permute_by_owner(ops::MatrixView<const std::int32_t> ids, std::span<const int> expert_owner, int owners) {
  const std::vector<std::int64_t> bucket = buckets_of(expert_owner, owners);
  Permutation result;
  result.counts = count_slots(ids, bucket, most_of_an_owner(expert_owner, owners) * owners);
  std::vector<std::int64_t> next(result.counts.size());
  std::exclusive_scan(result.counts.begin(), result.counts.end(), next.begin(), std::int64_t{0});
  result.rows.resize(at(ids.size()));
  result.positions = ops::Matrix<std::int64_t>(ids.rows, ids.cols);
  for (std::int64_t token = 0; token < ids.rows; ++token) {
    for (std::int64_t slot = 0; slot < ids.cols; ++slot) {
      const std::int64_t position = next[at(bucket[at(ids(token, slot))])]++;
      result.rows[at(position)] = token;
      result.positions(token, slot) = position;
    }
  }
  return result;
}

Selection select_for_owner(ops::MatrixView<const std::int32_t> ids, std::span<const std::int64_t> tokens_of,
                           std::span<const int> expert_owner, int owners, int owner) {
  Selection result;
  result.positions = ops::Matrix<std::int64_t>(ids.rows, ids.cols);
  std::ranges::fill(result.positions.span(), ops::kElsewhere);
  std::int64_t first = 0;
  for (const std::int64_t tokens : tokens_of) {
    const Permutation all = permute_by_owner(ids.row_range(first, tokens), expert_owner, owners);
    const std::int64_t buckets = std::ssize(all.counts) / owners;
    const std::span<const std::int64_t> counts(all.counts);
    const std::int64_t before = sum_of(counts.first(at(owner * buckets)));
    const std::span<const std::int64_t> held = counts.subspan(at(owner * buckets), at(buckets));
    const std::int64_t slots = sum_of(held);
    result.counts.insert(result.counts.end(), held.begin(), held.end());
    result.rows.resize(at(result.count + slots));
    result.choices.resize(result.rows.size());
    for (std::int64_t token = 0; token < tokens; ++token) {
      for (std::int64_t choice = 0; choice < ids.cols; ++choice) {
        const std::int64_t place = all.positions(token, choice) - before;
        if (place < 0 || place >= slots) continue;
        result.positions(first + token, choice) = result.count + place;
        result.rows[at(result.count + place)] = first + token;
        result.choices[at(result.count + place)] = choice;
      }
    }
    result.count += slots;
    first += tokens;
  }
  return result;
}

std::vector<std::int64_t> sort_by_expert(std::span<const std::int64_t> counts, std::int64_t experts) {
  const std::int64_t chunks = std::ssize(counts) / experts;
  std::vector<std::int64_t> begin(counts.size());
  std::exclusive_scan(counts.begin(), counts.end(), begin.begin(), std::int64_t{0});
  std::vector<std::int64_t> sorted;
  for (std::int64_t expert = 0; expert < experts; ++expert) {
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      const std::size_t cell = at(chunk * experts + expert);
      for (std::int64_t i = 0; i < counts[cell]; ++i) sorted.push_back(begin[cell] + i);
    }
  }
  return sorted;
}

std::vector<std::int64_t> inverse(std::span<const std::int64_t> permutation) {
  std::vector<std::int64_t> result(permutation.size());
  for (std::size_t i = 0; i < permutation.size(); ++i) result[at(permutation[i])] = static_cast<std::int64_t>(i);
  return result;
}

std::vector<std::size_t> element_counts(std::span<const std::int64_t> counts, std::int64_t run, std::int64_t width) {
  std::vector<std::size_t> result;
  for (std::size_t begin = 0; begin < counts.size(); begin += at(run)) {
    const std::span<const std::int64_t> part = counts.subspan(begin, at(run));
    result.push_back(at(sum_of(part) * width));
  }
  return result;
}

}  // namespace shardproof
