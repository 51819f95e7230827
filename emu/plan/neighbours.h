// The valid plans nearest to one that is not.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "emu/plan/plan.h"

namespace shardproof {

/// a * b * ..., or -1 where it exceeds what fits in 62 bits.
std::int64_t safe_product(std::initializer_list<std::int64_t> factors);

/// Whether degrees fit the model and one another; says nothing of GPUs, batch or kMaxWorld.
bool fits_model(const Parallel& parallel, const ModelConfig& model);

/// Whether a width splits evenly, and into whole blocks of quantised weights where the model has such blocks.
bool slices_whole_blocks(const ModelConfig& model, std::int64_t width, std::int64_t degree);

/// A width of quantised weights that a degree splits, and into how many parts at most: heads that are fewer than ranks
/// are held whole.
struct BlockedWidth {
  std::int64_t width = 0;
  const char* what = "";
  std::int64_t most = 0;  ///< 0: any number

  std::int64_t parts_of(std::int64_t degree) const { return most > 0 ? std::min(most, degree) : degree; }
};
std::vector<BlockedWidth> blocked_over_tp(const ModelConfig& model, const LayerSpec& layer);
std::vector<BlockedWidth> blocked_over_etp(const ModelConfig& model, const LayerSpec& layer);

struct Neighbours {
  /// Other degrees whose world is hardware.gpus (the plan's own world without hardware).
  std::optional<Parallel> same_gpus;
  /// The plan's degrees, each moved to the nearest that the model allows, with the dp (and so the GPUs) they need.
  std::optional<Parallel> same_degrees;
};

/// Distance is the sum over tp, cp, dp, pp, ep and etp of |log2(degree / wanted degree)|; ties keep dp least.
Neighbours nearest_valid(const Plan& plan);

/// "tp4 dp4 pp4, ep16: 64 GPUs": degrees of 1 are left out.
std::string describe(const Parallel& parallel);

}  // namespace shardproof
