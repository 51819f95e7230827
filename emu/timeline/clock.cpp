#include "emu/timeline/clock.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "emu/timeline/internal/clock_program.h"
#include "emu/timeline/internal/rank_classes.h"

namespace shardproof {
namespace {

using timeline::ClassGroup;
using timeline::RankClasses;
using timeline::under_way;

/// Where the classes of a group, or the ends of a message, come together.
struct Meeting {
  std::vector<int> present;
  double wire = 0;
};

/// Whom a step has waited for: the class, and the item of its own that ended the wait.
struct Cause {
  int last = -1;
  std::int32_t item = 0;
};

/// A collective that its ranks do something beside.
struct UnderWay {
  std::size_t present = 0;  ///< classes that have issued it
  double latest = 0;        ///< of these
  Cause last;
  double wire = 0;
  double begin = 0, end = 0;
  std::vector<int> waiting;
};

/// Those of a group, in order; how many of them each class has issued, and awaited.
struct GroupCalls {
  std::vector<UnderWay> calls;
  std::map<int, std::size_t> issued, awaited;
  double busy_until = 0;
};

class Player {
 public:
  Player(Replay& replay, const RankClasses& classes, const ClockOptions& options)
      : replay_(replay), classes_(classes), options_(options), states_(replay.program_of_class.size()) {}

  void play() {
    meetings_.resize(classes_.groups.size());
    for (auto at = static_cast<int>(states_.size()) - 1; at >= 0; --at) ready_.push_back(at);
    for (State& state : states_) state.now = options_.hardware.overhead_seconds;
    while (!ready_.empty()) {
      const int at = ready_.back();
      ready_.pop_back();
      run(at);
    }
    for (std::size_t at = 0; at < states_.size(); ++at) {
      if (states_[at].pass < options_.passes) throw std::logic_error("a call of the records never meets its peers");
    }
  }

 private:
  struct State {
    double now = 0;
    std::size_t step = 0;
    int pass = 0;
  };

  const std::vector<ClockStep>& program(int at) const { return replay_.program(at); }
  std::vector<ClockItem>& items(int at) { return replay_.items[static_cast<std::size_t>(at)]; }
  State& state(int at) { return states_[static_cast<std::size_t>(at)]; }
  const ClockStep& current(int at) { return program(at)[state(at).step]; }

  /// Until it waits for somebody, or is done.
  void run(int at) {
    State& me = state(at);
    while (me.pass < options_.passes) {
      if (me.step == program(at).size()) {
        double& end = replay_.pass_ends[static_cast<std::size_t>(me.pass)];
        end = std::max(end, me.now);
        me.step = 0;
        ++me.pass;
        me.now += options_.hardware.overhead_seconds;
        continue;
      }
      if (!do_step(at)) return;
    }
  }

  /// False: it waits.
  bool do_step(int at) {
    const ClockStep& step = current(at);
    const State& me = state(at);
    switch (step.kind) {
      case ClockStep::Kind::compute:
        finish(at, me.now, me.now + step.seconds);
        return true;
      case ClockStep::Kind::post_token:
        return post_token(at, step);
      case ClockStep::Kind::await_token:
        return await_token(at, step);
      case ClockStep::Kind::call:
        if (step.phase == CallPhase::issued) return issue(at, step);
        if (step.phase == CallPhase::awaited) return await_issued(at, step);
        if (under_way(step)) return step.operation == Operation::send ? post_message(at) : await_message(at, step);
        return is_point_to_point(step.operation) ? meet_peer(at, step) : meet_group(at, step);
    }
    return false;
  }

  void finish(int at, double begin, double end, Cause cause = {}) {
    State& me = state(at);
    items(at).push_back({.ready = me.now,
                         .begin = begin,
                         .end = end,
                         .step = static_cast<std::int32_t>(me.step),
                         .pass = me.pass,
                         .last = cause.last,
                         .item_of = cause.item});
    me.now = end;
    ++me.step;
  }

  /// The call that was just awaited was under way from `begin` to `end`.
  void hidden(int at, double begin, double end) {
    ClockItem& item = items(at).back();
    item.hidden = end - begin - (item.end - item.begin);
    if (item.pass > 0) return;
    replay_.transfers.push_back({at, static_cast<std::int32_t>(items(at).size()) - 1, begin, end});
  }

  const ClassGroup& group_of(int at, Axis axis, int& index) const {
    index = classes_.group_of[static_cast<std::size_t>(at)][static_cast<std::size_t>(axis)];
    return classes_.groups[static_cast<std::size_t>(index)];
  }

  bool meet_group(int at, const ClockStep& step) {
    int index = 0;
    const ClassGroup& group = group_of(at, step.axis, index);
    Meeting& meeting = meetings_[static_cast<std::size_t>(index)];
    meeting.present.push_back(at);
    meeting.wire = std::max(meeting.wire, step.wire);
    if (meeting.present.size() < group.distinct) return false;
    const double seconds =
        rides_along(step.op) ? 0
                             : collective_time(options_.hardware, group.shape, step.operation, meeting.wire).seconds();
    complete(at, std::exchange(meeting.present, {}), seconds);
    meeting.wire = 0;
    return true;
  }

  /// It goes on at once; the last of the group sets the call going.
  bool issue(int at, const ClockStep& step) {
    int index = 0;
    const ClassGroup& group = group_of(at, step.axis, index);
    GroupCalls& calls = under_way_[index];
    const std::size_t place = calls.issued[at]++;
    if (place == calls.calls.size()) calls.calls.emplace_back();
    UnderWay& call = calls.calls[place];
    const double now = state(at).now;
    if (call.present == 0 || now > call.latest) {
      call.latest = now;
      call.last = {at, static_cast<std::int32_t>(items(at).size())};
    }
    call.wire = std::max(call.wire, step.wire);
    if (++call.present == group.distinct) {
      call.begin = std::max(call.latest, calls.busy_until);
      call.end = call.begin + collective_time(options_.hardware, group.shape, step.operation, call.wire).seconds();
      calls.busy_until = call.end;
      ready_.insert(ready_.end(), call.waiting.begin(), call.waiting.end());
    }
    finish(at, now, now);
    return true;
  }

  bool await_issued(int at, const ClockStep& step) {
    int index = 0;
    const ClassGroup& group = group_of(at, step.axis, index);
    GroupCalls& calls = under_way_[index];
    UnderWay& call = calls.calls[calls.awaited[at]];
    if (call.present < group.distinct) {
      call.waiting.push_back(at);
      return false;
    }
    ++calls.awaited[at];
    const double now = state(at).now, end = std::max(now, call.end), begin = std::min(std::max(now, call.begin), end);
    finish(at, begin, end, call.latest > now ? call.last : Cause{});
    hidden(at, call.begin, call.end);
    return true;
  }

  bool meet_peer(int at, const ClockStep& step) {
    int index = 0;
    const ClassGroup& group = group_of(at, step.axis, index);
    const int peer = group.classes[static_cast<std::size_t>(step.peer)];
    const bool sends = step.operation == Operation::send;
    Meeting& meeting = messages_[sends ? std::pair(at, peer) : std::pair(peer, at)];
    meeting.present.push_back(at);
    if (meeting.present.size() < 2 && peer != at) return false;
    const double seconds = collective_time(options_.hardware, group.shape, step.operation, step.wire).seconds();
    complete(at, std::exchange(meeting.present, {}), seconds);
    return true;
  }

  bool post_message(int at) {
    const State& me = state(at);
    posted_[at].emplace_back(me.now, static_cast<std::int32_t>(items(at).size()));
    finish(at, me.now, me.now);
    for (const int other : std::exchange(expecting_[at], {})) ready_.push_back(other);
    return true;
  }

  bool await_message(int at, const ClockStep& step) {
    int index = 0;
    const ClassGroup& group = group_of(at, step.axis, index);
    const int sender = group.classes[static_cast<std::size_t>(step.peer)];
    std::size_t& received = received_[{at, sender}];
    if (received == posted_[sender].size()) {
      expecting_[sender].push_back(at);
      return false;
    }
    const auto [sent, item] = posted_[sender][received++];
    const double seconds = collective_time(options_.hardware, group.shape, step.operation, step.wire).seconds();
    const double now = state(at).now, begin = std::max(now, sent), end = std::max(now, sent + seconds);
    // What was sent before this rank came here is hidden so far.
    finish(at, std::min(begin, end), end, sent > now ? Cause{sender, item} : Cause{});
    hidden(at, sent, sent + seconds);
    return true;
  }

  /// All go on together; `at` is the one that runs.
  void complete(int at, const std::vector<int>& present, double seconds) {
    int last = present.front();
    for (const int other : present) {
      if (state(other).now > state(last).now || (state(other).now == state(last).now && other < last)) last = other;
    }
    const double begin = state(last).now;
    // The last one's own item comes first, so that the others can name it.
    const auto item = static_cast<std::int32_t>(items(last).size());
    finish(last, begin, begin + seconds);
    for (const int other : present) {
      if (other != last) finish(other, begin, begin + seconds, {last, item});
      if (other != at) ready_.push_back(other);
    }
  }

  using Token = std::tuple<int, int, std::int32_t>;  // class that posts, pass, microbatch

  bool post_token(int at, const ClockStep& step) {
    const State& me = state(at);
    const auto item = static_cast<std::int32_t>(items(at).size()) - 1;
    const Token token{at, me.pass, step.microbatch};
    tokens_[token] = {me.now, item};
    const auto waits = waiting_.find(token);
    finish(at, me.now, me.now);
    if (waits == waiting_.end()) return true;
    for (const int other : waits->second) ready_.push_back(other);
    waiting_.erase(waits);
    return true;
  }

  bool await_token(int at, const ClockStep& step) {
    const State& me = state(at);
    if (me.pass == 0) {
      finish(at, me.now, me.now);
      return true;
    }
    int index = 0;
    const ClassGroup& group = group_of(at, Axis::pp, index);
    const Token token{group.classes.back(), me.pass - 1, step.microbatch};
    const auto posted = tokens_.find(token);
    if (posted == tokens_.end()) {
      waiting_[token].push_back(at);
      return false;
    }
    // A few bytes a sequence: their latency.
    const double arrives =
        posted->second.first + collective_time(options_.hardware, group.shape, Operation::send, 0).seconds();
    if (arrives <= me.now) {
      finish(at, me.now, me.now);
      return true;
    }
    finish(at, arrives, arrives, {group.classes.back(), posted->second.second});
    return true;
  }

  Replay& replay_;
  const RankClasses& classes_;
  const ClockOptions& options_;
  std::vector<State> states_;
  std::vector<int> ready_;
  std::vector<Meeting> meetings_;
  std::map<std::pair<int, int>, Meeting> messages_;
  std::map<int, GroupCalls> under_way_;
  // Messages under way: when each was sent, by the class that sends; how many have come; and who waits for the next.
  std::map<int, std::vector<std::pair<double, std::int32_t>>> posted_;
  std::map<std::pair<int, int>, std::size_t> received_;
  std::map<int, std::vector<int>> expecting_;
  std::map<Token, std::pair<double, std::int32_t>> tokens_;
  std::map<Token, std::vector<int>> waiting_;
};

}  // namespace

GroupShape shape_of(const std::vector<int>& ranks, int gpus_per_node) {
  std::map<int, int> on_node;
  for (const int rank : ranks) ++on_node[rank / gpus_per_node];
  GroupShape shape{.ranks = static_cast<int>(ranks.size()), .nodes = static_cast<int>(on_node.size()), .per_node = 1};
  for (const auto& [node, count] : on_node) shape.per_node = std::max(shape.per_node, count);
  return shape;
}

Replay replay(const DryTraces& traces, const Mesh& mesh, const ClockOptions& options) {
  const RankClasses classes = timeline::rank_classes(traces, mesh, options.gpus_per_node);
  Replay replay;
  timeline::Programmer programmer(options, options.passes > 1 && mesh.degree(Axis::pp) > 1);
  std::map<const RankTrace*, int> program_of;
  for (const int rank : classes.first_rank) {
    const RankTrace& trace = traces.of(rank);
    const auto [at, is_new] = program_of.try_emplace(&trace, static_cast<int>(program_of.size()));
    if (is_new) {
      replay.programs.push_back(programmer.program(trace));
      replay.expert_rows.push_back(programmer.expert_rows());
    }
    replay.program_of_class.push_back(at->second);
    replay.items.emplace_back().reserve(replay.programs[static_cast<std::size_t>(at->second)].size() *
                                        static_cast<std::size_t>(options.passes));
  }
  replay.class_of_rank = classes.class_of_rank;
  replay.ranks_of_class = classes.ranks;
  replay.first_rank = classes.first_rank;
  replay.pass_ends.assign(static_cast<std::size_t>(options.passes), 0);
  replay.overhead = options.hardware.overhead_seconds;
  Player(replay, classes, options).play();
  return replay;
}

}  // namespace shardproof
