#include "tests/support/small_plan.h"

#include "tests/support/model.h"

namespace shardproof::testing {

Plan small_plan(const Parallel& parallel) {
  Plan plan;
  plan.name = "small";
  plan.model = testing::uniform_model({.hidden_size = 16,
                                       .layers = 4,
                                       .heads = 4,
                                       .kv_heads = 2,
                                       .head_dim = 4,
                                       .intermediate_size = 8,
                                       .experts = 4,
                                       .top_k = 2,
                                       .vocab_size = 32});
  plan.parallel = parallel;
  plan.workload = {.lengths = {8, 8, 8, 8, 8, 8, 8, 8}, .microbatches = 2, .seed = 11};
  return plan;
}

void EditedWeights::read(const WeightSpec& spec, Range rows, Range cols, ops::MatrixView<double> out) const {
  generated_.read(spec, rows, cols, out);
  for (std::int64_t i = 0; i < rows.count; ++i) {
    for (std::int64_t j = 0; j < cols.count; ++j) {
      out(i, j) = edit_(spec, rows.begin + i, cols.begin + j, out(i, j));
    }
  }
}

}  // namespace shardproof::testing
