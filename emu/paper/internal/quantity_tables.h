// The parts of the quantity table, and what they share.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "emu/paper/quantities.h"

namespace shardproof::quantity_table {

void add_mesh_quantities(std::vector<QuantityDefinition>& table);
void add_memory_quantities(std::vector<QuantityDefinition>& table);
void add_work_quantities(std::vector<QuantityDefinition>& table);
void add_time_quantities(std::vector<QuantityDefinition>& table);

inline QuantityValue number(double value, std::string arithmetic) {
  QuantityValue result;
  result.value = value;
  result.arithmetic = std::move(arithmetic);
  return result;
}

inline QuantityValue unknown(std::string why) {
  QuantityValue result;
  result.unknown = std::move(why);
  return result;
}

using RankFunction = std::function<double(const RankFigures&)>;
using RankText = std::function<std::string(const RankFigures&)>;

/// Max, min and mean over the ranks; the arithmetic is that of the rank with the most.
inline QuantityValue over_ranks(const QuantityContext& context, const RankFunction& value, const RankText& text = {}) {
  QuantityValue result;
  result.per_rank = true;
  double sum = 0;
  bool first = true;
  for (const RankFigures& rank : context.ranks) {
    const double v = value(rank);
    sum += v;
    if (first || v > result.max) {
      result.max = v;
      result.max_rank = rank.rank;
    }
    if (first || v < result.min) result.min = v;
    first = false;
  }
  // The mean of equal values is that value, whatever the rounding of the sum.
  result.mean = result.max == result.min ? result.max : sum / static_cast<double>(context.ranks.size());
  if (text) result.arithmetic = text(context.ranks[static_cast<std::size_t>(result.max_rank)]);
  return result;
}

/// An entry whose value depends on no argument.
inline QuantityDefinition entry(std::string name, std::string unit, Dimension dimension, std::string formula,
                                std::function<QuantityValue(const QuantityContext&)> compute) {
  return {std::move(name),
          std::move(unit),
          std::move(formula),
          [compute = std::move(compute)](const QuantityContext& context, std::span<const double>) {
            return compute(context);
          },
          0,
          dimension};
}

}  // namespace shardproof::quantity_table
