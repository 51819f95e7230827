// Reads a .safetensors file: 8 bytes of header length (little endian), that many bytes of JSON, then the tensors'
// bytes.
//
// The header maps a tensor's name to {"dtype", "shape", "data_offsets": [begin, end]}, offsets counted from the end of
// the header; "__metadata__" maps strings to strings. Format: https://github.com/huggingface/safetensors
//
// A file is never trusted. Refused: a header that does not fit the file or exceeds kMaxHeaderBytes, JSON that is not
// strict, duplicate or unknown keys, other dtypes than F64 F32 F16 BF16 (and, where ids may be there, I64 I32, where
// quantised weights may be, these, U8 and F8_E4M3), a shape whose bytes are not those of its offsets, tensors that
// overlap, leave a hole, or do not reach the end of the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emu/plan/partition.h"
#include "emu/weights/checkpoint_error.h"
#include "emu/weights/steady_file.h"
#include "ops/matrix.h"

namespace shardproof {

inline constexpr std::uint64_t kMaxHeaderBytes = 16u << 20;
inline constexpr std::size_t kMaxTensorDims = 8;

enum class TensorType { f64, f32, f16, bf16, i64, i32, u8, f8_e4m3 };
constexpr bool is_integer(TensorType type) {
  return type == TensorType::i64 || type == TensorType::i32 || type == TensorType::u8;
}

/// Which types a file may hold.
enum class TensorTypes { floats, floats_and_ids, floats_and_quantised };

/// "F64", "F32", "F16", "BF16", "I64", "I32", "U8", "F8_E4M3".
std::string_view to_string(TensorType type);
std::int64_t bytes_of(TensorType type);

struct TensorEntry {
  std::string name;
  TensorType type = TensorType::f32;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;  ///< of its bytes, from the end of the header
  std::uint64_t end = 0;

  /// As a row-major matrix: the first dim by the product of the others; one dim is one row.
  std::int64_t rows() const;
  std::int64_t cols() const;
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  ///< in order of their bytes
  std::uint64_t data_begin = 0;      ///< where the tensors' bytes start in the file

  /// Null when there is none of that name.
  const TensorEntry* find(std::string_view name) const;
};

/// `head` is the beginning of a file of `file_bytes` bytes: all of its header, or less where its length does not fit;
/// `name` stands for the file in messages. Throws CheckpointError.
SafetensorsHeader parse_safetensors(std::span<const std::byte> head, std::uint64_t file_bytes, const std::string& name,
                                    TensorTypes types = TensorTypes::floats);
/// Of a file that is in memory.
SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& name);

/// Writes rows x cols of the tensor to `out`, which has that shape; `data` are the bytes after the header. Each value
/// is the file's; F64 read into float is rounded to nearest. Throws std::out_of_range when the slice leaves the tensor,
/// std::invalid_argument when `out` has another shape, or is of ids (std::int64_t) where the tensor is of numbers, or
/// the other way round. T is float, double or std::int64_t.
template <class T>
void read_slice(std::span<const std::byte> data, const TensorEntry& tensor, Range rows, Range cols,
                ops::MatrixView<T> out);

/// A file on disk. Safe to read from several threads.
class SafetensorsFile {
 public:
  /// Throws CheckpointError.
  explicit SafetensorsFile(const std::filesystem::path& path, TensorTypes types = TensorTypes::floats);

  const std::string& name() const { return file_.name(); }
  const SafetensorsHeader& header() const { return header_; }

  /// read_slice of this file's bytes. Throws CheckpointError too, when the file is not as it was when it was opened.
  template <class T>
  void read(const TensorEntry& tensor, Range rows, Range cols, ops::MatrixView<T> out) const;

 private:
  SteadyFile file_;
  SafetensorsHeader header_;
};

}  // namespace shardproof
