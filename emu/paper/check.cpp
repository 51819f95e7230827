#include "emu/paper/check.h"

#include <fmt/format.h>

#include "emu/plan/validate.h"

namespace shardproof {

CheckReport check(const Plan& plan) {
  CheckReport report;
  report.plan = plan;
  report.problems = validate(plan);
  if (!report.problems.empty()) {
    report.neighbours = nearest_valid(plan);
    return report;
  }
  const Quantities quantities(report.plan);
  for (const QuantityDefinition& definition : quantity_definitions()) {
    if (definition.arguments > 0) continue;
    if (auto value = quantities.evaluate(definition.name)) {
      report.quantities.push_back({&definition, std::move(*value)});
    }
  }
  report.claims = judge_claims(quantities, report.problems);
  report.ranks = quantities.ranks();
  if (const auto share = quantities.evaluate("memory_share"); share && share->unknown.empty()) {
    report.fits_memory = share->max <= 1;
    report.memory_arithmetic = fmt::format("rank {}: {}", share->max_rank, share->arithmetic);
  }
  return report;
}

std::string value_text(const QuantityValue& value) {
  if (!value.unknown.empty()) return "unverified";
  const auto text = [&](double number) { return readable(number, value.dimension); };
  if (value.interval) return fmt::format("{} ({} to {})", text(value.value), text(value.low), text(value.high));
  if (!value.per_rank) return text(value.value);
  if (value.max == value.min) return text(value.max) + " each";
  return fmt::format("{} to {}, mean {}", text(value.min), text(value.max), text(value.mean));
}

}  // namespace shardproof
