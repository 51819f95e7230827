// Writes what our own ranks make of the taps as a dump (dump.h).
#pragma once

#include <map>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "emu/run/tap.h"
#include "ops/format.h"

namespace shardproof {

/// Keeps every part of a run in this format, until the files are made.
class DumpWriter final : public TapSink {
 public:
  explicit DumpWriter(ops::Format format) : format_(format) {}

  void tap(GlobalRank rank, const TapKey& key, const Placement& placement, const TapValues& part) override;
  bool inner() const override { return true; }

  /// The bytes of rank_N.safetensors, with the token ids of the whole batch. A tensor has the format's type where this
  /// holds all of its values, else that of the scalar: not every tap is stored.
  std::string file(int rank, std::span<const std::int32_t> token_ids) const;

 private:
  struct Part {
    std::vector<std::int64_t> rows;  ///< of the whole tensor
    std::int64_t cols = 0;
    std::vector<double> values;
  };
  template <class T>
  void keep(int rank, const TapId& id, const Placement& placement, ops::MatrixView<const T> part);

  ops::Format format_;
  std::mutex mutex_;
  std::map<int, std::map<std::string, std::pair<TapId, Part>>> ranks_;
};

}  // namespace shardproof
