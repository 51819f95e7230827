// Whatever bytes stand in a graph to be audited: no crash, no hang, a graph or problems but never neither; and every
// graph is answered for.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "emu/report/json.h"
#include "emu/timeline/audit.h"
#include "tests/support/model.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace shardproof;
  const LoadedGraph loaded = parse_graph({reinterpret_cast<const char*>(data), size}, "fuzz.json");
  if (loaded.graph.has_value() != loaded.problems.empty()) std::abort();
  if (!loaded.graph) return 0;
  Plan plan;
  plan.model = testing::uniform_model({.hidden_size = 64,
                                       .layers = 4,
                                       .heads = 8,
                                       .kv_heads = 8,
                                       .head_dim = 8,
                                       .intermediate_size = 96,
                                       .experts = 4,
                                       .top_k = 2,
                                       .vocab_size = 100});
  plan.parallel = {.tp = 2, .dp = 2, .pp = 2, .ep = 2, .etp = 2, .edp = 1};
  plan.workload.lengths = {4, 4};
  (void)to_json(audit(*loaded.graph, plan), plan);
  return 0;
}
