#include "emu/timeline/internal/node_role.h"

#include <algorithm>
#include <utility>

namespace shardproof::graph_audit {
namespace {

bool holds(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

}  // namespace

NodeName::NodeName(std::string_view id) {
  std::string word;
  for (const char c : id) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool digit = c >= '0' && c <= '9';
    if (letter || digit) {
      word += letter && c <= 'Z' ? static_cast<char>(c + 32) : c;
    } else if (!word.empty()) {
      words.push_back(std::move(word));
      word.clear();
    }
  }
  if (!word.empty()) words.push_back(std::move(word));
  for (const std::string& w : words) joined += w;
}

bool NodeName::has(std::string_view word) const {
  return std::find(words.begin(), words.end(), word) != words.end();
}

std::int64_t expert_number(const NodeName& name) {
  for (std::size_t i = 0; i + 1 < name.words.size(); ++i) {
    const std::string& next = name.words[i + 1];
    if (name.words[i] == "expert" && next.size() < 9 && next.find_first_not_of("0123456789") == std::string::npos) {
      return std::stoll(next);
    }
  }
  return -1;
}

Role role_of(const AuditedNode& node, const NodeName& name) {
  if (node.type == "agg" || node.comp == "data_aggregation") return Role::aggregation;
  if (node.type != "comm" && node.comp != "communication") {
    return expert_number(name) >= 0 ? Role::expert : Role::other;
  }
  const bool over_experts = name.has("ep") || name.has("etp") || name.has("edp");
  const bool reduction = holds(name.joined, "allreduce") || holds(name.joined, "reducescatter");
  if (reduction) return over_experts ? Role::other : Role::tp_reduction;
  if (holds(name.joined, "allgather") || name.has("pp") || holds(name.joined, "p2p") || holds(name.joined, "send") ||
      holds(name.joined, "recv") || holds(name.joined, "pipeline") || holds(name.joined, "broadcast")) {
    return Role::other;
  }
  return Role::alltoall;
}

}  // namespace shardproof::graph_audit
