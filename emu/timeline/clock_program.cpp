#include "emu/timeline/internal/clock_program.h"

#include <algorithm>
#include <map>
#include <utility>

namespace shardproof::timeline {
namespace {

double wire_bytes(const OpRecord& call) {
  const auto in = static_cast<double>(call.elements), out = static_cast<double>(call.received);
  const auto kept = static_cast<double>(call.kept);
  const double ranks = call.group_size;
  switch (call.operation) {
    case Operation::all_reduce:
      return 2 * (ranks - 1) / ranks * in * call.width;
    case Operation::all_gather:
      return (out - in) * call.width;
    case Operation::reduce_scatter:
      return (in - kept) * call.width;
    case Operation::all_to_all:
      return (std::max(in, out) - kept) * call.width;
    default:
      return in * call.width;
  }
}

bool is_same_group(const OpRecord& before, const OpRecord& record) {
  return before.op == record.op && before.layer == record.layer && before.microbatch == record.microbatch;
}

ClockStep step_of(const OpRecord& record, std::int32_t at) {
  ClockStep step;
  step.op = record.op;
  step.layer = record.layer;
  step.microbatch = record.microbatch;
  step.record = at;
  step.rows = record.rows;
  return step;
}

}  // namespace

bool under_way(const ClockStep& call) {
  return (call.axis == Axis::cp || call.axis == Axis::cp_p2p) && is_point_to_point(call.operation);
}

std::vector<ClockStep> Programmer::program(const RankTrace& trace) {
  std::vector<ClockStep> all;
  experts_.clear();
  std::map<std::size_t, std::vector<ClockStep>> known;  // by the first of the records
  for (const RecordRun& run : trace.all_runs()) {
    const auto [at, is_new] = known.try_emplace(run.begin);
    if (is_new) at->second = steps_of(trace.ops, run);
    for (std::int32_t layer = 0; layer < run.layers; ++layer) {
      for (const ClockStep& recorded : at->second) {
        ClockStep& step = all.emplace_back(recorded);
        if (step.layer >= 0) step.layer += run.layer_shift + layer;
        step.microbatch += run.microbatch_shift;
      }
    }
  }
  return all;
}

std::vector<ClockStep> Programmer::steps_of(const std::vector<OpRecord>& records, const RecordRun& run) {
  steps_.clear();
  for (std::size_t i = run.begin; i < run.end; ++i) {
    const OpRecord& record = records[i];
    const auto at = static_cast<std::int32_t>(i);
    if (record.op == Op::embedding) token(ClockStep::Kind::await_token, record, at);
    if (record.call) {
      call(record, at);
    } else if (record.op == Op::moe_expert && i > run.begin && is_same_group(records[i - 1], record)) {
      add_to_kernel(record);
    } else {
      compute(record, at);
    }
    if (record.op == Op::logits) token(ClockStep::Kind::post_token, record, at);
  }
  return std::move(steps_);
}

void Programmer::token(ClockStep::Kind kind, const OpRecord& record, std::int32_t at) {
  if (!tokens_return_) return;
  ClockStep step = step_of(record, at);
  step.kind = kind;
  step.records = 0;
  steps_.push_back(step);
}

void Programmer::compute(const OpRecord& record, std::int32_t at) {
  ClockStep step = step_of(record, at);
  step.work = work_of(record, options_.rules);
  step.seconds = seconds_of(step.work, options_.hardware);
  if (record.op == Op::moe_expert) {
    step.experts_at = static_cast<std::int32_t>(experts_.size());
    experts_.push_back({record.expert, record.rows});
  }
  steps_.push_back(step);
  if (record.op != Op::attention_ring_part) return;
  steps_.insert(steps_.end(), awaited_.begin(), awaited_.end());
  awaited_.clear();
}

void Programmer::add_to_kernel(const OpRecord& record) {
  ClockStep& step = steps_.back();
  const KernelWork more = work_of(record, options_.rules);
  step.work.flops += more.flops;
  step.work.bytes += more.bytes;
  step.seconds = seconds_of(step.work, options_.hardware);
  ++step.records;
  experts_.push_back({record.expert, record.rows});
  step.rows += record.rows;
}

void Programmer::call(const OpRecord& record, std::int32_t at) {
  ClockStep step = step_of(record, at);
  step.kind = ClockStep::Kind::call;
  step.phase = record.phase;
  step.axis = record.axis;
  step.operation = record.operation;
  step.peer = record.peer;
  step.wire = wire_bytes(record);
  if (under_way(step) && step.operation == Operation::recv) {
    awaited_.push_back(step);
  } else {
    steps_.push_back(step);
  }
}

}  // namespace shardproof::timeline
