#include "emu/run/weights.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "emu/run/random.h"

namespace shardproof {
namespace {

/// Standard deviation of a uniform integer in [-127, 127].
constexpr double kIntegerDeviation = 73.6;

double scale_of(const WeightSpec& spec) {
  const double fan_in = spec.kind == WeightKind::embedding ? 1.0 : static_cast<double>(spec.cols);
  return std::exp2(-std::round(std::log2(kIntegerDeviation * std::sqrt(fan_in))));
}

}  // namespace

void GeneratedWeights::read(const WeightSpec& spec, Range rows, Range cols, ops::MatrixView<double> out) const {
  const std::uint64_t key = random_key(seed_, spec.name);
  const double scale = scale_of(spec);
  for (std::int64_t i = 0; i < rows.count; ++i) {
    const std::span<double> row = out.row(i);
    const auto first = static_cast<std::uint64_t>((rows.begin + i) * spec.cols + cols.begin);
    if (spec.kind == WeightKind::norm) {
      for (std::size_t j = 0; j < row.size(); ++j) {
        row[j] = 1.0 + (static_cast<double>(random_below(key, first + j, 65)) - 32.0) / 128.0;
      }
    } else {
      for (std::size_t j = 0; j < row.size(); ++j) {
        row[j] = (static_cast<double>(random_below(key, first + j, 255)) - 127.0) * scale;
      }
    }
  }
}

void store_weight(std::span<double> values, ops::Format format) {
  if (format == ops::Format::exact) {
    for (double& value : values) value = std::nearbyint(value / kWeightStep) * kWeightStep;
  } else if (format == ops::Format::fp32) {
    for (double& value : values) value = static_cast<float>(value);
  } else {
    ops::store<double>(values, format);
  }
}

template <class T>
typename WeightStore<T>::Entry& WeightStore<T>::entry_for(const WeightSpec& spec, Range& rows, Range& cols) {
  const std::lock_guard lock(mutex_);
  const auto whole = entries_.find({spec.name, 0, spec.rows, 0, spec.cols});
  const bool inside = rows.begin >= 0 && rows.end() <= spec.rows && cols.begin >= 0 && cols.end() <= spec.cols;
  if (inside && whole != entries_.end() && whole->second->loaded) return *whole->second;
  std::unique_ptr<Entry>& entry = entries_[{spec.name, rows.begin, rows.count, cols.begin, cols.count}];
  if (!entry) entry = std::make_unique<Entry>();
  rows.begin = 0;
  cols.begin = 0;
  return *entry;
}

template <class T>
ops::MatrixView<const T> WeightStore<T>::get(const WeightSpec& spec, Range rows, Range cols) {
  const Range asked_rows = rows, asked_cols = cols;
  Entry& entry = entry_for(spec, rows, cols);
  std::call_once(entry.once, [&] {
    ops::Matrix<T> matrix(rows.count, cols.count);
    std::vector<double> buffer(static_cast<std::size_t>(cols.count));
    for (std::int64_t i = 0; i < rows.count; ++i) {
      source_.read(spec, {asked_rows.begin + i, 1}, asked_cols, {buffer.data(), 1, cols.count});
      store_weight(buffer, format_);
      std::transform(buffer.begin(), buffer.end(), matrix.row(i).begin(),
                     [](double value) { return static_cast<T>(value); });
    }
    entry.matrix = std::move(matrix);
    entry.loaded = true;
  });
  return entry.matrix.view().row_range(rows.begin, rows.count).col_range(cols.begin, cols.count);
}

template class WeightStore<float>;
template class WeightStore<double>;

}  // namespace shardproof
