// Ops that differ from their reference, and faults inside an op.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <utility>
#include <vector>

#include "emu/judge/prepared.h"
#include "emu/judge/verify.h"
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

/// A reference that some values of a tap differ from: the op is named as that, at the tap, and no sharding is blamed.
inline void expect_an_op_that_differs_is_named(const Plan& plan, TapKind kind) {
  const TapId id{.layer = tap_row(kind).in_layer ? 1 : -1, .kind = kind};
  const PreparedReference reference = reference_with(plan, id, [&](std::vector<double>& values) {
    if (kind == TapKind::router_choice) return std::swap(values[0], values[1]);
    for (std::size_t i = 0; i < values.size(); i += 3) values[i] += 0x1p-10 * static_cast<double>(1 + i % 5);
  });

  const VerifyReport report = verify(plan, {.format = ops::Format::exact, .prepared = &reference});

  ASSERT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, to_string(id));
  EXPECT_EQ(report.first_divergence->cause->name, "op_differs") << report.first_divergence->cause->evidence;
}

}  // namespace shardproof::testing
