// What records depend on. Ranks, items of their timetables, and layers of these, whose keys are equal have equal
// records, but for the layer and the microbatch that these name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "emu/plan/deployment.h"
#include "emu/plan/timetable.h"
#include "emu/run/dry_run.h"

namespace shardproof::dry {

using Key = std::vector<std::int64_t>;

/// All that the records of a rank depend on.
Key key_of_rank(const ModelConfig& model, const Deployment& deployment, const DryRun& run, int rank);
/// What they depend on of an item, given the rank.
Key key_of_item(const ModelConfig& model, const Deployment& deployment, const DryRun& run, const Layout& layout,
                const WorkItem& item);
/// What the records of each layer of an item depend on, given nothing; the item runs beside no other.
std::vector<Key> keys_of_layers(const ModelConfig& model, const Deployment& deployment, const DryRun& run,
                                const Layout& layout, const WorkItem& item);

/// Throws TooManyRecords where they are.
void require_kept(std::size_t records, const ModelConfig& model, std::int64_t microbatches);

}  // namespace shardproof::dry
