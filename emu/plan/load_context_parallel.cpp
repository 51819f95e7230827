#include "emu/plan/internal/load_context_parallel.h"

#include <fmt/format.h>

#include <optional>
#include <string>

namespace shardproof {
namespace {

constexpr std::int64_t kMostRanks = 1'000'000;

CpComm read_name(ObjectReader& reader) {
  const std::optional<std::string> name = reader.string({"cp_comm", "cp_comm_type"});
  if (!name) return CpComm::p2p;
  for (const CpComm comm : {CpComm::p2p, CpComm::all_gather, CpComm::a2a, CpComm::a2a_p2p}) {
    if (*name == to_string(comm)) return comm;
  }
  reader.problem(reader.field("cp_comm"),
                 fmt::format(R"({}; "p2p", "all_gather", "a2a" or "a2a+p2p" is needed)", in_quotes(*name)));
  return CpComm::p2p;
}

/// Of a2a+p2p, Megatron's hierarchical_context_parallel_sizes: of the all-to-all and of the ring.
void read_cp_sizes(ObjectReader& reader, Parallel& parallel, std::vector<Problem>& problems) {
  const auto found = reader.find({"cp_sizes", "hierarchical_context_parallel_sizes"});
  const bool hierarchical = parallel.cp_comm == CpComm::a2a_p2p;
  if (!found) {
    if (hierarchical)
      reader.missing("cp_sizes", R"([ranks of an all-to-all, members of the ring] are needed by "a2a+p2p")");
    return;
  }
  if (!hierarchical) {
    return reader.problem(found->field, fmt::format(R"(is of "a2a+p2p", and cp_comm is "{}"; leave it out)",
                                                    to_string(parallel.cp_comm)));
  }
  const JsonValue& value = *found->value;
  if (!value.is(JsonValue::Kind::array) || value.items.size() != 2) {
    return reader.problem(found->field,
                          fmt::format("{}; [ranks of an all-to-all, members of the ring] is needed", describe(value)));
  }
  const auto inside = integer_of(value.items[0], found->field + "[0]", 2, kMostRanks, problems);
  const auto across = integer_of(value.items[1], found->field + "[1]", 2, kMostRanks, problems);
  if (!inside || !across) return;
  if (*inside * *across != parallel.cp) {
    return reader.problem(found->field,
                          fmt::format("{} * {} = {} ranks, but cp is {}; sizes that multiply to cp are needed", *inside,
                                      *across, *inside * *across, parallel.cp));
  }
  parallel.cp_a2a = static_cast<int>(*inside);
}

}  // namespace

void read_cp_comm(ObjectReader& reader, Parallel& parallel, std::vector<Problem>& problems) {
  parallel.cp_comm = read_name(reader);
  read_cp_sizes(reader, parallel, problems);
}

}  // namespace shardproof
