// A small model that every kind of degree divides, and weights of one's own for it.
#pragma once

#include <functional>

#include "emu/plan/plan.h"
#include "emu/weights/store.h"

namespace shardproof::testing {

/// 4 layers, 4 heads on 2 key-value heads, 4 experts of which 2 serve a token, 8 sequences of 8 tokens.
Plan small_plan(const Parallel& parallel);

/// The generator's weights, each value edited.
class EditedWeights final : public WeightSource {
 public:
  using Edit = std::function<double(const WeightSpec& spec, std::int64_t row, std::int64_t col, double value)>;
  EditedWeights(std::uint64_t seed, Edit edit) : generated_(seed), edit_(std::move(edit)) {}
  void read(const WeightSpec& spec, Range rows, Range cols, ops::MatrixView<double> out) const override;

 private:
  GeneratedWeights generated_;
  Edit edit_;
};

}  // namespace shardproof::testing
