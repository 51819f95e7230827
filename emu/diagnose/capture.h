// Keeps what every rank made of one tap, for the diagnosis.
#pragma once

#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "emu/run/tap.h"

namespace shardproof {

/// One rank's part of a tap.
struct TapPart {
  TapId tap;
  int rank = 0;
  Placement placement;
  std::vector<double> values;  ///< row-major, as large as the placement's parts
};

/// Keeps the parts of one tap; of a norm before attention, those of every layer, because a layer that ran in another's
/// place shows there.
class CapturingSink final : public TapSink {
 public:
  explicit CapturingSink(const TapId& tap) : tap_(tap) {}

  void tap(GlobalRank rank, const TapKey& key, const Placement& placement, const TapValues& part) override;

  /// Of the tap, in order of rank and first row.
  const std::vector<TapPart>& parts();
  /// Of the norms before attention of the other layers.
  const std::vector<TapPart>& norm_parts();

 private:
  template <class T>
  void keep(GlobalRank rank, const TapId& id, const Placement& placement, ops::MatrixView<const T> part);

  TapId tap_;
  std::mutex mutex_;
  std::vector<TapPart> parts_;
  std::vector<TapPart> norm_parts_;
};

}  // namespace shardproof
