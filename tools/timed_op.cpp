#include "tools/timed_op.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "ops/machine.h"
#include "tools/median.h"
#include "tools/prepared_op.h"
#include "tools/terminal.h"

namespace shardproof::tools {
namespace {

constexpr double kLeastRepetition = 0.005;
/// Fewer rows are slower each.
constexpr std::int64_t kLeastRows = 512;
/// A slow machine's: only to decide how much is run.
constexpr double kSlowFlops = 2e10;
constexpr double kSlowBytes = 2e9;

bool is_attention(Kernel kernel) {
  return kernel == Kernel::attention || kernel == Kernel::attention_part;
}

bool reads_mostly(Kernel kernel) {
  return kernel == Kernel::linear || kernel == Kernel::expert || is_attention(kernel) ||
         kernel == Kernel::absorb_queries || kernel == Kernel::latent_attention || kernel == Kernel::expand_context;
}

/// What the machine can do beside an op of this cost.
struct Limit {
  double arithmetic = 0;
  double memory = 0;
};

Limit limit_beside(const ops::Cost& cost, Kernel kernel, ops::Format format) {
  const double peak = ops::computes_in_double(format) ? ops::peak_flops<double>() : ops::peak_flops<float>();
  const auto bytes = static_cast<std::size_t>(std::clamp(cost.bytes, 0x1p14, 0x1p27));
  const double rate = reads_mostly(kernel) ? ops::read_bandwidth(bytes) : ops::copy_bandwidth(bytes / 2);
  return {cost.flops / peak, cost.bytes / rate};
}

double seconds_of(const PreparedOp& op, int calls) {
  const double begin = ops::thread_seconds();
  for (int i = 0; i < calls; ++i) op.run();
  return (ops::thread_seconds() - begin) / calls;
}

void time_prepared(const PreparedOp& prepared, const ops::Cost& run_cost, ops::Format format, int repetitions,
                   TimedOp& result) {
  const double once = seconds_of(prepared, 1);
  const int calls = static_cast<int>(std::clamp(kLeastRepetition / std::max(once, 1e-8), 1.0, 1e5));
  std::vector<double> arithmetic, memory;
  for (int i = 0; i < repetitions; ++i) {
    const Limit limit = limit_beside(run_cost, result.op.shape.kernel, format);
    prepared.run();  // not timed: measuring the limit emptied the caches
    result.seconds.push_back(seconds_of(prepared, calls) / result.part);
    result.limit_seconds.push_back(std::max(limit.arithmetic, limit.memory) / result.part);
    arithmetic.push_back(limit.arithmetic);
    memory.push_back(limit.memory);
  }
  result.limited_by_arithmetic = median(arithmetic) > median(memory);
}

}  // namespace

double TimedOp::median_seconds() const {
  return seconds.empty() ? 0 : median(seconds);
}

double TimedOp::of_limit() const {
  std::vector<double> shares;
  for (std::size_t i = 0; i < seconds.size(); ++i) shares.push_back(limit_seconds[i] / seconds[i]);
  return shares.empty() ? 0 : median(shares);
}

OpShape part_within(const OpShape& shape, ops::Format format, double most_seconds, double& share) {
  const ops::Cost cost = cost_of(shape, ops::scalar_bytes(format));
  const double wanted = most_seconds / std::max(cost.flops / kSlowFlops, cost.bytes / kSlowBytes);
  share = 1;
  if (wanted >= 1) return shape;
  OpShape part = shape;
  if (is_attention(shape.kernel)) {
    const std::int64_t group = shape.cols / shape.kv_heads;
    part.kv_heads = std::max<std::int64_t>(1, static_cast<std::int64_t>(static_cast<double>(shape.kv_heads) * wanted));
    part.cols = part.kv_heads * group;
    share = static_cast<double>(part.kv_heads) / static_cast<double>(shape.kv_heads);
  } else if (shape.kernel == Kernel::latent_attention) {
    const auto heads = static_cast<std::int64_t>(static_cast<double>(shape.heads()) * wanted);
    part.cols = std::max<std::int64_t>(1, heads) * shape.value_dim;
    share = static_cast<double>(part.cols) / static_cast<double>(shape.cols);
  } else {
    const auto rows = static_cast<std::int64_t>(static_cast<double>(shape.rows) * wanted);
    part.rows = std::min(shape.rows, std::max(kLeastRows, rows));
    share = static_cast<double>(part.rows) / static_cast<double>(shape.rows);
    part.present = static_cast<std::int64_t>(static_cast<double>(shape.present) * share);
  }
  return part;
}

TimedOp time_op(const CountedOp& op, ops::Format format, const TimingOptions& options) {
  TimedOp result{.op = op, .cost = cost_of(op.shape, ops::scalar_bytes(format))};
  const OpShape part = part_within(op.shape, format, options.most_seconds, result.part);
  if (const double needed = memory_of(part, format); needed > options.memory) {
    result.left_out =
        fmt::format("its operands take {}, of {} that may be used", human_bytes(needed), human_bytes(options.memory));
    return result;
  }
  const PreparedOp prepared = prepare_op(part, format);
  prepared.run();
  result.wrong = prepared.wrong();
  if (result.wrong.empty()) {
    time_prepared(prepared, cost_of(part, ops::scalar_bytes(format)), format, options.repetitions, result);
  }
  return result;
}

}  // namespace shardproof::tools
