// Whatever bytes stand in a plan file: no crash, no hang, a plan or problems but never neither; every plan is answered
// for by check, claims included, and what validates can be scaled, laid on a mesh, written and read again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "emu/paper/check.h"
#include "emu/plan/load.h"
#include "emu/plan/mesh.h"
#include "emu/plan/save.h"
#include "emu/plan/scale.h"
#include "emu/plan/validate.h"
#include "emu/report/json.h"
#include "emu/report/markdown.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace shardproof;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const LoadedPlan loaded = parse_plan(text, "fuzz.json", "/nonexistent");
  require(loaded.plan.has_value() == loaded.problems.empty());
  if (!loaded.plan) return 0;
  const bool valid = validate(*loaded.plan).empty();
  const CheckReport report = check(*loaded.plan);
  require(valid || (!report.problems.empty() && report.ranks.empty()));
  require(!to_json(report).empty() && !to_markdown(report).empty());
  if (!valid) return 0;
  const Plan small = scaled(*loaded.plan, {});
  require(validate(small).empty());
  const Mesh mesh(small.parallel);
  require(mesh.world() >= 1 && mesh.group(Axis::ep, mesh.world() - 1).back() == mesh.world() - 1);
  const std::string json = plan_json(small, -1);
  require(parse_plan(json, "again.json", "/nonexistent").plan.has_value());
  return 0;
}
