#include "emu/timeline/causes.h"

#include <fmt/format.h>

#include <algorithm>

namespace shardproof {
namespace {

class Ledger {
 public:
  Ledger(const Replay& replay, double begin, double end) : replay_(replay), begin_(begin), end_(end) {
    for (const int ranks : replay.ranks_of_class) ranks_ += ranks;
  }

  CauseSeconds fold() {
    for (std::size_t at = 0; at < replay_.items.size(); ++at) add_class(static_cast<int>(at));
    return std::move(seconds_);
  }

 private:
  void add(double from, double to, const TimeCause& cause) {
    const double inside = std::min(to, end_) - std::max(from, begin_);
    if (inside > 0) seconds_[cause] += share_ * inside;
  }

  void add_class(int at) {
    share_ = replay_.ranks_of_class[static_cast<std::size_t>(at)] / ranks_;
    const std::vector<ClockStep>& program = replay_.program(at);
    double now = 0;
    std::int32_t pass = -1;
    for (const ClockItem& item : replay_.items[static_cast<std::size_t>(at)]) {
      if (item.pass != pass) add(now, item.ready, {.kind = TimeCause::Kind::overhead});
      pass = item.pass;
      now = item.end;
      add_item(program[static_cast<std::size_t>(item.step)], item);
    }
    add(now, end_, {.kind = TimeCause::Kind::bubble});
  }

  void add_item(const ClockStep& step, const ClockItem& item) {
    if (step.kind == ClockStep::Kind::compute) {
      add(item.begin, item.end, {.kind = TimeCause::Kind::computing, .op = step.op});
      return;
    }
    const bool of_stages = step.kind != ClockStep::Kind::call || step.axis == Axis::pp;
    const TimeCause waiting{.kind = TimeCause::Kind::waiting, .axis = step.axis, .operation = step.operation};
    add(item.ready, item.begin, of_stages ? TimeCause{.kind = TimeCause::Kind::bubble} : waiting);
    add(item.begin, item.end, {.kind = TimeCause::Kind::moving, .axis = step.axis, .operation = step.operation});
  }

  const Replay& replay_;
  double begin_, end_;
  double ranks_ = 0;
  double share_ = 0;  // of all ranks, that the class at hand is
  CauseSeconds seconds_;
};

}  // namespace

std::string describe(const TimeCause& cause) {
  switch (cause.kind) {
    case TimeCause::Kind::overhead:
      return "engine";
    case TimeCause::Kind::computing:
      return fmt::format("{} computing", to_string(cause.op));
    case TimeCause::Kind::moving:
      return fmt::format("{} over {}", to_string(cause.operation), to_string(cause.axis));
    case TimeCause::Kind::waiting:
      return fmt::format("waiting for {} over {}", to_string(cause.operation), to_string(cause.axis));
    case TimeCause::Kind::bubble:
      break;
  }
  return "bubble";
}

CauseSeconds seconds_by_cause(const Replay& replay, double begin, double end) {
  return Ledger(replay, begin, end).fold();
}

}  // namespace shardproof
