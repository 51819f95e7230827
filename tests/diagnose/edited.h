// Ops that differ from their reference, and faults inside an op.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "emu/judge/prepared.h"
#include "emu/plan/plan.h"
#include "emu/run/fault.h"

namespace shardproof::testing {

/// The reference of the plan with a tap edited: the op that makes the tap differs from it, and nothing else does.
inline PreparedReference reference_with(const Plan& plan, const TapId& id,
                                        const std::function<void(std::vector<double>&)>& edit) {
  PreparedReference prepared = prepare_reference(plan, ops::Format::exact);
  ExpectedTaps edited;
  for (const ExpectedTap& tap : prepared.expected.all()) {
    std::vector<double> values = tap.values;
    if (*tap.id == id) edit(values);
    edited.add(*tap.id, tap.rows, tap.cols, std::move(values), tap.traits);
  }
  prepared.expected = std::move(edited);
  return prepared;
}

/// The program's result of one op in one layer, on the ranks of tp 0, edited.
class EditedResult final : public FaultInjector {
 public:
  using Edit = std::function<void(ops::MatrixView<double>)>;
  EditedResult(Op op, int layer, Edit edit) : op_(op), layer_(layer), edit_(std::move(edit)) {}
  void edit_double_result(const Rank& rank, Op op, const FaultSite& site, ops::MatrixView<double> result) override {
    if (op == op_ && site.layer == layer_ && rank.at().tp == 0) edit_(result);
  }

 private:
  Op op_;
  int layer_;
  Edit edit_;
};

inline void add_noise(ops::MatrixView<double> result) {
  for (ops::Index row = 0; row < result.rows; ++row) {
    for (ops::Index col = 0; col < result.cols; ++col) {
      result(row, col) += 0x1p-10 * static_cast<double>((row * 7 + col * col) % 13);
    }
  }
}

}  // namespace shardproof::testing
