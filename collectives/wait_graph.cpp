#include "collectives/wait_graph.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace shardproof {

namespace {

constexpr std::size_t kShownRendezvous = 32;
constexpr std::size_t kShownRanks = 8;

std::string absence_text(const AbsentRank& absent) {
  switch (absent.why) {
    case Absence::waiting:
      return fmt::format("waits in meeting {}", absent.at);
    case Absence::finished:
      return "has returned";
    case Absence::failed:
      return "has thrown";
    case Absence::outside:
      return "is suspended outside any collective";
  }
  return "";
}

}  // namespace

std::string WaitGraph::to_text() const {
  std::string text;
  const auto out = std::back_inserter(text);
  for (const std::string& cause : causes) fmt::format_to(out, "cause: {}\n", cause);
  for (std::size_t m = 0; m < std::min(rendezvous.size(), kShownRendezvous); ++m) {
    const Rendezvous& shown = rendezvous[m];
    const std::size_t came = shown.arrived.size() + shown.issued.size();
    fmt::format_to(out, "meeting {}: {} #{} in {}, {} of {} ranks have come\n", m, to_string(shown.operation),
                   shown.sequence, shown.group, came, came + shown.absent.size());
    for (std::size_t i = 0; i < std::min(shown.arrived.size(), kShownRanks); ++i) {
      fmt::format_to(out, "  waiting  {}\n", shown.arrived[i].to_string());
    }
    if (shown.arrived.size() > kShownRanks) fmt::format_to(out, "  and {} more\n", shown.arrived.size() - kShownRanks);
    for (std::size_t i = 0; i < std::min(shown.issued.size(), kShownRanks); ++i) {
      fmt::format_to(out, "  issued   {}, and does not wait for it\n", shown.issued[i].to_string());
    }
    if (shown.issued.size() > kShownRanks) fmt::format_to(out, "  and {} more\n", shown.issued.size() - kShownRanks);
    for (std::size_t i = 0; i < std::min(shown.absent.size(), kShownRanks); ++i) {
      const AbsentRank& absent = shown.absent[i];
      fmt::format_to(out, "  missing  rank {}, which {} ({} calls made here)\n", to_int(absent.rank),
                     absence_text(absent), absent.calls);
    }
    if (shown.absent.size() > kShownRanks) fmt::format_to(out, "  and {} more\n", shown.absent.size() - kShownRanks);
  }
  if (rendezvous.size() > kShownRendezvous)
    fmt::format_to(out, "and {} more meetings\n", rendezvous.size() - kShownRendezvous);
  return text;
}

std::string WaitGraph::to_dot() const {
  std::string text = "digraph waits {\n  rankdir=LR;\n";
  const auto out = std::back_inserter(text);
  for (std::size_t m = 0; m < rendezvous.size(); ++m) {
    const Rendezvous& node = rendezvous[m];
    fmt::format_to(out, "  m{} [shape=box, label=\"{} #{}\\n{}\"];\n", m, to_string(node.operation), node.sequence,
                   node.group);
    for (const CallInfo& call : node.arrived) fmt::format_to(out, "  r{} -> m{};\n", to_int(call.rank), m);
    for (const AbsentRank& absent : node.absent) {
      fmt::format_to(out, "  m{} -> r{} [style=dashed{}];\n", m, to_int(absent.rank),
                     absent.why == Absence::waiting ? "" : fmt::format(", label=\"{}\"", absence_text(absent)));
    }
  }
  for (const GlobalRank rank : cycle) fmt::format_to(out, "  r{} [color=red];\n", to_int(rank));
  return text + "}\n";
}

}  // namespace shardproof
