// The records of a rank, in the order of its timetable: whole, or folded.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "emu/run/internal/dry_keys.h"
#include "emu/run/trace.h"
#include "ops/format.h"

namespace shardproof::dry {

class RecordLists {
 public:
  /// All outlive this.
  RecordLists(const ModelConfig& model, const Deployment& deployment, const DryRun& run, ops::Format format)
      : model_(model), deployment_(deployment), run_(run), format_(format) {}

  std::shared_ptr<const RankTrace> whole(int rank) const;
  /// A microbatch whose like the rank has had is not run again, nor a layer whose like any rank has had.
  std::shared_ptr<const RankTrace> folded(int rank);

 private:
  class Folding;

  void run_whole(const Layout& layout, const WorkItem& item, RankTrace& trace) const;

  const ModelConfig& model_;
  const Deployment& deployment_;
  const DryRun& run_;
  ops::Format format_;
  std::map<Key, std::vector<OpRecord>> layers_;  ///< of folded lists so far
};

}  // namespace shardproof::dry
