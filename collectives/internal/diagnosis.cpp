// The wait-for graph of a run that can go no further, and what it says.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "collectives/internal/state.h"

namespace shardproof::internal {

namespace {

class Diagnosis {
 public:
  explicit Diagnosis(const WorldState& world) : world_(world), rendezvous_of_(world.ranks.size()) {}

  WaitGraph run() {
    for (const GroupState* group : in_order(world_)) {
      add_collective(*group, *group);
      for (const auto& [number, lane] : group->lanes) add_collective(*lane, *group);
      add_messages(*group);
    }
    for (Rendezvous& rendezvous : graph_.rendezvous) {
      for (AbsentRank& absent : rendezvous.absent) classify(absent);
    }
    find_cycle();
    explain_endings();
    explain_memberships();
    explain_cycle();
    explain_stragglers();
    return std::move(graph_);
  }

 private:
  static std::size_t index(GlobalRank rank) { return static_cast<std::size_t>(to_int(rank)); }

  void add(Rendezvous rendezvous, const GroupState& group) {
    for (const CallInfo& call : rendezvous.arrived) {
      rendezvous_of_[index(call.rank)].push_back(static_cast<int>(graph_.rendezvous.size()));
    }
    graph_.rendezvous.push_back(std::move(rendezvous));
    groups_.push_back(&group);
  }

  // A meeting of the group: its own, of blocking calls, or in a lane.
  void add_collective(const GroupState& meeting, const GroupState& group) {
    Rendezvous rendezvous;
    rendezvous.group = group.group.name();
    for (std::size_t i = 0; i < group.members.size(); ++i) {
      const Call* call = meeting.members[i].call;
      if (call == nullptr) {
        rendezvous.absent.push_back({group.group.members[i], Absence::outside, -1, group.members[i].collectives});
      } else if (is_awaited(*call)) {
        rendezvous.arrived.push_back(describe(*call));
      } else if (!has_ended(*call)) {
        rendezvous.issued.push_back(describe(*call));
      }
    }
    if (rendezvous.arrived.empty()) return;
    rendezvous.operation = rendezvous.arrived.front().operation;
    rendezvous.sequence = rendezvous.arrived.front().sequence;
    add(std::move(rendezvous), group);
  }

  void add_messages(const GroupState& group) {
    if (group.mailboxes == nullptr) return;
    for (std::size_t i = 0; i < group.members.size(); ++i) {
      for (const auto* waiting : {&group.mailboxes[i].sends, &group.mailboxes[i].recvs}) {
        // They came in the order of the schedule; show them in the order of the ranks.
        std::vector<Mailbox::Waiting> messages = *waiting;
        std::stable_sort(messages.begin(), messages.end(), [](const Mailbox::Waiting& a, const Mailbox::Waiting& b) {
          return a.call->rank < b.call->rank;
        });
        for (const Mailbox::Waiting& message : messages) {
          Rendezvous rendezvous;
          rendezvous.group = group.group.name();
          rendezvous.operation = message.part.is_send ? Operation::send : Operation::recv;
          rendezvous.arrived.push_back(describe(*message.call, message.part));
          rendezvous.sequence = message.call->sequence;
          const auto peer = static_cast<std::size_t>(to_int(message.part.peer));
          rendezvous.absent.push_back(
              {group.group.members[peer], Absence::outside, -1, group.members[peer].point_to_point});
          add(std::move(rendezvous), group);
        }
      }
    }
  }

  void classify(AbsentRank& absent) const {
    const RankState& rank = world_.ranks[index(absent.rank)];
    if (!rendezvous_of_[index(absent.rank)].empty()) {
      absent.why = Absence::waiting;
      absent.at = rendezvous_of_[index(absent.rank)].front();
    } else if (rank.start_error || rank.task.error()) {
      absent.why = Absence::failed;
    } else if (rank.task.done()) {
      absent.why = Absence::finished;
    }
  }

  // Depth-first over the rendezvous: one leads to another where an absent rank waits. Not recursive: a chain may be as
  // long as the world.
  void find_cycle() {
    enum class Colour : char { white, grey, black };
    struct Frame {
      int rendezvous;
      std::size_t absent;
      std::size_t place;
    };
    std::vector<Colour> colour(graph_.rendezvous.size(), Colour::white);
    for (std::size_t start = 0; start < colour.size(); ++start) {
      if (colour[start] != Colour::white) continue;
      std::vector<Frame> path{{static_cast<int>(start), 0, 0}};
      colour[start] = Colour::grey;
      while (!path.empty()) {
        Frame& top = path.back();
        const auto& absent = graph_.rendezvous[static_cast<std::size_t>(top.rendezvous)].absent;
        if (top.absent == absent.size()) {
          colour[static_cast<std::size_t>(top.rendezvous)] = Colour::black;
          path.pop_back();
          continue;
        }
        const auto& places = rendezvous_of_[index(absent[top.absent].rank)];
        if (top.place == places.size()) {
          ++top.absent;
          top.place = 0;
          continue;
        }
        const int next = places[top.place++];
        Colour& seen = colour[static_cast<std::size_t>(next)];
        if (seen == Colour::grey) {
          const auto begin =
              std::find_if(path.begin(), path.end(), [&](const Frame& frame) { return frame.rendezvous == next; });
          for (auto frame = begin; frame != path.end(); ++frame) {
            const Rendezvous& rendezvous = graph_.rendezvous[static_cast<std::size_t>(frame->rendezvous)];
            graph_.cycle.push_back(rendezvous.absent[frame->absent].rank);
            cycle_rendezvous_.push_back(frame->rendezvous);
          }
          turn_cycle();
          return;
        }
        if (seen == Colour::white) {
          seen = Colour::grey;
          path.push_back({next, 0, 0});
        }
      }
    }
  }

  // An absent rank waits at the next rendezvous: shift the ranks so that each stands with its own, and
  // begin with the lowest.
  void turn_cycle() {
    auto& cycle = graph_.cycle;
    std::rotate(cycle.rbegin(), cycle.rbegin() + 1, cycle.rend());
    const auto lowest = std::min_element(cycle.begin(), cycle.end()) - cycle.begin();
    std::rotate(cycle.begin(), cycle.begin() + lowest, cycle.end());
    std::rotate(cycle_rendezvous_.begin(), cycle_rendezvous_.begin() + lowest, cycle_rendezvous_.end());
  }

  void explain_endings() {
    for (const Rendezvous& rendezvous : graph_.rendezvous) {
      for (const AbsentRank& absent : rendezvous.absent) {
        if (absent.why != Absence::finished && absent.why != Absence::failed) continue;
        const char* how = absent.why == Absence::finished ? "has returned" : "has thrown";
        std::string sentence;
        if (rendezvous.operation == Operation::send || rendezvous.operation == Operation::recv) {
          const bool send = rendezvous.operation == Operation::send;
          sentence = fmt::format("rank {} {} rank {} in {}, but rank {} {} and never {}",
                                 to_int(rendezvous.arrived.front().rank), send ? "sends to" : "expects a message from",
                                 to_int(absent.rank), rendezvous.group, to_int(absent.rank), how,
                                 send ? "receives it" : "sends it");
        } else if (absent.why == Absence::finished && rendezvous.arrived.size() < rendezvous.absent.size()) {
          sentence = fmt::format("rank {} calls {} #{} in {}, one more than rank {}, which has returned after {}",
                                 to_int(rendezvous.arrived.front().rank), to_string(rendezvous.operation),
                                 rendezvous.sequence, rendezvous.group, to_int(absent.rank), absent.calls);
        } else {
          sentence = fmt::format("rank {} {} after {} collectives in {} and never joins {} #{}, where {} wait",
                                 to_int(absent.rank), how, absent.calls, rendezvous.group,
                                 to_string(rendezvous.operation), rendezvous.sequence, ranks_text(rendezvous));
        }
        if (graph_.causes.size() < 8) graph_.causes.push_back(sentence);
        break;
      }
    }
  }

  static std::string ranks_text(const Rendezvous& rendezvous) {
    if (rendezvous.arrived.size() == 1) return fmt::format("rank {}", to_int(rendezvous.arrived.front().rank));
    return fmt::format("{} ranks (rank {} for one)", rendezvous.arrived.size(),
                       to_int(rendezvous.arrived.front().rank));
  }

  // An absent rank that waits in another group of the same axis, with some of the same members.
  void explain_memberships() {
    for (std::size_t m = 0; m < graph_.rendezvous.size(); ++m) {
      const GroupState& here_state = *groups_[m];
      const Group& here = here_state.group;
      for (const AbsentRank& absent : graph_.rendezvous[m].absent) {
        if (absent.at < 0) continue;
        const GroupState& there_state = *groups_[static_cast<std::size_t>(absent.at)];
        const Group& there = there_state.group;
        if (&here == &there || here.axis != there.axis || has_asked(here_state, absent.rank)) continue;
        const GlobalRank waiting = graph_.rendezvous[m].arrived.front().rank;
        if (comes_before(there_state, here_state) && overlaps(there, here)) continue;  // said from the other side
        graph_.causes.push_back(fmt::format(
            "rank {} calls {} in {} with members {{{}}}, rank {} in {} with members {{{}}}: they disagree on who is in "
            "the group{}",
            to_int(waiting), to_string(graph_.rendezvous[m].operation), here.name(), members(here), to_int(absent.rank),
            there.name(), members(there), here_state.listed ? ", or name their groups in different orders" : ""));
        return;
      }
    }
  }

  // A rank that has named the same list agrees on who is in it, and has only not come.
  static bool has_asked(const GroupState& group, GlobalRank rank) {
    if (!group.listed) return false;
    const auto& members = group.group.members;
    const auto found = std::find(members.begin(), members.end(), rank);
    return found != members.end() && group.asked[static_cast<std::size_t>(found - members.begin())] != 0;
  }

  static bool overlaps(const Group& a, const Group& b) {
    return std::any_of(a.members.begin(), a.members.end(), [&](GlobalRank rank) {
      return std::find(b.members.begin(), b.members.end(), rank) != b.members.end();
    });
  }

  static std::string members(const Group& group) {
    std::vector<int> ranks;
    for (const GlobalRank rank : group.members) ranks.push_back(to_int(rank));
    if (ranks.size() <= 16) return fmt::format("{}", fmt::join(ranks, ", "));
    return fmt::format("{}, ... {} ranks", fmt::join(ranks.begin(), ranks.begin() + 8, ", "), ranks.size());
  }

  void explain_cycle() {
    if (graph_.cycle.empty()) return;
    const auto rendezvous = [&](std::size_t i) -> const Rendezvous& {
      return graph_.rendezvous[static_cast<std::size_t>(cycle_rendezvous_[i])];
    };
    std::vector<int> ranks;
    bool sends = true;
    bool recvs = true;
    for (std::size_t i = 0; i < graph_.cycle.size(); ++i) {
      ranks.push_back(to_int(graph_.cycle[i]));
      sends = sends && rendezvous(i).operation == Operation::send;
      recvs = recvs && rendezvous(i).operation == Operation::recv;
    }
    ranks.push_back(ranks.front());
    const std::string path = fmt::format("{}", fmt::join(ranks, " -> "));
    if (sends) {
      graph_.causes.push_back(fmt::format(
          "a cycle of sends: ranks {} each send before they receive; exchange sends and receives together", path));
    } else if (recvs) {
      graph_.causes.push_back(fmt::format("a cycle of receives: ranks {} each wait for a message first", path));
    } else if (graph_.cycle.size() == 2 && rendezvous(0).group != rendezvous(1).group) {
      graph_.causes.push_back(fmt::format(
          "ranks {} and {} wait for each other: rank {} is at {} #{} in {}, rank {} at {} #{} "
          "in {}: they make the two calls in opposite order, or one of them leaves one out",
          ranks[0], ranks[1], ranks[0], to_string(rendezvous(0).operation), rendezvous(0).sequence, rendezvous(0).group,
          ranks[1], to_string(rendezvous(1).operation), rendezvous(1).sequence, rendezvous(1).group));
    } else {
      graph_.causes.push_back(fmt::format("a cycle: ranks {} each wait for the next", path));
    }
  }

  // A rank for which others wait in several groups at once, while it waits itself or has gone.
  void explain_stragglers() {
    std::map<GlobalRank, std::vector<std::size_t>> missing;
    for (std::size_t m = 0; m < graph_.rendezvous.size(); ++m) {
      for (const AbsentRank& absent : graph_.rendezvous[m].absent) missing[absent.rank].push_back(m);
    }
    for (const auto& [rank, places] : missing) {
      if (places.size() < 2 || graph_.causes.size() >= 8) continue;
      std::vector<std::string> queues;
      for (const std::size_t m : places) {
        const Rendezvous& rendezvous = graph_.rendezvous[m];
        const auto absent = std::find_if(rendezvous.absent.begin(), rendezvous.absent.end(),
                                         [r = rank](const AbsentRank& a) { return a.rank == r; });
        queues.push_back(fmt::format("{} ({} at {} #{}, it has made {})", rendezvous.group, ranks_text(rendezvous),
                                     to_string(rendezvous.operation), rendezvous.sequence, absent->calls));
        if (queues.size() == 4) break;
      }
      graph_.causes.push_back(fmt::format("rank {} is awaited in {} places at once: {}", to_int(rank), places.size(),
                                          fmt::join(queues, ", ")));
    }
  }

  const WorldState& world_;
  WaitGraph graph_;
  std::vector<std::vector<int>> rendezvous_of_;  // by rank
  std::vector<const GroupState*> groups_;        // by rendezvous
  std::vector<int> cycle_rendezvous_;            // where each rank of the cycle waits
};

}  // namespace

WaitGraph make_wait_graph(const WorldState& world) {
  return Diagnosis(world).run();
}

}  // namespace shardproof::internal
