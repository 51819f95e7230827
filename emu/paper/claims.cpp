#include "emu/paper/claims.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "emu/paper/expression.h"

namespace shardproof {
namespace {

/// Equality of a stated figure with a computed one: what is left of rounding, no more.
bool same(double a, double b) {
  return std::fabs(a - b) <= 1e-9 * std::max({1.0, std::fabs(a), std::fabs(b)});
}

bool keeps(const std::string& relation, double computed, double stated) {
  if (relation == "<=") return computed <= stated || same(computed, stated);
  if (relation == ">=") return computed >= stated || same(computed, stated);
  if (relation == "~")
    return std::fabs(computed - stated) <= kAboutTolerance * std::fabs(stated) || same(computed, stated);
  return same(computed, stated);
}

/// The value over the ranks that decides.
double deciding(const QuantityValue& value, const std::string& relation, double stated) {
  if (!value.per_rank) return value.value;
  if (relation == "<=") return value.max;
  if (relation == ">=") return value.min;
  return std::fabs(value.max - stated) >= std::fabs(value.min - stated) ? value.max : value.min;
}

/// Of a projection: whether all of low..high keeps the relation, or nothing of it.
struct KeptBy {
  bool all = false;
  bool none = false;
};

KeptBy kept_by(const QuantityValue& value, const std::string& relation, double stated) {
  const bool low = keeps(relation, value.low, stated), high = keeps(relation, value.high, stated);
  if (low && high) return {.all = true};
  const bool around = value.low < stated && stated < value.high;
  return {.none = !low && !high && (relation == "<=" || relation == ">=" || !around)};
}

/// Which of the presets that may fill what is open keep the relation.
std::string presets_text(const QuantityValue& value, const std::string& relation, double stated) {
  std::string kept, others;
  for (const auto& [name, on] : value.by_hardware) {
    std::string& list = keeps(relation, on, stated) ? kept : others;
    list += (list.empty() ? "" : ", ") + name;
  }
  if (kept.empty()) return "on none of the presets, as projected";
  return fmt::format("as projected it does with what is open as {} has it{}", kept,
                     others.empty() ? "" : fmt::format(", and not with {}", others));
}

/// A projection is judged by its whole interval.
void judge_interval(const QuantityValue& value, double stated, JudgedClaim& judged) {
  const std::string& relation = judged.claim.relation;
  const KeptBy kept = kept_by(value, relation, stated);
  if (kept.none) {
    judged.verdict = ClaimVerdict::fails;
  } else if (!kept.all) {
    judged.verdict = ClaimVerdict::holds_if;
    judged.arithmetic += fmt::format("; holds if the time measured lies where it does within {} to {}",
                                     readable(value.low, value.dimension), readable(value.high, value.dimension));
    if (value.by_hardware.size() > 1) judged.arithmetic += ": " + presets_text(value, relation, stated);
  } else {
    judged.verdict = ClaimVerdict::holds;
  }
  if (kept.none || value.condition.empty()) return;
  // What holds under the other reading too needs no condition.
  if (value.condition_value && keeps(relation, *value.condition_value, stated)) return;
  judged.verdict = ClaimVerdict::holds_if;
  judged.arithmetic += "; holds if " + value.condition + " it fails";
}

JudgedClaim judge(const Claim& claim, const QuantityValue& value) {
  JudgedClaim judged;
  judged.claim = claim;
  if (!value.unknown.empty()) {
    judged.computed = std::numeric_limits<double>::quiet_NaN();
    judged.arithmetic = value.unknown;
    return judged;
  }
  const double factor = unit_factor(claim.unit, value.dimension);
  const double stated = claim.stated * factor;
  const double computed = deciding(value, claim.relation, stated);
  judged.computed = computed / factor;
  judged.arithmetic = value.arithmetic;
  if (value.per_rank && !same(value.max, value.min)) {
    judged.arithmetic += fmt::format("{}ranks from {} to {}", judged.arithmetic.empty() ? "" : "; ",
                                     readable(value.min, value.dimension), readable(value.max, value.dimension));
  }
  if (value.interval) {
    judge_interval(value, stated, judged);
  } else if (!keeps(claim.relation, computed, stated)) {
    judged.verdict = ClaimVerdict::fails;
    const std::string remedy = value.remedy ? value.remedy(stated) : std::string();
    if (!remedy.empty()) judged.arithmetic += "; " + remedy;
  } else if (!value.condition.empty()) {
    judged.verdict = ClaimVerdict::holds_if;
    judged.arithmetic += "; holds if " + value.condition + " it fails";
  } else {
    judged.verdict = ClaimVerdict::holds;
  }
  return judged;
}

}  // namespace

const char* to_string(ClaimVerdict verdict) {
  switch (verdict) {
    case ClaimVerdict::holds:
      return "holds";
    case ClaimVerdict::holds_if:
      return "holds if";
    case ClaimVerdict::fails:
      return "fails";
    case ClaimVerdict::unverified:
      break;
  }
  return "unverified";
}

double unit_factor(const std::string& unit, Dimension dimension) {
  struct Unit {
    const char* name;
    Dimension dimension;
    double factor;
  };
  static constexpr Unit kUnits[] = {
      {"KB", Dimension::bytes, 1e3},           {"MB", Dimension::bytes, 1e6},      {"GB", Dimension::bytes, 1e9},
      {"TB", Dimension::bytes, 1e12},          {"KiB", Dimension::bytes, 1024.0},  {"MiB", Dimension::bytes, 1048576.0},
      {"GiB", Dimension::bytes, 1073741824.0}, {"K", Dimension::parameters, 1e3},  {"M", Dimension::parameters, 1e6},
      {"B", Dimension::parameters, 1e9},       {"T", Dimension::parameters, 1e12}, {"MFLOP", Dimension::flops, 1e6},
      {"GFLOP", Dimension::flops, 1e9},        {"TFLOP", Dimension::flops, 1e12},  {"PFLOP", Dimension::flops, 1e15},
      {"ms", Dimension::seconds, 1e-3},        {"us", Dimension::seconds, 1e-6},   {"tokens/ms", Dimension::rate, 1e3},
  };
  if (unit == "%") return 0.01;
  for (const Unit& known : kUnits) {
    if (dimension == known.dimension && unit == known.name) return known.factor;
  }
  return 1;
}

std::vector<JudgedClaim> judge_claims(const Quantities& quantities, std::vector<Problem>& problems) {
  std::vector<JudgedClaim> judged;
  const std::vector<Claim>& claims = quantities.plan().claims;
  for (std::size_t i = 0; i < claims.size(); ++i) {
    const ExpressionValue result = evaluate_expression(claims[i].quantity, quantities);
    if (!result.error.empty()) {
      problems.push_back({fmt::format("claims[{}].quantity", i), result.error});
      continue;
    }
    judged.push_back(judge(claims[i], result.value));
  }
  return judged;
}

}  // namespace shardproof
