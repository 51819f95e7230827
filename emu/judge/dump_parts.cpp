// What a dump's files hold, handed out part by part.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <type_traits>

#include "emu/judge/dump.h"

namespace shardproof {
namespace {

std::string place_of(const DumpTensor& tensor, std::int64_t row, std::int64_t col) {
  return fmt::format("{}: {}: row {}, column {}", std::filesystem::path(tensor.file->name()).filename().string(),
                     tensor.entry.name, row, col);
}

/// The file's tensor, as a matrix.
template <class T>
ops::Matrix<T> read_all(const DumpTensor& tensor) {
  ops::Matrix<T> values(tensor.entry.rows(), tensor.entry.cols());
  tensor.file->read(tensor.entry, {0, values.rows()}, {0, values.cols()}, values.view());
  if constexpr (std::is_floating_point_v<T>) {
    for (ops::Index row = 0; row < values.rows(); ++row) {
      for (ops::Index col = 0; col < values.cols(); ++col) {
        if (std::isnan(values(row, col))) {
          throw DumpError(
              place_of(tensor, row, col) +
              " is not a number; a dump of a run that goes on has numbers in every place (padding is left out)");
        }
      }
    }
  }
  return values;
}

/// The ids of experts.
ops::Matrix<std::int32_t> read_choice(const DumpTensor& tensor, std::int64_t experts) {
  const ops::Matrix<std::int64_t> read = read_all<std::int64_t>(tensor);
  ops::Matrix<std::int32_t> ids(read.rows(), read.cols());
  for (ops::Index row = 0; row < read.rows(); ++row) {
    for (ops::Index col = 0; col < read.cols(); ++col) {
      const std::int64_t id = read(row, col);
      if (id < 0 || id >= experts) {
        throw DumpError(
            fmt::format("{} is expert {}; the layer has 0 to {}", place_of(tensor, row, col), id, experts - 1));
      }
      ids(row, col) = static_cast<std::int32_t>(id);
    }
  }
  return ids;
}

bool is_range(const std::vector<std::int64_t>& rows) {
  for (std::size_t i = 1; i < rows.size(); ++i) {
    if (rows[i] != rows[i - 1] + 1) return false;
  }
  return true;
}

template <class T>
void hand_in_block(const DumpTensor& tensor, const ExpectedTap& whole, const DumpBlock& block,
                   const ops::Matrix<T>& values, TapSink& sink) {
  ops::Matrix<T> part(std::ssize(block.rows), block.cols.count);
  for (ops::Index row = 0; row < part.rows(); ++row) {
    const T* from = values.row(block.file_rows[static_cast<std::size_t>(row)]).data() + block.file_col;
    std::copy_n(from, block.cols.count, part.row(row).data());
  }
  Placement placement{.rows = whole.rows, .cols = whole.cols, .row_part = {0, part.rows()}, .col_part = block.cols};
  if (is_range(block.rows)) {
    placement.row_part.begin = block.rows.empty() ? 0 : block.rows.front();
  } else {
    placement.row_list = block.rows;
  }
  const ops::MatrixView<const T> view{part.span().data(), part.rows(), part.cols()};
  sink.tap(GlobalRank{block.rank}, {.id = tensor.tap, .name = {}}, placement, view);
}

template <class T>
void hand_in_tensor(const DumpTensor& tensor, const ExpectedTap& whole, const ops::Matrix<T>& values, TapSink& sink) {
  for (const DumpBlock& block : tensor.blocks) hand_in_block(tensor, whole, block, values, sink);
}

}  // namespace

std::vector<bool> Dump::present() const {
  std::vector<bool> present(taps_->all().size());
  for (const DumpTensor& tensor : tensors_) present[tensor.index] = true;
  return present;
}

void Dump::hand_in(TapSink& sink) const {
  for (auto tensor = tensors_.begin(); tensor != tensors_.end();) {
    // All parts of one tap come in one type.
    const auto end =
        std::find_if(tensor, tensors_.end(), [&](const auto& other) { return other.index != tensor->index; });
    const bool wide = std::any_of(tensor, end, [](const auto& part) { return part.entry.type == TensorType::f64; });
    for (; tensor != end; ++tensor) {
      const ExpectedTap& whole = taps_->all()[tensor->index];
      if (whole.traits.ids) {
        hand_in_tensor(*tensor, whole, read_choice(*tensor, experts_[static_cast<std::size_t>(tensor->tap.layer)]),
                       sink);
      } else if (wide || format_ == ops::Format::fp64) {
        hand_in_tensor(*tensor, whole, read_all<double>(*tensor), sink);
      } else {
        hand_in_tensor(*tensor, whole, read_all<float>(*tensor), sink);
      }
    }
  }
}

}  // namespace shardproof
