#include "emu/judge/rounding/bounds.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>
#include <vector>

#include "collectives/algorithms/order.h"

namespace shardproof::rounding {
namespace {

constexpr double kOracle = 0x1p-53;
constexpr Unit kFloat{0x1p-24, 0x1p-150};
constexpr Unit kDouble{0x1p-53, 0};
constexpr Unit kBf16{0x1p-8, 0x1p-134};
constexpr Unit kFp16{0x1p-11, 0x1p-25};

/// What a rounding of a collective rounds to; nothing for the element type itself.
Unit unit_of(const Rounding& rounding, const Profile& profile) {
  const std::optional<ops::Format> format = ops::parse_format(rounding.name);
  if (!format) return {};
  switch (*format) {
    case ops::Format::bf16:
      return kBf16;
    case ops::Format::fp16:
      return kFp16;
    case ops::Format::fp32:
      return profile.compute.relative < kFloat.relative ? kFloat : Unit{};
    case ops::Format::fp64:
    case ops::Format::exact:
      break;
  }
  return {};
}

}  // namespace

namespace {

Profile profile_of_ops(ops::Format format) {
  const auto plus_oracle = [](Unit unit) { return Unit{unit.relative + kOracle, unit.underflow}; };
  const double float_max = std::numeric_limits<float>::max();
  switch (format) {
    case ops::Format::fp32:
      return {.compute = plus_oracle(kFloat), .store = {}, .largest = float_max, .largest_scalar = float_max};
    case ops::Format::bf16:
      return {.compute = plus_oracle(kFloat), .store = kBf16, .largest = 0x1.fep127, .largest_scalar = float_max};
    case ops::Format::fp16:
      return {.compute = plus_oracle(kFloat), .store = kFp16, .largest = 65504, .largest_scalar = float_max};
    case ops::Format::fp64:
    case ops::Format::exact:
      break;
  }
  const double double_max = std::numeric_limits<double>::max();
  return {.compute = plus_oracle(kDouble), .store = {}, .largest = double_max, .largest_scalar = double_max};
}

constexpr std::pair<std::string_view, RoundingProfile> kProfiles[] = {
    {"ours", RoundingProfile::ours}, {"fused", RoundingProfile::fused}, {"eager", RoundingProfile::eager}};

}  // namespace

std::string_view to_string(RoundingProfile profile) {
  return std::ranges::find(kProfiles, profile, &std::pair<std::string_view, RoundingProfile>::second)->first;
}

std::optional<RoundingProfile> parse_rounding_profile(std::string_view name) {
  const auto found = std::ranges::find(kProfiles, name, &std::pair<std::string_view, RoundingProfile>::first);
  if (found == std::end(kProfiles)) return std::nullopt;
  return found->second;
}

Profile profile_of(ops::Format format, RoundingProfile kind) {
  Profile profile = profile_of_ops(format);
  profile.kind = kind;
  profile.exp_units = kind == RoundingProfile::ours ? kExpUnits : kFastExpUnits;
  if (kind != RoundingProfile::ours) profile.probability = profile.store;
  if (kind == RoundingProfile::eager) profile.step = profile.store;
  return profile;
}

ReductionPath reduction_path(const ReduceOptions& options, std::span<const int> members) {
  const auto ranks = static_cast<int>(members.size());
  const std::vector<NodeMembers> nodes = split_into_nodes(members, options.gpus_per_node);
  ReductionPath most;
  for (std::size_t chunk = 0; chunk < chunk_count(options.algorithm, ranks, nodes); ++chunk) {
    Order order;
    append_order(options.algorithm, ranks, nodes, chunk, order);
    std::vector<ReductionPath> sums;  // of the input in each that went the longest way
    for (const Step& step : order) {
      if (step.kind == Step::Kind::load) sums.push_back({});
      if (step.kind == Step::Kind::merge) {
        const ReductionPath other = sums.back();
        sums.pop_back();
        sums.back() = {std::max(sums.back().additions, other.additions), std::max(sums.back().hops, other.hops)};
      }
      if (step.kind != Step::Kind::load) ++sums.back().additions;
      if (step.hop) ++sums.back().hops;
    }
    if (sums.empty()) continue;
    most = {std::max(most.additions, sums.back().additions), std::max(most.hops, sums.back().hops)};
  }
  return most;
}

double reduction_error(const Profile& profile, const ReduceOptions& options, const ReductionPath& path,
                       double magnitude) {
  const Unit wire = unit_of(options.wire, profile);
  const Unit accumulate = unit_of(options.accumulate, profile);
  const double additions = path.additions;
  const double sends = path.hops + 2.0;
  // Where additions are taken wider than the scalar, a sum is rounded to the scalar where it is sent.
  const double in_scalar = additions + (options.accumulate.bytes > 4 ? sends : 0);
  const double total = in_scalar * profile.compute.relative + additions * accumulate.relative + sends * wire.relative;
  const double growth = gamma(1, total);
  return growth * magnitude + 2 * (additions + 1) * sends * (wire.underflow + accumulate.underflow);
}

}  // namespace shardproof::rounding
