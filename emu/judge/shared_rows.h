// The taps of tokens that are not run, because another request has put them into the cache.
//
// A row that a request shares stands for each of them: what a rank hands in of it is handed in once more as theirs, and
// held to what the reference makes of their own sequence.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "emu/plan/token_map.h"
#include "emu/run/tap.h"

namespace shardproof {

class SharedRowsSink final : public TapSink {
 public:
  /// Hands everything on to `sink`, which outlives this.
  SharedRowsSink(const TokenMap& tokens, TapSink& sink);

  void tap(GlobalRank rank, const TapKey& key, const Placement& placement, const TapValues& part) override;
  bool inner() const override { return sink_.inner(); }

 private:
  std::int64_t tokens_;
  std::map<std::int64_t, std::vector<std::int64_t>> rows_for_;  ///< by row that is run, those that are not
  TapSink& sink_;
};

}  // namespace shardproof
