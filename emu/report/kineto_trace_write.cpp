#include <fmt/format.h>

#include <cmath>
#include <iterator>
#include <utility>

#include "emu/report/kineto_trace.h"

namespace shardproof {
namespace {

constexpr int kComputeStream = 7;
constexpr int kCommunicationStream = 13;
constexpr int kProcess = 1000;  ///< of the host; GPUs are numbered as ranks are
constexpr int kThread = 1;

std::string_view nccl_name(Operation operation) {
  switch (operation) {
    case Operation::all_reduce:
      return "ncclDevKernel_AllReduce_Sum_bf16_RING_LL";
    case Operation::all_gather:
      return "ncclDevKernel_AllGather_RING_LL";
    case Operation::reduce_scatter:
      return "ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL";
    default:
      return "ncclDevKernel_SendRecv";
  }
}

class KinetoWriter {
 public:
  KinetoWriter(const PassTiming& pass, const Plan& plan, int rank) : pass_(pass), plan_(plan), rank_(rank) {}

  std::string write() {
    fmt::format_to(out(),
                   "{{\n\"schemaVersion\": 1,\n\"distributedInfo\": {{\n\"backend\": \"nccl\",\n\"rank\": {},\n"
                   "\"world_size\": {}\n}},\n\"displayTimeUnit\": \"ms\",\n\"baseTimeNanoseconds\": 0,\n"
                   "\"traceEvents\": [",
                   rank_, plan_.world());
    add_profiler_step();
    const int of_class = pass_.replay.class_of_rank[static_cast<std::size_t>(rank_)];
    for (const ClockItem& item : pass_.replay.of_rank(rank_)) {
      if (item.pass > 0) break;
      const ClockStep& step = pass_.replay.program(of_class)[static_cast<std::size_t>(item.step)];
      // What takes no time was no kernel.
      if (step.kind == ClockStep::Kind::compute && item.end > item.begin) {
        add_kernel(fmt::format("{}", to_string(step.op)), kComputeStream, item.begin, item.end, step);
      } else if (step.kind == ClockStep::Kind::call && item.end > item.ready) {
        add_kernel(std::string(nccl_name(step.operation)), kCommunicationStream, item.ready, item.end, step);
      }
    }
    text_ += "\n]\n}\n";
    return std::move(text_);
  }

 private:
  std::back_insert_iterator<std::string> out() { return std::back_inserter(text_); }

  template <class... Args>
  void event(fmt::format_string<Args...> format, Args&&... args) {
    text_ += first_ ? "\n" : ",\n";
    first_ = false;
    fmt::format_to(out(), format, std::forward<Args>(args)...);
  }

  /// Ends are rounded, not lengths: what touches still touches.
  static double us(double seconds) { return std::round(seconds * 1e9) * 1e-3; }

  void add_profiler_step() {
    event(R"({{"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#1", "pid": {}, "tid": {}, "ts": 0.000, )"
          R"("dur": {:.3f}, "args": {{"External id": 1}}}})",
          kProcess, kThread, us(pass_.seconds));
  }

  void add_kernel(const std::string& name, int stream, double begin, double end, const ClockStep& step) {
    ++correlation_;
    const double from = us(begin), length = us(end) - us(begin);
    event(R"({{"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": {}, "tid": {}, "ts": {:.3f}, )"
          R"("dur": 0.001, "args": {{"correlation": {}}}}})",
          kProcess, kThread, from, correlation_);
    event(R"({{"ph": "X", "cat": "kernel", "name": "{}", "pid": {}, "tid": {}, "ts": {:.3f}, "dur": {:.3f}, "args": )"
          R"({{"stream": {}, "device": {}, "correlation": {}, "layer": {}, "microbatch": {}, "op": "{}"}}}})",
          name, rank_, stream, from, length, stream, rank_, correlation_, step.layer, step.microbatch,
          to_string(step.op));
    for (const char* end_of : {"s", "f"}) {
      const bool start = *end_of == 's';
      event(R"({{"ph": "{}", "cat": "ac2g", "name": "ac2g", "id": {}, "pid": {}, "tid": {}, "ts": {:.3f}{}}})", end_of,
            correlation_, start ? kProcess : rank_, start ? kThread : stream, from, start ? "" : R"(, "bp": "e")");
    }
  }

  const PassTiming& pass_;
  const Plan& plan_;
  int rank_;
  std::string text_;
  bool first_ = true;
  std::int64_t correlation_ = 0;
};

}  // namespace

std::string kineto_trace(const PassTiming& pass, const Plan& plan, int rank) {
  return KinetoWriter(pass, plan, rank).write();
}

}  // namespace shardproof
