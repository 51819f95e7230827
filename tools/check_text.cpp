#include "tools/check_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "emu/paper/rank_table.h"
#include "tools/terminal.h"

namespace shardproof::tools {
namespace {

constexpr std::size_t kWidth = 100;

/// The text in lines of at most kWidth columns, each with the indent; long words are left whole.
std::string wrapped(std::string_view text, std::size_t indent) {
  std::string out;
  std::string line;
  const auto flush = [&] {
    if (!line.empty()) out += std::string(indent, ' ') + toned(line, Tone::dim) + "\n";
    line.clear();
  };
  while (!text.empty()) {
    const std::size_t space = text.find(' ');
    const std::string_view word = text.substr(0, space);
    if (!line.empty() && line.size() + 1 + word.size() > kWidth - indent) flush();
    if (!line.empty()) line += ' ';
    line += word;
    text.remove_prefix(space == std::string_view::npos ? text.size() : space + 1);
  }
  flush();
  return out;
}

Tone tone_of(ClaimVerdict verdict) {
  switch (verdict) {
    case ClaimVerdict::holds:
      return Tone::good;
    case ClaimVerdict::fails:
      return Tone::bad;
    case ClaimVerdict::holds_if:
      return Tone::warning;
    case ClaimVerdict::unverified:
      break;
  }
  return Tone::plain;
}

std::string claim_text(const JudgedClaim& judged) {
  const Claim& claim = judged.claim;
  const std::string computed =
      std::isfinite(judged.computed) ? fmt::format("; computed {:.4g} {}", judged.computed, claim.unit) : std::string();
  const std::string word = fmt::format("{:<10}", to_string(judged.verdict));
  std::string text = fmt::format("  {}  {}{}\n", toned(word, tone_of(judged.verdict)),
                                 claim.document.empty() ? "" : one_line(claim.document) + ": ", one_line(claim.text));
  text += wrapped(
      one_line(fmt::format("{} {} {:.6g} {}{}", claim.quantity, claim.relation, claim.stated, claim.unit, computed)),
      14);
  return text + wrapped(one_line(judged.arithmetic), 14);
}

std::string claims_summary(const CheckReport& report) {
  std::size_t counts[4] = {};
  for (const JudgedClaim& judged : report.claims) ++counts[static_cast<std::size_t>(judged.verdict)];
  std::string text;
  const auto add = [&](ClaimVerdict verdict) {
    const std::size_t count = counts[static_cast<std::size_t>(verdict)];
    if (count == 0) return;
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", toned(fmt::format("{}", count), tone_of(verdict)),
                        to_string(verdict));
  };
  for (const ClaimVerdict v :
       {ClaimVerdict::holds, ClaimVerdict::holds_if, ClaimVerdict::fails, ClaimVerdict::unverified}) {
    add(v);
  }
  return text.empty() ? "the plan makes no claims" : fmt::format("{} claims: {}", report.claims.size(), text);
}

bool is_zero(const QuantityValue& value) {
  return value.unknown.empty() && value.value == 0 && value.max == 0;
}

}  // namespace

std::string check_text(const CheckReport& report, const CheckTextOptions& options) {
  const Plan& plan = report.plan;
  std::string text = fmt::format("{}  {}\n", toned(one_line(plan.name), Tone::bold), describe(plan.parallel));
  if (plan.hardware && plan.hardware->gpus > plan.world()) {
    text += fmt::format("  {} of {} GPUs are idle\n", plan.hardware->gpus - plan.world(), plan.hardware->gpus);
  }
  for (const std::string& taken : plan.defaults) text += fmt::format("  {}\n", taken);
  for (const std::string& note : plan.model_notes) text += fmt::format("  {}\n", one_line(note));
  const TextRows axes = axis_rows(plan);
  if (axes.size() > 1) text += "\n" + table(axes, 5);
  text += "\n" + table(rank_rows(plan), 1) + "\n";

  TextRows rows{{"quantity", "value"}};
  for (const auto& quantity : report.quantities) {
    const bool traffic_or_memory = quantity.definition->dimension == Dimension::bytes;
    if (!options.all_quantities && traffic_or_memory && is_zero(quantity.value)) continue;
    if (!options.all_quantities && !quantity.value.unknown.empty()) continue;
    rows.push_back({quantity.definition->name, value_text(quantity.value)});
  }
  text += table(rows, 2) + "\n";

  for (const JudgedClaim& judged : report.claims) text += claim_text(judged);
  if (!report.claims.empty()) text += "\n";
  if (report.fits_memory) {
    text += *report.fits_memory ? "memory suffices: " : toned("memory does not suffice: ", Tone::bad);
    text += report.memory_arithmetic + "\n";
  }
  return text + claims_summary(report) + "\n";
}

std::string quantity_list() {
  std::string text;
  for (const QuantityDefinition& definition : quantity_definitions()) {
    text += fmt::format("{}{}{}\n", toned(definition.name, Tone::bold), definition.arguments > 0 ? "(n)" : "",
                        definition.unit.empty() ? "" : fmt::format("  [{}]", definition.unit));
    text += wrapped(definition.formula, 4);
  }
  return text;
}

}  // namespace shardproof::tools
