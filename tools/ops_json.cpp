#include "tools/ops_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <thread>

#include "tools/version.h"

namespace shardproof::tools {
namespace {

using Json = nlohmann::ordered_json;

void add_repetitions(const TimedOp& timed, Json& benchmarks) {
  const std::string name = benchmark_name(timed.op.shape);
  for (std::size_t i = 0; i < timed.seconds.size(); ++i) {
    const double seconds = timed.seconds[i];
    Json entry{{"name", name},
               {"run_name", name},
               {"run_type", "iteration"},
               {"repetitions", timed.seconds.size()},
               {"repetition_index", i},
               {"threads", 1},
               {"iterations", 1},
               {"real_time", seconds * 1e9},
               {"cpu_time", seconds * 1e9},
               {"time_unit", "ns"},
               {"count", timed.op.count},
               {"part", timed.part},
               {"of_limit", timed.limit_seconds[i] / seconds},
               {"GFLOP/s", timed.cost.flops / seconds * 1e-9},
               {"GB/s", timed.cost.bytes / seconds * 1e-9}};
    benchmarks.push_back(std::move(entry));
  }
}

Json not_timed(const OpsReport& report) {
  Json list = Json::array();
  for (const LeftOut& op : report.left_out) {
    list.push_back({{"op", to_string(op.op)}, {"count", op.count}, {"why", op.why}});
  }
  for (const TimedOp& op : report.ops) {
    if (op.timed()) continue;
    list.push_back({{"op", benchmark_name(op.op.shape)},
                    {"count", op.op.count},
                    {"why", op.wrong.empty() ? op.left_out : "wrong: " + op.wrong}});
  }
  return list;
}

}  // namespace

double OpsReport::step_seconds() const {
  double sum = 0;
  for (const TimedOp& timed : ops) sum += timed.median_seconds() * static_cast<double>(timed.op.count);
  return sum;
}

double OpsReport::step_flops() const {
  double sum = 0;
  for (const TimedOp& timed : ops) {
    if (timed.timed()) sum += timed.cost.flops * static_cast<double>(timed.op.count);
  }
  return sum;
}

std::string to_json(const OpsReport& report) {
  Json document{{"schema", "shardproof.ops/1"},
                {"context",
                 {{"library", fmt::format("shardproof {}", kVersion)},
                  {"executable", "shardproof ops"},
                  {"num_cpus", std::thread::hardware_concurrency()},
                  {"plan", report.plan},
                  {"rank", report.rank},
                  {"phase", report.phase},
                  {"format", ops::to_string(report.format)}}},
                {"step_seconds", report.step_seconds()},
                {"step_flops", report.step_flops()},
                {"collective_calls", report.calls},
                {"not_timed", not_timed(report)},
                {"benchmarks", Json::array()}};
  for (const TimedOp& timed : report.ops) add_repetitions(timed, document["benchmarks"]);
  return document.dump(2) + "\n";
}

}  // namespace shardproof::tools
