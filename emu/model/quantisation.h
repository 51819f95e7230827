// How a checkpoint keeps the weights of a quantised model, as quantization_config says. What is computed does not
// depend on it: weights are dequantised to the config's dtype first.
#pragma once

#include <cstdint>
#include <string>

namespace shardproof {

/// What a quantised value is stored as.
enum class QuantisedFormat : std::int8_t {
  none,   ///< of the config's dtype
  fp8,    ///< one byte; a scale of four, of a block of rows and columns, or of a whole matrix
  int8,   ///< one byte; a scale of two, of a group of columns of a row, or of a whole row
  mxfp4,  ///< half a byte; a scale of one, of 32 columns of a row (OCP Microscaling Formats 1.0, section 5.2)
  int4,   ///< half a byte; a scale of two, of a group of columns of a row
};

struct Quantisation {
  std::string method = {};  ///< quant_method; empty: weights are not quantised
  QuantisedFormat format = QuantisedFormat::none;
  bool zero_points = false;  ///< a value beside each scale, as wide as a weight
  /// How values lie in words, in the method's own word: "gptq" or "gptq_v2" (checkpoint_format), "gemm" (AWQ's
  /// version).
  std::string packing = {};
  /// Which products' weights are. Never those of embedding, norms, router and head, and no bias.
  bool attention = true;
  bool mlp = true;  ///< of dense layers, and shared experts
  bool experts = true;
  std::string kv_cache_dtype = {};  ///< that the cache is made for (Workload::kv_cache_dtype); empty: none is said

  bool operator==(const Quantisation&) const = default;
};

/// Bytes of values, and of what scales them.
struct StoredBytes {
  double values = 0;
  double scales = 0;

  double total() const { return values + scales; }
  StoredBytes& operator+=(const StoredBytes& other) {
    values += other.values;
    scales += other.scales;
    return *this;
  }
};

/// Of a matrix of quantised weights whose scales are of `block` (ModelConfig::weight_block): ceil(rows / block) *
/// ceil(columns / block) of fp8, rows * ceil(columns / block) of the others.
StoredBytes quantised_bytes(const Quantisation& quantisation, std::int64_t block, std::int64_t rows, std::int64_t cols);
/// The same of one value in a whole block.
double quantised_bytes_of_value(const Quantisation& quantisation, std::int64_t block);

}  // namespace shardproof
