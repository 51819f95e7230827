#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "emu/paper/check.h"
#include "emu/paper/rank_table.h"
#include "emu/report/markdown.h"

namespace shardproof {
namespace {

/// A cell must not end its row or its table.
std::string cell(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out;
}

std::string table(const TextRows& rows) {
  std::string text;
  const std::size_t columns = rows[0].size();
  for (std::size_t r = 0; r < rows.size(); ++r) {
    text += "|";
    for (std::size_t c = 0; c < columns; ++c) text += fmt::format(" {} |", c < rows[r].size() ? cell(rows[r][c]) : "");
    text += "\n";
    if (r == 0) {
      text += "|";
      for (std::size_t c = 0; c < columns; ++c) text += " --- |";
      text += "\n";
    }
  }
  return text + "\n";
}

std::string claims_table(const CheckReport& report) {
  TextRows rows{{"document", "claim", "stated", "computed", "verdict", "arithmetic"}};
  for (const JudgedClaim& judged : report.claims) {
    const Claim& claim = judged.claim;
    rows.push_back({claim.document, claim.text, fmt::format("{} {:.6g} {}", claim.relation, claim.stated, claim.unit),
                    std::isfinite(judged.computed) ? fmt::format("{:.4g} {}", judged.computed, claim.unit) : "",
                    fmt::format("**{}**", to_string(judged.verdict)), judged.arithmetic});
  }
  return table(rows);
}

std::string quantities_table(const CheckReport& report) {
  TextRows rows{{"quantity", "value", "formula"}};
  for (const auto& quantity : report.quantities) {
    const QuantityValue& value = quantity.value;
    const bool zero = value.unknown.empty() && value.value == 0 && value.max == 0;
    if (zero && quantity.definition->dimension == Dimension::bytes) continue;
    rows.push_back({fmt::format("`{}`", quantity.definition->name), value_text(value), quantity.definition->formula});
  }
  return table(rows);
}

}  // namespace

std::string to_markdown(const CheckReport& report) {
  const Plan& plan = report.plan;
  std::string text = fmt::format("## Plan `{}`: {}\n\n", cell(plan.name), describe(plan.parallel));
  if (!report.problems.empty()) {
    text += "### Problems\n\n";
    for (const Problem& problem : report.problems)
      text += fmt::format("- `{}`: {}\n", problem.field, cell(problem.message));
    text += "\n";
  }
  if (report.ranks.empty()) return text;
  if (report.fits_memory) {
    text += fmt::format("Memory {}: {}.\n\n", *report.fits_memory ? "suffices" : "does **not** suffice",
                        report.memory_arithmetic);
  }
  if (!report.claims.empty()) text += "### Claims\n\n" + claims_table(report);
  text += "### Mesh\n\n" + table(axis_rows(plan)) + "### GPUs\n\n" + table(rank_rows(plan));
  text += "### Quantities\n\n" + quantities_table(report);
  if (!plan.notes.empty() || !plan.model_notes.empty()) {
    text += "### Notes\n\n";
    for (const std::string& note : plan.model_notes) text += fmt::format("- {}\n", cell(note));
    for (const std::string& note : plan.notes) text += fmt::format("- {}\n", cell(note));
  }
  return text;
}

}  // namespace shardproof
