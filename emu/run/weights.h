// Where weights come from, and the store that ranks share.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>

#include "emu/plan/partition.h"
#include "emu/run/registry.h"
#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof {

/// Makes any slice of any weight without the whole. Implementations are safe to call from several threads.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  /// Writes rows x cols of the weight to `out`, which has that shape. The values need not be rounded to a format.
  virtual void read(const WeightSpec& spec, Range rows, Range cols, ops::MatrixView<double> out) const = 0;
};

/// Weights from a counter-based generator keyed by (seed, name, global index): the same value at the same index
/// whatever the plan. Values are 8-bit integers times a power of two, so every format holds them exactly:
///   linear     uniform in [-127, 127] * 2^-s with standard deviation near 1/sqrt(cols)
///   embedding  the same, standard deviation near 1
///   norm       1 + k/128, k uniform in [-32, 32]
class GeneratedWeights final : public WeightSource {
 public:
  explicit GeneratedWeights(std::uint64_t seed) : seed_(seed) {}
  void read(const WeightSpec& spec, Range rows, Range cols, ops::MatrixView<double> out) const override;

 private:
  std::uint64_t seed_;
};

/// The multiple of which weights are in `exact`; the generator's are, a checkpoint's are rounded to it.
inline constexpr double kWeightStep = 0x1p-16;

/// Rounds a weight as a run in `format` holds it: to the format, or to kWeightStep in `exact`.
void store_weight(std::span<double> values, ops::Format format);

/// Keeps the slices that were asked for, one copy of each, shared by the ranks that hold replicas of it. A part of a
/// weight that was loaded whole is a view into it. Safe to call from several threads; the views live as long as the
/// store.
template <class T>
class WeightStore {
 public:
  WeightStore(const WeightSource& source, ops::Format format) : source_(source), format_(format) {}
  ops::MatrixView<const T> get(const WeightSpec& spec, Range rows, Range cols);

 private:
  struct Entry {
    std::once_flag once;
    std::atomic<bool> loaded = false;
    ops::Matrix<T> matrix;
  };
  using Key = std::tuple<std::string, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

  /// The slice's own entry; for a part, the whole's when that is loaded.
  Entry& entry_for(const WeightSpec& spec, Range& rows, Range& cols);

  const WeightSource& source_;
  ops::Format format_;
  std::mutex mutex_;
  std::map<Key, std::unique_ptr<Entry>> entries_;
};

}  // namespace shardproof
