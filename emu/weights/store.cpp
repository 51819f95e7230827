#include "emu/weights/store.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "emu/plan/random.h"

namespace shardproof {
namespace {

/// Standard deviation of a uniform integer in [-127, 127].
constexpr double kIntegerDeviation = 73.6;

double scale_of(const WeightSpec& spec) {
  const double fan_in = spec.kind == WeightKind::embedding ? 1.0 : static_cast<double>(spec.cols);
  return std::exp2(-std::round(std::log2(kIntegerDeviation * std::sqrt(fan_in))));
}

/// What the integers of a vector that is no norm are multiplied by; 0 for what is no such vector.
double vector_step(WeightKind kind) {
  switch (kind) {
    case WeightKind::bias:
      return 0x1p-9;
    case WeightKind::gate_bias:
      return 0x1p-5;
    case WeightKind::sink:
      return 0x1p-6;
    case WeightKind::selection_bias:
      return 0x1p-10;
    default:
      return 0;
  }
}

/// What is added to them. Sigmoids with such a bias are negative, which changes no choice: with a bias of no offset
/// nothing would tell a closed group whose scores are 0 from one that cannot be chosen.
double vector_offset(WeightKind kind) {
  return kind == WeightKind::selection_bias ? -1.125 : kind == WeightKind::gate_bias ? 2 : 0;
}

/// Integers uniform in 0..kBound-1 become values by `value_of`. A block of integers at a time, so that the generator
/// and the conversion are each a loop over one kind of register.
template <std::uint64_t kBound, class T, class ValueOf>
void generate(std::uint64_t key, std::uint64_t first, std::span<T> values, ValueOf value_of) {
  constexpr std::size_t kBlock = 256;
  std::int32_t drawn[kBlock];
  for (std::size_t begin = 0; begin < values.size(); begin += kBlock) {
    const std::span<T> block = values.subspan(begin, std::min(kBlock, values.size() - begin));
    const std::uint64_t at = first + begin;
    for (std::size_t j = 0; j < block.size(); ++j) {
      drawn[j] = static_cast<std::int32_t>(random_below(key, at + j, kBound));
    }
    for (std::size_t j = 0; j < block.size(); ++j) block[j] = value_of(drawn[j]);
  }
}

template <class T>
void generate(std::uint64_t seed, const WeightSpec& spec, Range rows, Range cols, ops::MatrixView<T> out) {
  const std::uint64_t key = random_key(seed, spec.name);
  const T scale = static_cast<T>(scale_of(spec));
  for (std::int64_t i = 0; i < rows.count; ++i) {
    const auto first = static_cast<std::uint64_t>((rows.begin + i) * spec.cols + cols.begin);
    if (const double step = vector_step(spec.kind); step > 0) {
      generate<255>(key, first, out.row(i), [step, offset = vector_offset(spec.kind)](std::int32_t k) {
        return static_cast<T>(k - 127) * static_cast<T>(step) + static_cast<T>(offset);
      });
    } else if (spec.kind == WeightKind::norm) {
      generate<65>(key, first, out.row(i), [](std::int32_t k) { return 1 + static_cast<T>(k - 32) / 128; });
    } else {
      generate<255>(key, first, out.row(i), [scale](std::int32_t k) { return static_cast<T>(k - 127) * scale; });
    }
  }
}

template <class T>
void read_and_store(const WeightSource& source, const WeightSpec& spec, Range rows, Range cols, ops::Format format,
                    ops::MatrixView<T> out) {
  std::vector<double> row(static_cast<std::size_t>(cols.count));
  for (std::int64_t i = 0; i < rows.count; ++i) {
    source.read(spec, {rows.begin + i, 1}, cols, {row.data(), 1, cols.count});
    round_weight(row, format);
    std::ranges::transform(row, out.row(i).begin(), [](double value) { return static_cast<T>(value); });
  }
}

}  // namespace

void WeightSource::read_stored(const WeightSpec& spec, Range rows, Range cols, ops::Format format,
                               ops::MatrixView<double> out) const {
  read_and_store(*this, spec, rows, cols, format, out);
}

void WeightSource::read_stored(const WeightSpec& spec, Range rows, Range cols, ops::Format format,
                               ops::MatrixView<float> out) const {
  read_and_store(*this, spec, rows, cols, format, out);
}

void GeneratedWeights::read(const WeightSpec& spec, Range rows, Range cols, ops::MatrixView<double> out) const {
  generate(seed_, spec, rows, cols, out);
}

// Every format holds the values exactly: there is nothing to round.
void GeneratedWeights::read_stored(const WeightSpec& spec, Range rows, Range cols, ops::Format /*format*/,
                                   ops::MatrixView<double> out) const {
  generate(seed_, spec, rows, cols, out);
}

void GeneratedWeights::read_stored(const WeightSpec& spec, Range rows, Range cols, ops::Format /*format*/,
                                   ops::MatrixView<float> out) const {
  generate(seed_, spec, rows, cols, out);
}

void round_weight(std::span<double> values, ops::Format format) {
  if (format == ops::Format::exact) {
    for (double& value : values) value = std::nearbyint(value / kWeightStep) * kWeightStep;
  } else if (format == ops::Format::fp32) {
    for (double& value : values) value = static_cast<float>(value);
  } else {
    ops::round_to<double>(values, format);
  }
}

template <class T>
std::size_t WeightStore<T>::Hash::operator()(const Slice& slice) const {
  std::size_t hash = std::hash<std::string_view>{}(slice.name);
  for (const std::int64_t part : {slice.rows.begin, slice.rows.count, slice.cols.begin, slice.cols.count}) {
    hash = (hash ^ static_cast<std::size_t>(part)) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 32;
  }
  return hash;
}

template <class T>
std::shared_ptr<typename WeightStore<T>::Entry> WeightStore<T>::add_entry(const Key& key, std::int64_t size) {
  constexpr auto kElement = static_cast<std::int64_t>(sizeof(T));
  auto entry = std::make_shared<Entry>();
  entry->size = size;
  while (!by_age_.empty() && bytes_ > bytes_kept_ - size * kElement) {
    // Who uses what is dropped keeps it alive; otherwise its memory is free.
    const auto oldest = entries_.find(by_age_.back());
    Entry& dropped = *oldest->second;
    if (dropped.users == 0 && dropped.size == size) entry->matrix = std::move(dropped.matrix);
    bytes_ -= dropped.size * kElement;
    entries_.erase(oldest);
    by_age_.pop_back();
  }
  entry->age = by_age_.insert(by_age_.begin(), key);
  entries_.emplace(key, entry);
  bytes_ += size * kElement;
  return entry;
}

template <class T>
std::shared_ptr<typename WeightStore<T>::Entry> WeightStore<T>::entry_for(const WeightSpec& spec, Range& rows,
                                                                          Range& cols) {
  const std::lock_guard lock(mutex_);
  const auto used = [&](const std::shared_ptr<Entry>& entry) {
    by_age_.splice(by_age_.begin(), by_age_, entry->age);
    ++entry->users;
    return entry;
  };
  const auto whole = entries_.find(Slice{spec.name, {0, spec.rows}, {0, spec.cols}});
  const bool inside = rows.begin >= 0 && rows.end() <= spec.rows && cols.begin >= 0 && cols.end() <= spec.cols;
  if (inside && whole != entries_.end() && whole->second->loaded) return used(whole->second);
  const Slice slice{spec.name, rows, cols};
  const auto own = entries_.find(slice);
  rows.begin = 0;
  cols.begin = 0;
  return used(own != entries_.end() ? own->second
                                    : add_entry({spec.name, slice.rows, slice.cols}, rows.count * cols.count));
}

template <class T>
LoadedWeight<T> WeightStore<T>::get(const WeightSpec& spec, Range rows, Range cols) {
  const Range asked_rows = rows, asked_cols = cols;
  const std::shared_ptr<Entry> entry = entry_for(spec, rows, cols);
  const std::shared_ptr<const void> hold(entry.get(), [this, entry](const void*) {
    const std::lock_guard lock(mutex_);
    --entry->users;
  });
  std::call_once(entry->once, [&] {
    if (entry->matrix.size() == 0) entry->matrix = ops::Matrix<T>(rows.count, cols.count);
    entry->view = {entry->matrix.data(), rows.count, cols.count};
    source_.read_stored(spec, asked_rows, asked_cols, format_, entry->view);
    entry->loaded = true;
  });
  return {hold,
          ops::MatrixView<const T>(entry->view).row_range(rows.begin, rows.count).col_range(cols.begin, cols.count)};
}

template class WeightStore<float>;
template class WeightStore<double>;

}  // namespace shardproof
