#include "emu/weights/quantised_weight.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string_view>

#include "emu/input/json_value.h"
#include "emu/weights/checkpoint_error.h"

namespace shardproof {
namespace {

/// Of four bits: a sign, two of exponent, one of mantissa (OCP Microscaling Formats 1.0, section 5.3.3).
constexpr std::array<double, 8> kE2m1 = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
/// Bytes of values that share one of MXFP4's scales, and the scale's byte that is no number (ibid., section 5.4.1).
constexpr std::int64_t kMxfp4Bytes = 16, kMxfp4Nan = 0xff;
/// The bits, from the lowest on in fours, where AWQ's kernels want the values of eight rows.
constexpr std::array<int, 8> kAwqPlaces = {0, 4, 1, 5, 2, 6, 3, 7};

double e2m1(std::int64_t bits) {
  const double magnitude = kE2m1[static_cast<std::size_t>(bits & 7)];
  return (bits & 8) != 0 ? -magnitude : magnitude;
}

std::int64_t divided_up(std::int64_t count, std::int64_t by) {
  return (count + by - 1) / by;
}

/// The words, blocks or groups of `size` each that a range has a part of.
Range covering(Range range, std::int64_t size) {
  const std::int64_t first = range.begin / size;
  return {first, range.count == 0 ? 0 : (range.end() - 1) / size - first + 1};
}

using Shapes = std::vector<std::vector<std::int64_t>>;
constexpr std::initializer_list<TensorType> kFloats = {TensorType::f32, TensorType::f16, TensorType::bf16,
                                                       TensorType::f64};
constexpr std::initializer_list<TensorType> kIds = {TensorType::i64, TensorType::i32};

std::string without_weight(const std::string& name) {
  constexpr std::string_view kWeight = ".weight";
  return name.ends_with(kWeight) ? name.substr(0, name.size() - kWeight.size()) : name;
}

/// What the config's method packs values that are not of a float's own type into.
std::optional<Packing> packing_of(const Quantisation& quantisation) {
  if (quantisation.method == "mxfp4") return Packing::mxfp4;
  if (quantisation.method == "gptq") return Packing::gptq;
  if (quantisation.method == "awq") return Packing::awq;
  const bool integers = quantisation.format == QuantisedFormat::int4 || quantisation.format == QuantisedFormat::int8;
  if (quantisation.method == "compressed-tensors" && integers) return Packing::compressed;
  return std::nullopt;
}

}  // namespace

std::optional<QuantisedWeight> QuantisedWeight::find(const ModelConfig& model, const WeightSpec& spec,
                                                     const TensorPlace& lies, const CheckpointFiles& files) {
  if (!is_quantised(model, spec.weight)) return std::nullopt;
  const CheckpointFiles::Place* const plain = files.find(lies.name);
  const bool fp8 = plain != nullptr && plain->entry->type == TensorType::f8_e4m3;
  const auto packing = fp8 ? Packing::fp8 : packing_of(model.quantisation);
  if (!packing || (plain != nullptr && !fp8)) return std::nullopt;
  QuantisedWeight weight(*packing, model, spec, lies, files);
  weight.find_parts();
  return weight;
}

QuantisedWeight::QuantisedWeight(Packing packing, const ModelConfig& model, const WeightSpec& spec,
                                 const TensorPlace& lies, const CheckpointFiles& files)
    : packing_(packing),
      files_(&files),
      lies_(lies),
      name_(without_weight(lies.name)),
      rows_(spec.rows),
      cols_(spec.cols),
      block_(model.weight_block > 0 ? model.weight_block : spec.cols),
      whole_rows_(model.weight_block == 0),
      bits_(model.quantisation.format == QuantisedFormat::int4 ? 4 : 8),
      variant_(model.quantisation.packing),
      zero_points_(model.quantisation.zero_points) {}

void QuantisedWeight::fail(const std::string& name, const std::string& message) const {
  throw CheckpointError(files_->at(name).file->name(), in_quotes(name), message);
}

void QuantisedWeight::need(const std::string& name, std::initializer_list<TensorType> types,
                           const std::vector<std::vector<std::int64_t>>& shapes) {
  const CheckpointFiles::Place* const held = files_->find(name);
  if (held == nullptr) {
    throw CheckpointError(
        files_->names().front(), in_quotes(name),
        fmt::format("is missing; {} is quantised, as quantization_config says", in_quotes(lies_.name)));
  }
  const auto fail_in = [&](const char* field, const std::string& message) {
    throw CheckpointError(held->file->name(), in_quotes(name) + field, message);
  };
  const TensorEntry& entry = *held->entry;
  if (std::ranges::find(types, entry.type) == types.end()) {
    std::vector<std::string_view> texts;
    for (const TensorType type : types) texts.push_back(to_string(type));
    fail_in(".dtype", fmt::format("{}; {} is needed", to_string(entry.type), fmt::join(texts, " or ")));
  }
  if (std::ranges::find(shapes, entry.shape) == shapes.end()) {
    std::vector<std::string> texts;
    for (const auto& shape : shapes) texts.push_back(fmt::format("[{}]", fmt::join(shape, ", ")));
    fail_in(".shape",
            fmt::format("[{}]; the config makes it {}", fmt::join(entry.shape, ", "), fmt::join(texts, " or ")));
  }
  tensors_.push_back(name);
}

void QuantisedWeight::find_parts() {
  if (packing_ != Packing::mxfp4 && lies_.slice >= 0) {
    throw CheckpointError(files_->names().front(), in_quotes(lies_.name),
                          "experts that are stacked in one tensor are read as they are or in MXFP4, in no other "
                          "quantised format");
  }
  switch (packing_) {
    case Packing::fp8:
      return find_fp8();
    case Packing::mxfp4:
      return find_mxfp4();
    case Packing::compressed:
      return find_compressed();
    case Packing::gptq:
      return find_gptq();
    case Packing::awq:
      return find_awq();
  }
}

std::int64_t QuantisedWeight::groups() const {
  return divided_up(cols_, block_);
}

void QuantisedWeight::find_fp8() {
  need(lies_.name, {TensorType::f8_e4m3}, {{rows_, cols_}});
  const std::vector<std::int64_t> blocks = {divided_up(rows_, block_), divided_up(cols_, block_)};
  const std::string of_deepseek = lies_.name + "_scale_inv", otherwise = lies_.name + "_scale";
  const std::string& scales = has(otherwise) ? otherwise : of_deepseek;
  need(scales, kFloats, whole_rows_ ? Shapes{{rows_, 1}, {1}, {}} : Shapes{blocks});
}

void QuantisedWeight::find_mxfp4() {
  if (!lies_.transposed || cols_ % block_ != 0) {
    throw CheckpointError(files_->names().front(), in_quotes(lies_.name),
                          fmt::format("{} columns; MXFP4 is read where groups of {} columns fill the rows of experts "
                                      "that are stacked in one tensor",
                                      cols_, block_));
  }
  const std::int64_t experts = lies_.shape.front(), rows = lies_.shape.back();
  need(lies_.name + "_blocks", {TensorType::u8}, {{experts, rows, groups(), kMxfp4Bytes}});
  need(lies_.name + "_scales", {TensorType::u8}, {{experts, rows, groups()}});
}

void QuantisedWeight::find_compressed() {
  const std::int64_t in_word = 32 / bits_;
  need(name_ + ".weight_packed", {TensorType::i32}, {{rows_, divided_up(cols_, in_word)}});
  need(name_ + ".weight_scale", kFloats, {{rows_, groups()}});
  need(name_ + ".weight_shape", kIds, {{2}});
  check_stored_shape();
  if (zero_points_ || has(name_ + ".weight_zero_point")) {
    need(name_ + ".weight_zero_point", {TensorType::i32}, {{divided_up(rows_, in_word), groups()}});
  }
  if (has(name_ + ".weight_g_idx")) need(name_ + ".weight_g_idx", kIds, {{cols_}});
}

void QuantisedWeight::check_stored_shape() const {
  const std::string name = name_ + ".weight_shape";
  const ops::Matrix<std::int64_t> shape = integers(name, {0, 1}, {0, 2});
  if (shape(0, 0) == rows_ && shape(0, 1) == cols_) return;
  fail(name, fmt::format("{} x {}; the config makes it {} x {}", shape(0, 0), shape(0, 1), rows_, cols_));
}

void QuantisedWeight::require_variant(std::initializer_list<const char*> read) const {
  if (std::ranges::find(read, variant_) != read.end()) return;
  throw CheckpointError(
      files_->names().front(), in_quotes(name_ + ".qweight"),
      fmt::format("packed as quantization_config's {} says; {} is read", in_quotes(variant_), fmt::join(read, " or ")));
}

void QuantisedWeight::find_gptq() {
  require_variant({"gptq", "gptq_v2"});
  const std::int64_t in_word = 32 / bits_;
  need(name_ + ".qweight", {TensorType::i32}, {{divided_up(cols_, in_word), rows_}});
  need(name_ + ".qzeros", {TensorType::i32}, {{groups(), divided_up(rows_, in_word)}});
  need(name_ + ".scales", kFloats, {{groups(), rows_}});
  if (has(name_ + ".g_idx")) need(name_ + ".g_idx", kIds, {{cols_}});
}

void QuantisedWeight::find_awq() {
  require_variant({"gemm"});
  const std::int64_t in_word = 32 / bits_;
  if (bits_ != 4) {
    throw CheckpointError(files_->names().front(), in_quotes(name_ + ".qweight"),
                          fmt::format("{} bits; of AWQ's weights, those of 4 bits are read", bits_));
  }
  need(name_ + ".qweight", {TensorType::i32}, {{cols_, divided_up(rows_, in_word)}});
  need(name_ + ".qzeros", {TensorType::i32}, {{groups(), divided_up(rows_, in_word)}});
  need(name_ + ".scales", kFloats, {{groups(), rows_}});
}

ops::Matrix<std::int64_t> QuantisedWeight::integers(const std::string& name, Range rows, Range cols) const {
  ops::Matrix<std::int64_t> values(rows.count, cols.count);
  files_->read<std::int64_t>(name, rows, cols, values);
  return values;
}

ops::Matrix<double> QuantisedWeight::numbers(const std::string& name, Range rows, Range cols) const {
  ops::Matrix<double> values(rows.count, cols.count);
  files_->read<double>(name, rows, cols, values);
  return values;
}

std::vector<std::int64_t> QuantisedWeight::groups_of(Range cols, const std::string& index) const {
  std::vector<std::int64_t> result(static_cast<std::size_t>(cols.count));
  if (has(index)) {
    const ops::Matrix<std::int64_t> listed = integers(index, {0, 1}, cols);
    std::ranges::copy(listed.row(0), result.begin());
  } else {
    for (std::size_t j = 0; j < result.size(); ++j) result[j] = (cols.begin + static_cast<std::int64_t>(j)) / block_;
  }
  for (const std::int64_t group : result) {
    if (group < 0 || group >= groups()) {
      fail(index, fmt::format("group {}; {} columns in groups of {} have the groups 0 to {}", group, cols_, block_,
                              groups() - 1));
    }
  }
  return result;
}

void QuantisedWeight::read(Range rows, Range cols, ops::MatrixView<double> out) const {
  if (rows.count == 0 || cols.count == 0) return;
  switch (packing_) {
    case Packing::fp8:
      return read_fp8(rows, cols, out);
    case Packing::mxfp4:
      return read_mxfp4(rows, cols, out);
    case Packing::compressed:
      return read_compressed(rows, cols, out);
    case Packing::gptq:
    case Packing::awq:
      return read_transposed(rows, cols, out);
  }
}

void QuantisedWeight::read_fp8(Range rows, Range cols, ops::MatrixView<double> out) const {
  files_->read<double>(lies_.name, rows, cols, out);
  const std::string& name = tensors_[1];
  const std::vector<std::int64_t>& shape = files_->at(name).entry->shape;
  // One scale of a row, or of all, is one of a block that has no end.
  constexpr std::int64_t kAll = std::numeric_limits<std::int64_t>::max();
  const std::int64_t across = whole_rows_ ? kAll : block_;
  const std::int64_t down = !whole_rows_ ? block_ : shape.size() == 2 ? 1 : kAll;
  const Range scale_rows = covering(rows, down), scale_cols = covering(cols, across);
  const ops::Matrix<double> scales = numbers(name, scale_rows, scale_cols);
  for (std::int64_t i = 0; i < rows.count; ++i) {
    for (std::int64_t j = 0; j < cols.count; ++j) {
      out(i, j) *= scales((rows.begin + i) / down - scale_rows.begin, (cols.begin + j) / across - scale_cols.begin);
    }
  }
}

void QuantisedWeight::read_mxfp4(Range rows, Range cols, ops::MatrixView<double> out) const {
  const std::string &blocks = tensors_[0], &scales = tensors_[1];
  const Range held = covering(cols, block_);
  for (std::int64_t i = 0; i < rows.count; ++i) {
    // A slice is one row of the tensor's entry.
    const std::int64_t first = (lies_.begin + (rows.begin + i) * lies_.step) * groups() + held.begin;
    const ops::Matrix<std::int64_t> bytes =
        integers(blocks, {lies_.slice, 1}, {first * kMxfp4Bytes, held.count * kMxfp4Bytes});
    const ops::Matrix<std::int64_t> exponents = integers(scales, {lies_.slice, 1}, {first, held.count});
    for (std::int64_t j = 0; j < cols.count; ++j) {
      const std::int64_t col = cols.begin + j - held.begin * block_;
      const std::int64_t exponent = exponents(0, col / block_);
      if (exponent == kMxfp4Nan) fail(scales, "255, which is no number; a scale from 0 to 254 is needed");
      out(i, j) = std::ldexp(e2m1(bytes(0, col / 2) >> (col % 2 * 4)), static_cast<int>(exponent - 127));
    }
  }
}

void QuantisedWeight::read_compressed(Range rows, Range cols, ops::MatrixView<double> out) const {
  const std::int64_t in_word = 32 / bits_, mask = (std::int64_t{1} << bits_) - 1,
                     middle = std::int64_t{1} << (bits_ - 1);
  const std::string zero_point = name_ + ".weight_zero_point";
  const Range words = covering(cols, in_word), zero_words = covering(rows, in_word), all{0, groups()};
  const ops::Matrix<std::int64_t> packed = integers(tensors_[0], rows, words);
  const ops::Matrix<double> scales = numbers(name_ + ".weight_scale", rows, all);
  const std::vector<std::int64_t> group = groups_of(cols, name_ + ".weight_g_idx");
  const bool zeros = has(zero_point);
  const ops::Matrix<std::int64_t> packed_zeros =
      zeros ? integers(zero_point, zero_words, all) : ops::Matrix<std::int64_t>(0, 0);
  for (std::int64_t i = 0; i < rows.count; ++i) {
    const std::int64_t row = rows.begin + i;
    for (std::int64_t j = 0; j < cols.count; ++j) {
      const std::int64_t col = cols.begin + j, g = group[static_cast<std::size_t>(j)];
      const std::int64_t value = packed(i, col / in_word - words.begin) >> (col % in_word * bits_) & mask;
      const std::int64_t zero =
          zeros ? packed_zeros(row / in_word - zero_words.begin, g) >> (row % in_word * bits_) & mask : middle;
      out(i, j) = static_cast<double>(value - zero) * scales(i, g);
    }
  }
}

void QuantisedWeight::read_transposed(Range rows, Range cols, ops::MatrixView<double> out) const {
  const bool awq = packing_ == Packing::awq, zeros_less_one = variant_ == "gptq";
  const std::int64_t in_word = 32 / bits_, mask = (std::int64_t{1} << bits_) - 1;
  const auto shift = [&](std::int64_t i) {
    return (awq ? kAwqPlaces[static_cast<std::size_t>(i % in_word)] : i % in_word) * bits_;
  };
  const Range row_words = covering(rows, in_word), col_words = covering(cols, in_word), all{0, groups()};
  const ops::Matrix<std::int64_t> packed =
      awq ? integers(tensors_[0], cols, row_words) : integers(tensors_[0], col_words, rows);
  const ops::Matrix<std::int64_t> packed_zeros = integers(name_ + ".qzeros", all, row_words);
  const ops::Matrix<double> scales = numbers(name_ + ".scales", all, rows);
  const std::vector<std::int64_t> group = groups_of(cols, name_ + ".g_idx");
  for (std::int64_t i = 0; i < rows.count; ++i) {
    const std::int64_t row = rows.begin + i, word = row / in_word - row_words.begin;
    for (std::int64_t j = 0; j < cols.count; ++j) {
      const std::int64_t col = cols.begin + j, g = group[static_cast<std::size_t>(j)];
      const std::int64_t value =
          (awq ? packed(j, word) >> shift(row) : packed(col / in_word - col_words.begin, i) >> shift(col)) & mask;
      const std::int64_t zero = packed_zeros(g, word) >> shift(row) & mask;
      if (zeros_less_one && zero == mask) {
        fail(name_ + ".qzeros",
             fmt::format("{} of row {}, group {}: a zero point of {} or of 0, implementations differ; "
                         "the checkpoint_format \"gptq_v2\" has no such doubt",
                         zero, row, g, zero + 1));
      }
      out(i, j) = static_cast<double>(value - zero - (zeros_less_one ? 1 : 0)) * scales(g, row - rows.begin);
    }
  }
}

}  // namespace shardproof
