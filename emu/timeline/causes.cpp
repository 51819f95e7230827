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
    CauseSeconds seconds;
    for (const Total& total : totals_) {
      if (total.seconds > 0) seconds[total.cause] = total.seconds;
    }
    return seconds;
  }

 private:
  struct Total {
    TimeCause cause;
    double seconds = 0;
  };

  /// Where a cause is kept.
  static std::size_t place_of(const TimeCause& cause) {
    constexpr std::size_t kOperations = static_cast<std::size_t>(Operation::exchange) + 1;
    constexpr std::size_t kCalls = kAxisCount * kOperations;
    const std::size_t call =
        static_cast<std::size_t>(cause.axis) * kOperations + static_cast<std::size_t>(cause.operation);
    switch (cause.kind) {
      case TimeCause::Kind::overhead:
        return 0;
      case TimeCause::Kind::bubble:
        return 1;
      case TimeCause::Kind::computing:
        return 2 + static_cast<std::size_t>(cause.op);
      case TimeCause::Kind::moving:
        return 2 + kOps + call;
      case TimeCause::Kind::waiting:
        break;
    }
    return 2 + kOps + kCalls + call;
  }

  void add(double from, double to, const TimeCause& cause) {
    const double inside = std::min(to, end_) - std::max(from, begin_);
    if (inside <= 0) return;
    const std::size_t place = place_of(cause);
    if (place >= totals_.size()) totals_.resize(place + 1);
    totals_[place].cause = cause;
    totals_[place].seconds += share_ * inside;
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
  std::vector<Total> totals_;
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
