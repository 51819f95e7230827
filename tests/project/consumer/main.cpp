// Uses something of each installed library, so that headers, archives and their dependencies must all be found.
#include <cstdio>

#include "collectives/rank.h"
#include "emu/plan/load.h"
#include "emu/plan/mesh.h"
#include "ops/format.h"

int main() {
  const shardproof::LoadedPlan refused = shardproof::parse_plan(R"({"parallel": {"tp": 0}})", "a plan", ".");
  const bool refuses = !refused.plan && !refused.problems.empty();
  const bool rounds = shardproof::ops::stored(1.0 + 0x1p-9, shardproof::ops::Format::bf16) == 1.0;
  const bool counts = shardproof::to_int(shardproof::GlobalRank{3}) == 3;
  std::printf("refuses %d, rounds %d, counts %d\n", refuses, rounds, counts);
  return refuses && rounds && counts ? 0 : 1;
}
