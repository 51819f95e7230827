#include "emu/weights/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <stdexcept>
#include <type_traits>

#include "emu/input/json_value.h"

namespace shardproof {
namespace {

static_assert(std::endian::native == std::endian::little, "the tensors' bytes are little endian and read as they are");

using Kind = JsonValue::Kind;

constexpr std::uint64_t kLengthBytes = 8;
constexpr int kMaxDepth = 4;

constexpr std::pair<std::string_view, TensorType> kTypes[] = {
    {"F64", TensorType::f64}, {"F32", TensorType::f32}, {"F16", TensorType::f16}, {"BF16", TensorType::bf16},
    {"I64", TensorType::i64}, {"I32", TensorType::i32}, {"U8", TensorType::u8},   {"F8_E4M3", TensorType::f8_e4m3}};

std::string_view names_of(TensorTypes types) {
  switch (types) {
    case TensorTypes::floats:
      return "F64, F32, F16, BF16";
    case TensorTypes::floats_and_ids:
      return "F64, F32, F16, BF16, I64, I32";
    case TensorTypes::floats_and_quantised:
      break;
  }
  return "F64, F32, F16, BF16, F8_E4M3, I64, I32, U8";
}

/// One tensor's object, read member by member.
class EntryReader {
 public:
  EntryReader(const std::string& file, const std::string& tensor, const JsonValue& object, std::uint64_t data_bytes,
              TensorTypes types)
      : file_(file), tensor_(in_quotes(tensor)), data_bytes_(data_bytes), types_(types) {
    entry_.name = tensor;
    if (!object.is(Kind::object)) fail("", fmt::format("{}; an object is needed", describe(object)));
    for (const JsonMember& member : object.members) {
      if (member.key != "dtype" && member.key != "shape" && member.key != "data_offsets") {
        fail("",
             fmt::format("unknown key {}; only dtype, shape and data_offsets may stand here", in_quotes(member.key)));
      }
    }
    read_type(member(object, "dtype"));
    read_shape(member(object, "shape"));
    read_offsets(member(object, "data_offsets"));
    check_size();
  }

  TensorEntry take() { return std::move(entry_); }

 private:
  [[noreturn]] void fail(std::string_view field, const std::string& message) const {
    throw CheckpointError(file_, field.empty() ? tensor_ : fmt::format("{}.{}", tensor_, field), message);
  }

  const JsonValue& member(const JsonValue& object, std::string_view key) const {
    const JsonValue* const value = object.find(key);
    if (value == nullptr) fail(key, "is missing");
    return *value;
  }

  void read_type(const JsonValue& value) {
    for (const auto& [name, type] : kTypes) {
      const bool quantised = type == TensorType::f8_e4m3 || type == TensorType::u8;
      const bool taken = quantised          ? types_ == TensorTypes::floats_and_quantised
                         : is_integer(type) ? types_ != TensorTypes::floats
                                            : true;
      if (taken && value.is(Kind::string) && value.text == name) {
        entry_.type = type;
        return;
      }
    }
    fail("dtype", fmt::format("{}; one of {} is needed", describe(value), names_of(types_)));
  }

  std::int64_t count(const JsonValue& value, std::string_view field) const {
    if (!value.is(Kind::integer) || value.integer < 0) {
      fail(field, fmt::format("{}; an integer of at least 0 is needed", describe(value)));
    }
    return value.integer;
  }

  void read_shape(const JsonValue& value) {
    if (!value.is(Kind::array) || value.items.size() > kMaxTensorDims) {
      fail("shape", fmt::format("{}; an array of at most {} is needed", describe(value), kMaxTensorDims));
    }
    for (const JsonValue& item : value.items) entry_.shape.push_back(count(item, "shape"));
  }

  void read_offsets(const JsonValue& value) {
    if (!value.is(Kind::array) || value.items.size() != 2) {
      fail("data_offsets", fmt::format("{}; an array of begin and end is needed", describe(value)));
    }
    entry_.begin = static_cast<std::uint64_t>(count(value.items[0], "data_offsets"));
    entry_.end = static_cast<std::uint64_t>(count(value.items[1], "data_offsets"));
    if (entry_.begin > entry_.end || entry_.end > data_bytes_) {
      fail("data_offsets", fmt::format("[{}, {}]; begin <= end <= {}, the bytes after the header, is needed",
                                       entry_.begin, entry_.end, data_bytes_));
    }
  }

  void check_size() const {
    std::int64_t bytes = bytes_of(entry_.type);
    std::int64_t bound = bytes;  // a dim of 0 must not hide that the others overflow: cols() multiplies them
    for (const std::int64_t dim : entry_.shape) {
      if (__builtin_mul_overflow(bound, std::max<std::int64_t>(dim, 1), &bound)) {
        fail("shape", fmt::format("[{}] is more than 2^63 bytes", fmt::join(entry_.shape, ", ")));
      }
      bytes *= dim;
    }
    if (static_cast<std::uint64_t>(bytes) != entry_.end - entry_.begin) {
      fail("data_offsets",
           fmt::format("[{}, {}] are {} bytes; the shape [{}] of {} needs {}", entry_.begin, entry_.end,
                       entry_.end - entry_.begin, fmt::join(entry_.shape, ", "), to_string(entry_.type), bytes));
    }
  }

  const std::string& file_;
  std::string tensor_;
  std::uint64_t data_bytes_;
  TensorTypes types_;
  TensorEntry entry_;
};

void check_metadata(const JsonValue& metadata, const std::string& file) {
  bool strings = metadata.is(Kind::object);
  for (const JsonMember& member : metadata.members) strings = strings && member.value.is(Kind::string);
  if (!strings) throw CheckpointError(file, "__metadata__", "an object of strings is needed");
}

/// The tensors, in order of their bytes, must cover the data exactly.
void check_cover(const std::vector<TensorEntry>& tensors, std::uint64_t data_bytes, const std::string& file) {
  std::uint64_t expected = 0;
  for (const TensorEntry& tensor : tensors) {
    if (tensor.begin != expected) {
      throw CheckpointError(file, in_quotes(tensor.name) + ".data_offsets",
                            fmt::format("starts at {}, but the tensors before it end at {}: {}", tensor.begin, expected,
                                        tensor.begin < expected ? "they overlap" : "there is a hole"));
    }
    expected = tensor.end;
  }
  if (expected != data_bytes) {
    throw CheckpointError(file, "",
                          fmt::format("the tensors end at {}, but {} bytes follow the header", expected, data_bytes));
  }
}

float float_from_half(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu;
  const std::uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const std::uint32_t wide = exponent == 0x1f ? 0xffu : exponent + 127 - 15;
  return std::bit_cast<float>(sign | wide << 23 | mantissa << 13);
}

float float_from_bfloat(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// A sign, 4 bits of exponent, 3 of mantissa; all ones are no number, and nothing is infinite (OCP 8-bit Floating Point
/// Specification 1.0).
float float_from_e4m3(std::uint8_t bits) {
  const int exponent = bits >> 3 & 0xf, mantissa = bits & 0x7;
  if ((bits & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

template <class Stored, class T, class Convert>
void convert_values(const std::byte* source, std::span<T> out, Convert convert) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    Stored stored;  // the header's length need not leave the data aligned
    std::memcpy(&stored, source + i * sizeof(Stored), sizeof(Stored));
    out[i] = static_cast<T>(convert(stored));
  }
}

template <class T>
void convert_row(const std::byte* source, TensorType type, std::span<T> out) {
  if constexpr (std::is_integral_v<T>) {
    if (type == TensorType::i64) return convert_values<std::int64_t>(source, out, std::identity{});
    if (type == TensorType::u8) return convert_values<std::uint8_t>(source, out, std::identity{});
    return convert_values<std::int32_t>(source, out, std::identity{});
  } else {
    switch (type) {
      case TensorType::f64:
        return convert_values<double>(source, out, std::identity{});
      case TensorType::f32:
        return convert_values<float>(source, out, std::identity{});
      case TensorType::f16:
        return convert_values<std::uint16_t>(source, out, float_from_half);
      case TensorType::bf16:
        return convert_values<std::uint16_t>(source, out, float_from_bfloat);
      case TensorType::f8_e4m3:
        return convert_values<std::uint8_t>(source, out, float_from_e4m3);
      case TensorType::i64:
      case TensorType::i32:
      case TensorType::u8:
        break;  // check_slice has refused it
    }
  }
}

template <class T>
void check_slice(const TensorEntry& tensor, Range rows, Range cols, ops::MatrixView<T> out) {
  const auto inside = [](Range range, std::int64_t size) {
    return range.begin >= 0 && range.count >= 0 && range.begin <= size && range.count <= size - range.begin;
  };
  if (!inside(rows, tensor.rows()) || !inside(cols, tensor.cols())) {
    throw std::out_of_range(fmt::format("{} rows from {} and {} columns from {} of '{}', which is {} x {}", rows.count,
                                        rows.begin, cols.count, cols.begin, tensor.name, tensor.rows(), tensor.cols()));
  }
  if (std::is_integral_v<T> != is_integer(tensor.type)) {
    throw std::invalid_argument(fmt::format("'{}' is of {}", tensor.name, to_string(tensor.type)));
  }
  if (out.rows != rows.count || out.cols != cols.count) {
    throw std::invalid_argument(fmt::format("a slice of {} x {} of '{}' into a matrix of {} x {}", rows.count,
                                            cols.count, tensor.name, out.rows, out.cols));
  }
}

/// Where a slice's bytes lie, from the end of the header.
struct Place {
  Place(const TensorEntry& tensor, Range rows, Range cols)
      : stride(tensor.cols() * bytes_of(tensor.type)),
        bytes(cols.count * bytes_of(tensor.type)),
        first(static_cast<std::int64_t>(tensor.begin) + rows.begin * stride + cols.begin * bytes_of(tensor.type)) {}

  std::int64_t row(std::int64_t i) const { return first + i * stride; }
  bool gapless() const { return bytes == stride; }

  std::int64_t stride;  ///< from a row to the next
  std::int64_t bytes;   ///< of a row of the slice
  std::int64_t first;
};

/// Of the header's text; `head` has it.
std::uint64_t header_length(std::span<const std::byte> head) {
  std::uint64_t length = 0;
  std::memcpy(&length, head.data(), kLengthBytes);
  return length;
}

}  // namespace

std::string_view to_string(TensorType type) {
  for (const auto& [name, listed] : kTypes) {
    if (listed == type) return name;
  }
  return "?";
}

std::int64_t bytes_of(TensorType type) {
  switch (type) {
    case TensorType::f64:
    case TensorType::i64:
      return 8;
    case TensorType::f32:
    case TensorType::i32:
      return 4;
    case TensorType::f16:
    case TensorType::bf16:
      return 2;
    case TensorType::u8:
    case TensorType::f8_e4m3:
      return 1;
  }
  return 0;
}

std::int64_t TensorEntry::rows() const {
  return shape.size() < 2 ? 1 : shape[0];
}

std::int64_t TensorEntry::cols() const {
  std::int64_t product = 1;
  for (std::size_t dim = shape.size() < 2 ? 0 : 1; dim < shape.size(); ++dim) product *= shape[dim];
  return product;
}

const TensorEntry* SafetensorsHeader::find(std::string_view name) const {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [&](const TensorEntry& tensor) { return tensor.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& name) {
  return parse_safetensors(file, file.size(), name);
}

SafetensorsHeader parse_safetensors(std::span<const std::byte> head, std::uint64_t file_bytes, const std::string& name,
                                    TensorTypes types) {
  if (file_bytes < kLengthBytes) {
    throw CheckpointError(name, "", fmt::format("{} bytes; a header length takes {}", file_bytes, kLengthBytes));
  }
  const std::uint64_t length = header_length(head);
  const std::uint64_t rest = file_bytes - kLengthBytes;
  if (length > rest || length > kMaxHeaderBytes) {
    throw CheckpointError(
        name, "header length",
        fmt::format("{}; {} bytes follow it, and at most {} are read", length, rest, kMaxHeaderBytes));
  }
  const std::string_view text(reinterpret_cast<const char*>(head.data()) + kLengthBytes, length);
  if (!text.starts_with('{')) throw CheckpointError(name, "header", "does not start with '{'");
  // A parser may take a zero byte for the end of the text and never see what follows.
  if (text.find('\0') != std::string_view::npos) throw CheckpointError(name, "header", "contains a zero byte");
  const JsonDocument document = parse_json(text, "header", kMaxDepth);
  if (!document.value) {
    const Problem problem = document.problems.empty() ? Problem{"header", "is not JSON"} : document.problems.front();
    throw CheckpointError(name, problem.field, problem.message);
  }

  SafetensorsHeader header;
  header.data_begin = kLengthBytes + length;
  const std::uint64_t data_bytes = rest - length;
  header.tensors.reserve(document.value->members.size());
  for (const JsonMember& member : document.value->members) {
    if (member.key == "__metadata__") {
      check_metadata(member.value, name);
    } else {
      header.tensors.push_back(EntryReader(name, member.key, member.value, data_bytes, types).take());
    }
  }
  // Of an empty tensor and one that starts where it stands, the empty one comes first.
  std::stable_sort(header.tensors.begin(), header.tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  check_cover(header.tensors, data_bytes, name);
  return header;
}

template <class T>
void read_slice(std::span<const std::byte> data, const TensorEntry& tensor, Range rows, Range cols,
                ops::MatrixView<T> out) {
  check_slice(tensor, rows, cols, out);
  const Place place(tensor, rows, cols);
  for (std::int64_t i = 0; i < rows.count; ++i) {
    convert_row(data.data() + place.row(i), tensor.type, out.row(i));
  }
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path, TensorTypes types) : file_(path) {
  const SteadyFile::Look look(file_);
  std::vector<std::byte> head(static_cast<std::size_t>(std::min(file_.size(), kLengthBytes)));
  look.read(0, head);
  if (head.size() == kLengthBytes) {
    const std::uint64_t length = header_length(head);
    if (length <= kMaxHeaderBytes && length <= file_.size() - kLengthBytes) {
      head.resize(static_cast<std::size_t>(kLengthBytes + length));
      look.read(kLengthBytes, std::span(head).subspan(kLengthBytes));
    }
  }
  header_ = parse_safetensors(head, file_.size(), name(), types);
  look.finish();
}

template <class T>
void SafetensorsFile::read(const TensorEntry& tensor, Range rows, Range cols, ops::MatrixView<T> out) const {
  check_slice(tensor, rows, cols, out);
  if (rows.count == 0 || cols.count == 0) return;
  const Place place(tensor, rows, cols);
  // Rows that lie side by side are read together, and so are short ones with what lies between them.
  constexpr std::int64_t kShort = 4096, kBlock = 1 << 20;
  const std::int64_t together =
      place.gapless() || place.stride <= kShort ? std::max<std::int64_t>(1, kBlock / place.stride) : 1;
  std::vector<std::byte> block;
  const SteadyFile::Look look(file_);
  for (std::int64_t first = 0; first < rows.count; first += together) {
    const std::int64_t count = std::min(together, rows.count - first);
    block.resize(static_cast<std::size_t>((count - 1) * place.stride + place.bytes));
    look.read(header_.data_begin + static_cast<std::uint64_t>(place.row(first)), block);
    for (std::int64_t i = 0; i < count; ++i) {
      convert_row(block.data() + i * place.stride, tensor.type, out.row(first + i));
    }
  }
  look.finish();
}

template void SafetensorsFile::read(const TensorEntry&, Range, Range, ops::MatrixView<float>) const;
template void SafetensorsFile::read(const TensorEntry&, Range, Range, ops::MatrixView<double>) const;
template void SafetensorsFile::read(const TensorEntry&, Range, Range, ops::MatrixView<std::int64_t>) const;
template void read_slice(std::span<const std::byte>, const TensorEntry&, Range, Range, ops::MatrixView<float>);
template void read_slice(std::span<const std::byte>, const TensorEntry&, Range, Range, ops::MatrixView<double>);
template void read_slice(std::span<const std::byte>, const TensorEntry&, Range, Range, ops::MatrixView<std::int64_t>);

}  // namespace shardproof
