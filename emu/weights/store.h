// Where weights come from, and the store that ranks share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "emu/model/tensors.h"
#include "emu/plan/partition.h"
#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof {

/// Makes any slice of any weight without the whole. Implementations are safe to call from several threads.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  /// Writes rows x cols of the weight to `out`, which has that shape. The values need not be rounded to a format.
  virtual void read(const WeightSpec& spec, Range rows, Range cols, ops::MatrixView<double> out) const = 0;
  /// The same, as a run in `format` holds the weight: read, then round_weight().
  virtual void read_stored(const WeightSpec& spec, Range rows, Range cols, ops::Format format,
                           ops::MatrixView<double> out) const;
  virtual void read_stored(const WeightSpec& spec, Range rows, Range cols, ops::Format format,
                           ops::MatrixView<float> out) const;
};

/// Weights from a counter-based generator keyed by (seed, name, global index): the same value at the same index
/// whatever the plan. Values are 8-bit integers times a power of two, so every format holds them exactly:
///   linear     uniform in [-127, 127] * 2^-s with standard deviation near 1/sqrt(cols)
///   embedding  the same, standard deviation near 1
///   norm       1 + k/128, k uniform in [-32, 32]
///   bias       uniform in [-127, 127] / 512
///   gate bias  2 + uniform in [-127, 127] / 32, of an expert's gate and up: some are beyond the limit of a clamped
///              activation, and few gates are closed
///   sink       uniform in [-127, 127] / 64, a logit
///   selection  uniform in [-127, 127] / 1024: a score lies between 0 and 1
class GeneratedWeights final : public WeightSource {
 public:
  explicit GeneratedWeights(std::uint64_t seed) : seed_(seed) {}
  void read(const WeightSpec& spec, Range rows, Range cols, ops::MatrixView<double> out) const override;
  void read_stored(const WeightSpec& spec, Range rows, Range cols, ops::Format format,
                   ops::MatrixView<double> out) const override;
  void read_stored(const WeightSpec& spec, Range rows, Range cols, ops::Format format,
                   ops::MatrixView<float> out) const override;

 private:
  std::uint64_t seed_;
};

/// The multiple of which weights are in `exact`; the generator's are, a checkpoint's are rounded to it.
inline constexpr double kWeightStep = 0x1p-16;

/// Rounds a weight as a run in `format` holds it: to the format, or to kWeightStep in `exact`.
void round_weight(std::span<double> values, ops::Format format);

/// A slice of a weight, [rows, cols], in memory while this or a copy of it lives. The store outlives it.
template <class T>
class LoadedWeight {
 public:
  LoadedWeight(std::shared_ptr<const void> hold, ops::MatrixView<const T> view) : hold_(std::move(hold)), view_(view) {}
  ops::MatrixView<const T> view() const { return view_; }
  operator ops::MatrixView<const T>() const { return view_; }  // NOLINT(google-explicit-constructor): an op takes views

 private:
  std::shared_ptr<const void> hold_;
  ops::MatrixView<const T> view_;
};

/// Keeps the slices that were asked for, one copy of each, shared by the ranks that hold replicas of it. A part of a
/// weight that was loaded whole is a view into it. Beyond `bytes_kept`, what was not asked for the longest is dropped,
/// and made again when it is needed again: the same values, so that no result depends on what is kept. What takes its
/// place takes its memory, if it is of the same size: the first touch of new memory costs more than the values. Safe to
/// call from several threads.
template <class T>
class WeightStore {
 public:
  static constexpr std::int64_t kKeepAll = std::numeric_limits<std::int64_t>::max();

  WeightStore(const WeightSource& source, ops::Format format, std::int64_t bytes_kept = kKeepAll)
      : source_(source), format_(format), bytes_kept_(bytes_kept) {}
  LoadedWeight<T> get(const WeightSpec& spec, Range rows, Range cols);
  /// Writes rows x cols of the weight to `out`, which has that shape, and keeps nothing.
  void read(const WeightSpec& spec, Range rows, Range cols, ops::MatrixView<T> out) const {
    source_.read_stored(spec, rows, cols, format_, out);
  }

 private:
  /// Values hang on a weight's name: what a fault takes for another weight has that one's.
  struct Slice {
    std::string_view name;
    Range rows, cols;
    bool operator==(const Slice&) const = default;
  };
  struct Key {
    std::string name;
    Range rows, cols;
    // NOLINTNEXTLINE(google-explicit-constructor): it is looked up as one
    operator Slice() const { return {name, rows, cols}; }
  };
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(const Slice& slice) const;
  };
  struct Equal {
    using is_transparent = void;
    bool operator()(const Slice& a, const Slice& b) const { return a == b; }
  };
  struct Entry {
    std::once_flag once;
    std::atomic<bool> loaded = false;
    ops::Matrix<T> matrix;  // whose memory the slice is in; of another shape when it was another slice's
    ops::MatrixView<T> view;
    std::int64_t size = 0;                  // elements
    int users = 0;                          // of the memory
    typename std::list<Key>::iterator age;  // its place in by_age_
  };

  /// The slice's own entry; for a part, the whole's when that is loaded. Then `rows` and `cols` are those in the entry.
  std::shared_ptr<Entry> entry_for(const WeightSpec& spec, Range& rows, Range& cols);
  std::shared_ptr<Entry> add_entry(const Key& key, std::int64_t size);

  const WeightSource& source_;
  ops::Format format_;
  std::int64_t bytes_kept_;
  std::mutex mutex_;  // of all below, and of size, users and age of the entries
  std::unordered_map<Key, std::shared_ptr<Entry>, Hash, Equal> entries_;
  std::list<Key> by_age_;   // asked for last, first
  std::int64_t bytes_ = 0;  // of entries_
};

/// So many elements of a weight are in memory at a time where it is needed row by row: an embedding's or a head's are a
/// billion.
inline constexpr std::int64_t kElementsAtOnce = std::int64_t{1} << 22;

/// A slice that a rank holds. It comes into memory when it is used: between uses the store may drop it.
template <class T>
struct WeightSlice {
  WeightStore<T>* store = nullptr;
  WeightSpec spec;
  Range rows;
  Range cols;

  LoadedWeight<T> load() const { return store->get(spec, rows, cols); }
  /// visit(rows, weight) for its rows in order, counted from its first: a run of at most kElementsAtOnce elements, or
  /// one row.
  template <class Visit>
  void for_each_block(const Visit& visit) const {
    const std::int64_t at_once = std::max<std::int64_t>(1, kElementsAtOnce / std::max<std::int64_t>(1, cols.count));
    for (std::int64_t begin = 0; begin < rows.count; begin += at_once) {
      const Range block{begin, std::min(at_once, rows.count - begin)};
      visit(block, store->get(spec, {rows.begin + block.begin, block.count}, cols));
    }
  }
  /// Writes one of its rows, counted from its first, to `out`.
  void read_row(std::int64_t row, std::span<T> out) const {
    store->read(spec, {rows.begin + row, 1}, cols, {out.data(), 1, cols.count});
  }
};

}  // namespace shardproof
