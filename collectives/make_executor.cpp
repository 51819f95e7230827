#include "collectives/make_executor.h"

#include "collectives/default_executor.h"
#include "collectives/seeded_executor.h"

namespace shardproof {

std::unique_ptr<Executor> make_executor(int threads, std::optional<std::uint64_t> schedule) {
  if (schedule) return std::make_unique<SeededExecutor>(*schedule);
  return std::make_unique<DefaultExecutor>(threads > 0 ? threads : available_threads());
}

}  // namespace shardproof
