#include "emu/weights/safetensors_save.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <stdexcept>

#include "ops/format.h"

namespace shardproof {
namespace {

/// Of a value that is one of bf16 (a NaN stays one).
std::uint16_t bfloat_bits(double value) {
  const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(value));
  const bool lost_nan = std::isnan(value) && (bits >> 16 & 0x7fU) == 0;
  return static_cast<std::uint16_t>(bits >> 16 | (lost_nan ? 0x40U : 0U));
}

/// Of a value that is one of fp16.
std::uint16_t half_bits(double value) {
  const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(value));
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000U);
  if (std::isnan(value)) return sign | 0x7e00U;
  if (std::isinf(value)) return sign | 0x7c00U;
  const auto exponent = static_cast<int>(bits >> 23 & 0xffU) - 127;
  if (exponent < -14) return sign | static_cast<std::uint16_t>(std::abs(value) * 0x1p24);  // zero and subnormals
  return static_cast<std::uint16_t>(sign | static_cast<unsigned>(exponent + 15) << 10 | (bits >> 13 & 0x3ffU));
}

template <class Stored, class Value, class Convert>
void append(std::span<const Value> values, std::vector<std::byte>& bytes, const Convert& convert) {
  bytes.resize(values.size() * sizeof(Stored));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Stored stored = convert(values[i]);
    std::memcpy(bytes.data() + i * sizeof(Stored), &stored, sizeof(Stored));
  }
}

void check_shape(const std::string& name, const std::vector<std::int64_t>& shape, std::size_t values) {
  const std::int64_t size = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies{});
  if (size == static_cast<std::int64_t>(values)) return;
  throw std::invalid_argument(fmt::format("'{}': {} values for a shape of {}", name, values, size));
}

}  // namespace

bool holds(TensorType type, std::span<const double> values) {
  const auto is_of = [&](double value) {
    if (std::isnan(value)) return true;
    switch (type) {
      case TensorType::f64:
        return true;
      case TensorType::f32:
        return static_cast<double>(static_cast<float>(value)) == value;
      case TensorType::f16:
        return ops::stored(value, ops::Format::fp16) == value;
      case TensorType::bf16:
        return ops::stored(value, ops::Format::bf16) == value;
      case TensorType::i64:
      case TensorType::i32:
      case TensorType::u8:
      case TensorType::f8_e4m3:
        break;
    }
    return false;
  };
  return std::ranges::all_of(values, is_of);
}

TensorBytes tensor_of(std::string name, TensorType type, std::vector<std::int64_t> shape,
                      std::span<const double> values) {
  check_shape(name, shape, values.size());
  if (!holds(type, values)) {
    throw std::invalid_argument(fmt::format("'{}': {} does not hold its values", name, to_string(type)));
  }
  TensorBytes tensor{.name = std::move(name), .type = type, .shape = std::move(shape), .bytes = {}};
  if (type == TensorType::f64) append<double>(values, tensor.bytes, std::identity{});
  if (type == TensorType::f32) append<float>(values, tensor.bytes, [](double v) { return static_cast<float>(v); });
  if (type == TensorType::f16) append<std::uint16_t>(values, tensor.bytes, half_bits);
  if (type == TensorType::bf16) append<std::uint16_t>(values, tensor.bytes, bfloat_bits);
  return tensor;
}

TensorBytes tensor_of(std::string name, std::vector<std::int64_t> shape, std::span<const std::int64_t> ids) {
  check_shape(name, shape, ids.size());
  TensorBytes tensor{.name = std::move(name), .type = TensorType::i64, .shape = std::move(shape), .bytes = {}};
  append<std::int64_t>(ids, tensor.bytes, std::identity{});
  return tensor;
}

std::string safetensors_file(std::span<const TensorBytes> tensors) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  std::uint64_t end = 0;
  for (const TensorBytes& tensor : tensors) {
    if (header.contains(tensor.name)) throw std::invalid_argument(fmt::format("'{}' stands twice", tensor.name));
    const std::uint64_t begin = end;
    end += tensor.bytes.size();
    header[tensor.name] = {{"dtype", to_string(tensor.type)}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that what follows is aligned
  const std::uint64_t length = text.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  file += text;
  file.reserve(file.size() + end);
  for (const TensorBytes& tensor : tensors) {
    file.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
  }
  return file;
}

}  // namespace shardproof
