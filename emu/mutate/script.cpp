#include "emu/mutate/internal/script.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace shardproof::mutations {

bool among(const std::vector<int>& ranks, const Rank& rank) {
  return ranks.empty() || std::ranges::find(ranks, to_int(rank.id())) != ranks.end();
}

bool Site::here(const Rank& rank, const internal::Call& call) const {
  return is_call_of(call.tag, op) && call.tag.layer == layer && among(ranks, rank) &&
         (microbatch < 0 || call.tag.microbatch == microbatch);
}

std::string moe_output_tap(int layer) {
  return tap_name(layer, TapKind::moe_output);
}

Buffers make_buffers(int world) {
  return std::make_shared<std::vector<std::vector<double>>>(static_cast<std::size_t>(world));
}

std::span<const double> input(const internal::Call& call) {
  if (call.type != ElementType::f64) return {};
  return {static_cast<const double*>(call.in), call.in_count};
}

std::span<double> output(const internal::Call& call) {
  if (call.type != ElementType::f64) return {};
  return {static_cast<double*>(call.out), call.out_count};
}

std::span<double> own_input(const Rank& rank, internal::Call& call, const Buffers& buffers) {
  std::vector<double>& buffer = (*buffers)[static_cast<std::size_t>(to_int(rank.id()))];
  const std::span<const double> given = input(call);
  if (given.empty()) return {};
  buffer.assign(given.begin(), given.end());
  call.in = buffer.data();
  return buffer;
}

void zero_output(internal::Call& call) {
  if (call.out != nullptr) std::memset(call.out, 0, call.out_count * size_of(call.type));
}

void keep_own(internal::Call& call) {
  const auto me = static_cast<std::size_t>(to_int(call.rank));
  const std::size_t before =
      call.counts_given && call.operation != Operation::all_to_all
          ? std::accumulate(call.counts.begin(), call.counts.begin() + to_int(call.rank), std::size_t{0})
          : me * std::min(call.in_count, call.out_count);
  const std::size_t width = size_of(call.type);
  const auto* in = static_cast<const std::byte*>(call.in);
  auto* out = static_cast<std::byte*>(call.out);
  switch (call.operation) {
    case Operation::all_reduce:
      if (call.in != call.out && call.in_count > 0) std::memcpy(out, in, call.in_count * width);
      return;
    case Operation::all_gather:
      zero_output(call);
      if (call.in_count > 0) std::memcpy(out + before * width, in, call.in_count * width);
      return;
    case Operation::reduce_scatter:
      if (call.out_count > 0) std::memcpy(out, in + before * width, call.out_count * width);
      return;
    default:
      zero_output(call);
  }
}

void reverse_chunks(std::span<double> values, std::span<const std::size_t> counts) {
  const std::vector<double> given(values.begin(), values.end());
  std::size_t end = given.size();
  auto out = values.begin();
  for (std::size_t c = counts.size(); c-- > 0;) {
    const std::size_t begin = end - counts[c];
    out = std::copy(given.begin() + static_cast<std::ptrdiff_t>(begin),
                    given.begin() + static_cast<std::ptrdiff_t>(end), out);
    end = begin;
  }
}

namespace {

/// Every member's partial sums, by group index and microbatch: a member may be ahead of another by a microbatch.
using PartialSums = std::shared_ptr<std::vector<std::vector<std::vector<double>>>>;

/// What each rank gets when only its half of the group is summed.
void sum_half(internal::Call& call, const std::vector<std::vector<std::vector<double>>>& partials,
              std::size_t microbatch) {
  const std::size_t half = partials.size() / 2;
  const auto me = static_cast<std::size_t>(to_int(call.rank));
  const std::size_t first = me / half * half;
  const std::span<double> out = output(call);
  const std::size_t before =
      call.operation == Operation::reduce_scatter
          ? std::accumulate(call.counts.begin(), call.counts.begin() + static_cast<std::ptrdiff_t>(me), std::size_t{0})
          : 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    double sum = 0;
    for (std::size_t m = first; m < first + half; ++m) sum += partials[m][microbatch][before + i];
    out[i] = sum;
  }
}

void before_reduction(const Rank& rank, internal::Call& call, SumFault fault, int member, const Buffers& buffers,
                      const PartialSums& partials) {
  const int me = to_int(call.rank);
  switch (fault) {
    case SumFault::missing:
    case SumFault::doubled:
      if (me == member) {
        for (double& value : own_input(rank, call, buffers)) value *= fault == SumFault::missing ? 0 : 2;
      }
      return;
    case SumFault::averaged:
      call.options.reduction = Reduction::average;
      return;
    case SumFault::maximum:
      call.options.reduction = Reduction::max;
      return;
    case SumFault::halves: {
      const std::span<const double> given = input(call);
      (*partials)[static_cast<std::size_t>(me)][static_cast<std::size_t>(call.tag.microbatch)].assign(given.begin(),
                                                                                                      given.end());
      return;
    }
    default:
      return;
  }
}

}  // namespace

std::function<std::unique_ptr<FaultInjector>()> faulty_reduction(const Site& site, SumFault fault, int member,
                                                                 int world, std::int64_t microbatches) {
  return script([=](Script& made) {
    const Buffers buffers = make_buffers(world);
    const auto partials = std::make_shared<std::vector<std::vector<std::vector<double>>>>(
        site.ranks.size(), std::vector<std::vector<double>>(static_cast<std::size_t>(microbatches)));
    made.before = [=](const Rank& rank, internal::Call& call) {
      if (!site.here(rank, call)) return true;
      before_reduction(rank, call, fault, member, buffers, partials);
      return fault != SumFault::dropped;
    };
    made.after = [=](const Rank& rank, internal::Call& call) {
      if (!site.here(rank, call)) return;
      if (fault == SumFault::dropped) keep_own(call);
      if (fault == SumFault::halves) sum_half(call, *partials, static_cast<std::size_t>(call.tag.microbatch));
      if (fault == SumFault::repeated) {
        for (double& value : output(call)) value *= static_cast<double>(site.ranks.size());
      }
    };
  });
}

Sites::Sites(const MutablePlan& given)
    : plan(given),
      mesh(given.parallel),
      stages(given.model, given.parallel),
      batch(given.workload, given.model.vocab_size),
      tokens(given.parallel, given.workload) {}

int Sites::last_busy_dp() const {
  int dp = plan.parallel.dp - 1;
  while (dp > 0 && tokens.sequences(dp).count == 0) --dp;
  return dp;
}

std::vector<int> Sites::stage_ranks(int stage) const {
  std::vector<int> ranks(static_cast<std::size_t>(mesh.world() / plan.parallel.pp));
  std::iota(ranks.begin(), ranks.end(), mesh.rank_at(0, 0, 0, stage));
  return ranks;
}

std::vector<Place> Sites::places(std::size_t limit) const {
  const int last = static_cast<int>(plan.model.layers.size()) - 1;
  const int dp = last_busy_dp();
  std::vector<Place> result;
  for (const auto& [layer, replica] : {std::pair{0, 0}, {last, dp}, {last / 2, 0}, {0, dp}, {last, 0}}) {
    const Place place{layer, first_rank(stage_of(layer), replica)};
    const bool known = std::ranges::any_of(
        result, [&](const Place& other) { return other.layer == place.layer && other.rank == place.rank; });
    if (!known && result.size() < limit) result.push_back(place);
  }
  return result;
}

bool Sites::embeds(int dp, int tp) const {
  const Range held = partition(plan.model.vocab_size, plan.parallel.tp, tp);
  for (std::int64_t m = 0; m < tokens.microbatches(); ++m) {
    for (const std::int32_t id : batch.tokens(tokens.rows({.dp = dp}, m))) {
      if (id >= held.begin && id < held.end()) return true;
    }
  }
  return false;
}

bool Sites::embeds_across(int dp) const {
  const Parallel& p = plan.parallel;
  for (std::int64_t m = 0; m < tokens.microbatches(); ++m) {
    for (int tp = 0; tp < p.tp; ++tp) {
      const Range held = partition(plan.model.vocab_size, p.tp, tp);
      for (const std::int32_t id : batch.tokens(tokens.stream({.tp = tp, .dp = dp}, m))) {
        if (id < held.begin || id >= held.end()) return true;
      }
    }
  }
  return false;
}

std::vector<std::int64_t> Sites::sends(int layer, std::int64_t microbatch, int rank) const {
  const TokenRows own = tokens.own(mesh.coordinates(rank), microbatch);
  const std::int64_t held = plan.model.layers[layer].feed_forward.num_experts / plan.parallel.ep;
  std::vector<std::int64_t> counts(static_cast<std::size_t>(plan.parallel.ep), 0);
  for (std::int64_t place = 0; place < own.count(); ++place) {
    for (const std::int32_t expert : plan.choices[static_cast<std::size_t>(layer)].row(own[place])) {
      ++counts[static_cast<std::size_t>(expert / held)];
    }
  }
  return counts;
}

std::vector<std::int64_t> Sites::receives(int layer, std::int64_t microbatch, int rank) const {
  const auto me = static_cast<std::size_t>(mesh.coordinates(rank).ep);
  std::vector<std::int64_t> counts;
  for (const int sender : group(Axis::ep, rank)) counts.push_back(sends(layer, microbatch, sender)[me]);
  return counts;
}

template <class Wanted>
std::vector<Place> Sites::places_with(std::size_t limit, const Wanted& wanted) const {
  std::vector<Place> result;
  for (const Place& place : places(5)) {
    const std::vector<int> ranks = stage_ranks(stage_of(place.layer));
    const auto begin = std::ranges::find(ranks, place.rank) - ranks.begin();
    for (std::size_t i = 0; i < ranks.size() && result.size() < limit; ++i) {
      const Place near{place.layer, ranks[(static_cast<std::size_t>(begin) + i) % ranks.size()]};
      if (!wanted(near)) continue;
      const bool known = std::ranges::any_of(
          result, [&](const Place& other) { return other.layer == near.layer && other.rank == near.rank; });
      if (!known) result.push_back(near);
      break;
    }
  }
  return result;
}

std::vector<Place> Sites::expert_places(std::size_t limit) const {
  return places_with(limit, [&](const Place& place) {
    for (const int member : group(Axis::etp, place.rank)) {
      for (std::int64_t m = 0; m < tokens.microbatches(); ++m) {
        const std::vector<std::int64_t> counts = receives(place.layer, m, member);
        if (std::ranges::any_of(counts, [](std::int64_t count) { return count > 0; })) return true;
      }
    }
    return false;
  });
}

std::vector<Place> Sites::sending_places(std::size_t limit) const {
  return places_with(limit, [&](const Place& place) {
    for (std::int64_t m = 0; m < tokens.microbatches(); ++m) {
      const std::vector<std::int64_t> counts = sends(place.layer, m, place.rank);
      const std::int64_t slots = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
      const auto used = std::ranges::count_if(counts, [](std::int64_t count) { return count > 0; });
      if (used > 1 && slots > plan.model.layers[place.layer].feed_forward.top_k) return true;
    }
    return false;
  });
}

}  // namespace shardproof::mutations
