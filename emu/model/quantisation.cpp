#include "emu/model/quantisation.h"

namespace shardproof {
namespace {

constexpr std::int64_t blocks(std::int64_t count, std::int64_t block) {
  return block > 0 ? (count + block - 1) / block : 1;
}

double bytes_of_scale(QuantisedFormat format) {
  return format == QuantisedFormat::fp8 ? 4 : format == QuantisedFormat::mxfp4 ? 1 : 2;
}

}  // namespace

StoredBytes quantised_bytes(const Quantisation& quantisation, std::int64_t block, std::int64_t rows,
                            std::int64_t cols) {
  const bool half = quantisation.format == QuantisedFormat::mxfp4 || quantisation.format == QuantisedFormat::int4;
  const double of_value = half ? 0.5 : 1;
  const std::int64_t down = quantisation.format == QuantisedFormat::fp8 ? blocks(rows, block) : rows;
  const double of_block = bytes_of_scale(quantisation.format) + (quantisation.zero_points ? of_value : 0);
  return {.values = of_value * static_cast<double>(rows) * static_cast<double>(cols),
          .scales = of_block * static_cast<double>(down) * static_cast<double>(blocks(cols, block))};
}

double quantised_bytes_of_value(const Quantisation& quantisation, std::int64_t block) {
  // Of a scale for a row or a matrix there is next to nothing a value.
  if (block == 0) return quantised_bytes(quantisation, 0, 1, 1).values;
  const std::int64_t rows = quantisation.format == QuantisedFormat::fp8 ? block : 1;
  return quantised_bytes(quantisation, block, rows, block).total() / static_cast<double>(rows * block);
}

}  // namespace shardproof
