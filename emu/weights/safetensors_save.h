// Makes what safetensors.h reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "emu/weights/safetensors.h"

namespace shardproof {

/// A tensor as it lies in a file.
struct TensorBytes {
  std::string name;
  TensorType type = TensorType::f32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;
};

/// Whether every value is one of the type.
bool holds(TensorType type, std::span<const double> values);

/// Of a type that holds the values, all of the shape's. Throws std::invalid_argument for a shape of another size, or a
/// type that does not hold them.
TensorBytes tensor_of(std::string name, TensorType type, std::vector<std::int64_t> shape,
                      std::span<const double> values);
/// The same as I64.
TensorBytes tensor_of(std::string name, std::vector<std::int64_t> shape, std::span<const std::int64_t> ids);

/// The bytes of a file that holds them, in this order. Throws std::invalid_argument for two tensors of one name.
std::string safetensors_file(std::span<const TensorBytes> tensors);

}  // namespace shardproof
