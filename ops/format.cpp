#include "ops/format.h"

#include "ops/internal/rounding.h"

namespace shardproof::ops {

std::string_view to_string(Format format) {
  switch (format) {
    case Format::fp64:
      return "fp64";
    case Format::fp32:
      return "fp32";
    case Format::bf16:
      return "bf16";
    case Format::fp16:
      return "fp16";
    case Format::exact:
      return "exact";
  }
  return "unknown";
}

std::optional<Format> parse_format(std::string_view name) {
  for (const Format format : {Format::fp64, Format::fp32, Format::bf16, Format::fp16, Format::exact}) {
    if (name == to_string(format)) return format;
  }
  return std::nullopt;
}

double unit_roundoff(Format format) {
  switch (format) {
    case Format::fp64:
      return 0x1p-53;
    case Format::fp32:
      return 0x1p-24;
    case Format::bf16:
      return 0x1p-8;
    case Format::fp16:
      return 0x1p-11;
    case Format::exact:
      return 0;
  }
  return 0;
}

template <class T>
T stored(T value, Format format) {
  return simd::with_rounding<T>(format, [&](auto rounding) { return rounding(simd::broadcast<T>(value))[0]; });
}

template <class T>
void round_to(std::span<T> values, Format format) {
  if (format == Format::fp64 || (format == Format::fp32 && sizeof(T) == 4)) return;
  simd::with_rounding<T>(format, [&](auto rounding) {
    simd::transform<T>(static_cast<Index>(values.size()), values.data(), rounding, values.data());
  });
}

template <class T>
void round_partial(std::span<T> values, Format format) {
  if (format != Format::exact) round_to(values, format);
}

template float stored(float, Format);
template double stored(double, Format);
template void round_to(std::span<float>, Format);
template void round_to(std::span<double>, Format);
template void round_partial(std::span<float>, Format);
template void round_partial(std::span<double>, Format);

}  // namespace shardproof::ops
