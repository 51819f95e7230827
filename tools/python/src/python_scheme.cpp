#include "tools/python/src/python_scheme.h"

#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <stdexcept>
#include <utility>

namespace shardproof::python {
namespace {

int world_of(const Parallel& parallel) {
  std::int64_t world = 1;
  for (const int degree : {parallel.tp, parallel.cp, parallel.dp, parallel.pp}) {
    if (degree < 1) throw std::invalid_argument("degrees are at least 1");
    world *= degree;
    if (world > kMaxThreadRanks) throw std::invalid_argument("more than 1024 ranks: each is a thread of its own");
  }
  return static_cast<int>(world);
}

std::chrono::nanoseconds patience_of(double seconds) {
  if (!(seconds > 0)) throw std::invalid_argument("patience is a positive number of seconds");
  constexpr double kYear = 365.0 * 24 * 3600;
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(std::min(seconds, kYear)));
}

}  // namespace

PythonScheme::PythonScheme(const Parallel& parallel, double patience_seconds)
    : parallel_(parallel),
      ranks_(world_of(parallel), patience_of(patience_seconds)),
      seats_(static_cast<std::size_t>(world_of(parallel))),
      process_(getpid()) {}

VerifyReport PythonScheme::run(const ExpectedTaps& expected, SchemeOptions options) {
  options.thread_ranks = &ranks_;
  const auto program = [this](Rank& rank) {
    Seat& seat = seats_[static_cast<std::size_t>(to_int(rank.id()))];
    seat.rank = &rank;
    ++seat.run;
    return ranks_.program(rank.id());
  };
  return verify_scheme(parallel_, program, expected, options);
}

bool PythonScheme::begin(int rank) {
  if (!ranks_.begin(GlobalRank{rank})) return false;
  Seat& seat = seats_[static_cast<std::size_t>(rank)];
  seat.thread = std::this_thread::get_id();
  seat.refused = nullptr;
  return true;
}

void PythonScheme::end(int rank, const std::optional<std::string>& failure) {
  Seat& seat = seats_[static_cast<std::size_t>(rank)];
  std::exception_ptr error;
  if (failure) error = seat.refused ? seat.refused : std::make_exception_ptr(std::runtime_error(*failure));
  ranks_.end(GlobalRank{rank}, error);
}

PythonScheme::Seat& PythonScheme::own_seat(int rank) {
  Seat& seat = seats_.at(static_cast<std::size_t>(rank));
  if (getpid() != process_) {
    throw std::logic_error("this process was forked from a run: its ranks live in the parent; fork before run()");
  }
  if (seat.thread != std::this_thread::get_id()) {
    throw std::logic_error("rank " + std::to_string(rank) +
                           " was used by another thread than its own; call from the thread that runs its function");
  }
  return seat;
}

GroupHandle PythonScheme::group(int rank, const std::string& axis, const std::vector<int>& members) {
  const Seat& seat = own_seat(rank);
  const ThreadRanks::Inside inside(ranks_, GlobalRank{rank});
  if (axis == "world") return GroupHandle(seat.run, seat.rank->world());
  if (members.empty()) {
    for (const Axis named : kAxes) {
      if (axis == to_string(named)) return GroupHandle(seat.run, seat.rank->on(named));
    }
    throw std::invalid_argument("a group without members");
  }
  std::vector<GlobalRank> ids;
  for (const int member : members) ids.push_back(GlobalRank{member});
  return GroupHandle(seat.run, labelled_group(seat.rank->world(), axis, ids));
}

PendingCall PythonScheme::pending(int rank, const GroupHandle& group, const CallRequest& request) {
  Seat& seat = own_seat(rank);
  if (group.run != seat.run) throw RunOver();
  CallSpec spec{.operation = request.operation,
                .type = request.type,
                .in = request.in,
                .in_count = request.in_count,
                .out = request.out,
                .out_count = request.out_count,
                .options = request.options,
                .where = SourceLocation::current(request.file, request.function, request.line)};
  spec.details.root = request.root;
  spec.details.counts_given = request.counts.has_value();
  if (request.counts) spec.details.counts = *request.counts;
  spec.details.recv_counts = request.recv_counts;
  spec.details.sends = request.sends;
  spec.details.recvs = request.recvs;
  const ThreadRanks::Inside inside(ranks_, GlobalRank{rank});
  try {
    return group.communicator.call(spec);
  } catch (const InvalidCall&) {
    seat.refused = std::current_exception();
    throw;
  }
}

void PythonScheme::call(int rank, const GroupHandle& group, const CallRequest& request) {
  ranks_.await(GlobalRank{rank}, pending(rank, group, request));
}

CallHandle PythonScheme::issue(int rank, const GroupHandle& group, const CallRequest& request) {
  return ranks_.issue(GlobalRank{rank}, pending(rank, group, request));
}

template <class Wait>
void PythonScheme::waiting(int rank, const Wait& wait) {
  Seat& seat = own_seat(rank);
  try {
    wait();
  } catch (const InvalidCall&) {
    seat.refused = std::current_exception();
    throw;
  }
}

void PythonScheme::wait(int rank, CallHandle& handle) {
  waiting(rank, [&] { ranks_.await(GlobalRank{rank}, handle); });
}

void PythonScheme::issue_and_wait(int rank, const GroupHandle& group, const CallRequest& request) {
  waiting(rank, [&] { ranks_.issue_and_await(GlobalRank{rank}, pending(rank, group, request)); });
}

void PythonScheme::tap(int rank, const std::string& name, int step, const Placement& placement,
                       const TapValues& values) {
  const Seat& seat = own_seat(rank);
  const ThreadRanks::Inside inside(ranks_, GlobalRank{rank});
  std::visit([&]<class T>(ops::MatrixView<const T> part) { seat.rank->tap<T>(name, part, placement, step); }, values);
}

std::vector<int> PythonScheme::at(int rank) const {
  const Coordinates at = Mesh(parallel_).coordinates(rank);
  return {at.tp, at.cp, at.dp, at.pp, at.etp, at.ep, at.edp};
}

const char* interned(const std::string& text) {
  static std::mutex mutex;
  static std::set<std::string>& texts = *new std::set<std::string>;  // outlives every thread
  const std::lock_guard lock(mutex);
  return texts.insert(text).first->c_str();
}

}  // namespace shardproof::python
