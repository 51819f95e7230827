// Uses something of each installed library, so that headers, archives and their dependencies must all be found, and
// what crosses between them has one layout.
#include <cstdio>
#include <cstring>
#include <vector>

#include "collectives/rank.h"
#include "emu/judge/scheme.h"
#include "emu/plan/load.h"
#include "emu/plan/mesh.h"
#include "ops/format.h"

namespace {

using namespace shardproof;

Task<> sum(Rank& rank) {
  std::vector<double> y{1.0 + rank.at().tp, 10};
  co_await rank.tp().all_reduce(y, {.algorithm = Algorithm::ring});
  rank.tap<double>("y", {y.data(), 1, 2}, Placement{.rows = 1, .cols = 2, .row_part = {0, 1}, .col_part = {0, 2}});
}

constexpr unsigned kLine = __LINE__ + 2;
Task<> waits(Rank& rank) {
  if (rank.at().tp == 0) co_await rank.tp().barrier();
}

bool schemes_work() {
  ExpectedTaps expected;
  expected.add("y", 1, 2, {3, 20});
  const VerifyReport right = verify_scheme({.tp = 2}, sum, expected, {.bound = 0, .schedules = 3});
  const VerifyReport stalled = verify_scheme({.tp = 2}, waits, expected);
  if (right.verdict != Verdict::pass || !stalled.stall || !stalled.stall->graph) return false;
  const SourceLocation where = stalled.stall->graph->rendezvous.front().arrived.front().where;
  return where.line() == kLine && std::strstr(where.file_name(), "main.cpp") != nullptr;
}

}  // namespace

int main() {
  const LoadedPlan refused = parse_plan(R"({"parallel": {"tp": 0}})", "a plan", ".");
  const bool refuses = !refused.plan && !refused.problems.empty();
  const bool rounds = ops::stored(1.0 + 0x1p-9, ops::Format::bf16) == 1.0;
  const bool schemes = schemes_work();
  std::printf("refuses %d, rounds %d, schemes %d\n", refuses, rounds, schemes);
  return refuses && rounds && schemes ? 0 : 1;
}
