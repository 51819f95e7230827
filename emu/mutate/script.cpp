#include "emu/mutate/internal/script.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "emu/plan/token_map.h"

namespace shardproof::mutations {

bool among(const std::vector<int>& ranks, const Rank& rank) {
  return ranks.empty() || std::ranges::find(ranks, to_int(rank.id())) != ranks.end();
}

bool Site::matches(const Rank& rank, const internal::Call& call) const {
  return is_call_of(call.tag, op) && call.tag.layer == layer && among(ranks, rank) &&
         (microbatch < 0 || call.tag.microbatch == microbatch);
}

std::string moe_output_tap(int layer) {
  return tap_name(layer, TapKind::moe_output);
}

Buffers make_buffers(int world) {
  return std::make_shared<std::vector<std::vector<double>>>(2 * static_cast<std::size_t>(world));
}

namespace {

std::vector<double> values_of(const void* data, std::size_t count, ElementType type) {
  std::vector<double> values;
  if (type == ElementType::f64) {
    values.resize(count);
    if (count > 0) std::memcpy(values.data(), data, count * sizeof(double));
  } else if (type == ElementType::f32) {
    const std::span<const float> floats(static_cast<const float*>(data), count);
    values.assign(floats.begin(), floats.end());
  }
  return values;
}

void put(std::span<const double> values, ElementType type, void* data) {
  if (type == ElementType::f64) {
    std::ranges::copy(values, static_cast<double*>(data));
  } else {
    std::ranges::transform(values, static_cast<float*>(data), [](double value) { return static_cast<float>(value); });
  }
}

}  // namespace

std::vector<double> input(const internal::Call& call) {
  return values_of(call.in, call.in_count, call.type);
}

std::vector<double> output(const internal::Call& call) {
  return values_of(call.out, call.out_count, call.type);
}

void set_input(const Rank& rank, internal::Call& call, const Buffers& buffers, std::span<const double> values) {
  if (values.empty()) return;
  const auto me = static_cast<std::size_t>(to_int(rank.id()));
  std::vector<double>& buffer = (*buffers)[2 * me + static_cast<std::size_t>(call.tag.microbatch % 2)];
  buffer.resize(values.size());
  put(values, call.type, buffer.data());
  call.in = buffer.data();
}

void set_output(internal::Call& call, std::span<const double> values) {
  if (!values.empty()) put(values, call.type, call.out);
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
  const std::size_t before =
      call.operation == Operation::reduce_scatter
          ? std::accumulate(call.counts.begin(), call.counts.begin() + static_cast<std::ptrdiff_t>(me), std::size_t{0})
          : 0;
  edit_output(call, [&](std::span<double> out) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      double sum = 0;
      for (std::size_t m = first; m < first + half; ++m) sum += partials[m][microbatch][before + i];
      out[i] = sum;
    }
  });
}

void before_reduction(const Rank& rank, internal::Call& call, SumFault fault, int member, const Buffers& buffers,
                      const PartialSums& partials) {
  const int me = to_int(call.rank);
  switch (fault) {
    case SumFault::missing:
    case SumFault::doubled:
      if (me == member) {
        edit_input(rank, call, buffers, [&](std::span<double> values) {
          for (double& value : values) value *= fault == SumFault::missing ? 0 : 2;
        });
      }
      return;
    case SumFault::averaged:
      call.options.reduction = Reduction::average;
      return;
    case SumFault::maximum:
      call.options.reduction = Reduction::max;
      return;
    case SumFault::halves:
      (*partials)[static_cast<std::size_t>(me)][static_cast<std::size_t>(call.tag.microbatch)] = input(call);
      return;
    default:
      return;
  }
}

}  // namespace

std::function<std::unique_ptr<FaultInjector>()> faulty_reduction(const Plan& plan, const Site& site, SumFault fault,
                                                                 int member) {
  const int world = plan.world();
  const auto microbatches = static_cast<std::size_t>(TokenMap(plan.parallel, plan.workload).microbatches());
  return script([=](Script& made) {
    const Buffers buffers = make_buffers(world);
    const auto partials = std::make_shared<std::vector<std::vector<std::vector<double>>>>(
        site.ranks.size(), std::vector<std::vector<double>>(microbatches));
    made.before = [=](const Rank& rank, internal::Call& call) {
      if (!site.matches(rank, call)) return true;
      before_reduction(rank, call, fault, member, buffers, partials);
      return fault != SumFault::dropped;
    };
    made.after = [=](const Rank& rank, internal::Call& call) {
      if (!site.matches(rank, call)) return;
      if (fault == SumFault::dropped) keep_own(call);
      if (fault == SumFault::halves) sum_half(call, *partials, static_cast<std::size_t>(call.tag.microbatch));
      if (fault == SumFault::repeated) {
        edit_output(call, [&](std::span<double> values) {
          for (double& value : values) value *= static_cast<double>(site.ranks.size());
        });
      }
    };
  });
}

std::vector<std::string> causes_of(SumFault fault) {
  switch (fault) {
    case SumFault::dropped:
      return {"reduction_dropped"};
    case SumFault::repeated:
      return {"reduced_twice", "counted_n_times"};
    case SumFault::halves:
      return {"partial_group"};
    case SumFault::missing:
      return {"partial_sum_missing"};
    case SumFault::doubled:
      return {"partial_sum_doubled"};
    case SumFault::averaged:
      return {"averaged"};
    case SumFault::maximum:
      return {"wrong_reduction"};
  }
  return {};
}

std::vector<std::string> causes_of(GatherFault fault) {
  return {fault == GatherFault::dropped ? "gather_dropped" : "rows_permuted"};
}

std::function<std::unique_ptr<FaultInjector>()> faulty_gather(const Site& site, GatherFault fault) {
  return script([=](Script& made) {
    made.before = [=](const Rank& rank, internal::Call& call) {
      return fault != GatherFault::dropped || !site.matches(rank, call);
    };
    made.after = [=](const Rank& rank, internal::Call& call) {
      if (!site.matches(rank, call)) return;
      if (fault == GatherFault::dropped) return keep_own(call);
      edit_output(call, [&](std::span<double> values) { reverse_chunks(values, call.counts); });
    };
  });
}

bool has_few_rows(const Plan& plan, std::int64_t rows) {
  const TokenMap tokens(plan.parallel, plan.workload);
  Coordinates at;
  for (at.dp = 0; at.dp < plan.parallel.dp; ++at.dp) {
    for (at.cp = 0; at.cp < plan.parallel.cp; ++at.cp) {
      bool few = true;
      for (std::int64_t m = 0; m < tokens.microbatches(); ++m) few = few && tokens.rows(at, m).count() <= rows;
      if (few) return true;
    }
  }
  return false;
}

bool weighs_by_one(const FeedForwardSpec& spec) {
  return spec.num_experts == 1 || (spec.top_k == 1 && spec.norm_topk_prob);
}

bool weighs_by_one(const Plan& plan) {
  return std::ranges::any_of(plan.model.layers.kinds(),
                             [](const LayerSpec& layer) { return weighs_by_one(layer.feed_forward); });
}

std::vector<std::string> or_weights(const Plan& plan, std::string cause) {
  if (plan.model.experts().top_k > 1 && plan.model.experts().top_k == plan.model.experts().num_experts)
    return {std::move(cause), "router_weights_permuted"};
  return {std::move(cause)};
}

bool may_have_one_row(const Plan& plan) {
  return has_few_rows(plan, 1);
}

bool may_have_no_row(const Plan& plan) {
  return plan.parallel.sp && has_few_rows(plan, plan.parallel.tp - 1);
}

}  // namespace shardproof::mutations
