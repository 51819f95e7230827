#include "emu/paper/quantities.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "emu/paper/internal/quantity_tables.h"

namespace shardproof {

const std::vector<QuantityDefinition>& quantity_definitions() {
  static const std::vector<QuantityDefinition> table = [] {
    std::vector<QuantityDefinition> all;
    quantity_table::add_mesh_quantities(all);
    quantity_table::add_memory_quantities(all);
    quantity_table::add_work_quantities(all);
    quantity_table::add_time_quantities(all);
    return all;
  }();
  return table;
}

Quantities::Quantities(const Plan& plan) : plan_(plan), ranks_(rank_figures(plan)), time_(plan) {}

const QuantityDefinition* Quantities::find(std::string_view name) {
  const std::vector<QuantityDefinition>& table = quantity_definitions();
  const auto found = std::find_if(table.begin(), table.end(), [&](const auto& entry) { return entry.name == name; });
  return found == table.end() ? nullptr : &*found;
}

std::optional<QuantityValue> Quantities::evaluate(std::string_view name, std::span<const double> arguments) const {
  const QuantityDefinition* definition = find(name);
  if (definition == nullptr || definition->arguments != static_cast<int>(arguments.size())) return std::nullopt;
  QuantityValue value = definition->compute({plan_, ranks_, time_}, arguments);
  value.dimension = definition->dimension;
  if (value.unknown.empty() && value.arithmetic.empty()) value.arithmetic = definition->formula;
  return value;
}

namespace {

std::string scaled_text(double value, std::initializer_list<std::pair<double, const char*>> units, const char* plain) {
  for (const auto& [size, name] : units) {
    if (std::fabs(value) >= size) return fmt::format("{:.4g} {}", value / size, name);
  }
  return fmt::format("{:.4g}{}{}", value, *plain == '\0' ? "" : " ", plain);
}

}  // namespace

std::string readable(double value, Dimension dimension) {
  switch (dimension) {
    case Dimension::bytes:
      return scaled_text(value, {{1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}, {1e3, "KB"}}, "B");
    case Dimension::parameters:
      return scaled_text(value, {{1e12, "T"}, {1e9, "B"}, {1e6, "M"}}, "");
    case Dimension::flops:
      return scaled_text(value, {{1e15, "PFLOP"}, {1e12, "TFLOP"}, {1e9, "GFLOP"}, {1e6, "MFLOP"}}, "FLOP");
    case Dimension::share:
      return fmt::format("{:.4g} %", 100 * value);
    case Dimension::seconds:
      return scaled_text(value, {{1, "s"}, {1e-3, "ms"}, {1e-6, "us"}, {1e-9, "ns"}}, "s");
    case Dimension::rate:
      return fmt::format("{:.4g} /s", value);
    case Dimension::count:
      break;
  }
  if (std::fabs(value) < 1e15 && value == std::floor(value)) return fmt::format("{}", static_cast<long long>(value));
  return fmt::format("{:.6g}", value);
}

std::string duration(double seconds) {
  return readable(seconds, Dimension::seconds);
}

}  // namespace shardproof
