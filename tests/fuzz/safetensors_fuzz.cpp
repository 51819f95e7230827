// Whatever bytes stand in a safetensors file: no crash, no hang; a header that is accepted describes tensors that lie
// side by side and can be read to the last element.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>

#include "emu/weights/safetensors.h"

namespace {

using namespace shardproof;

void require(bool holds) {
  if (!holds) std::abort();
}

void try_file(std::span<const std::byte> file) {
  SafetensorsHeader header;
  try {
    header = parse_safetensors(file, "fuzz.safetensors");
  } catch (const CheckpointError& error) {
    require(error.file() == "fuzz.safetensors" && *error.what() != '\0');
    return;
  }
  const std::span<const std::byte> data = file.subspan(header.data_begin);
  std::uint64_t end = 0;
  for (const TensorEntry& tensor : header.tensors) {
    require(tensor.begin == end && tensor.end <= data.size());
    end = tensor.end;
    const std::int64_t rows = tensor.rows(), cols = tensor.cols();
    require(static_cast<std::uint64_t>(rows * cols * bytes_of(tensor.type)) == tensor.end - tensor.begin);
    if (rows * cols == 0) continue;
    ops::Matrix<double> whole(rows, cols);
    read_slice<double>(data, tensor, {0, rows}, {0, cols}, whole);
    ops::Matrix<float> corner(1, 1);
    read_slice<float>(data, tensor, {rows - 1, 1}, {cols - 1, 1}, corner);
    const auto expected = static_cast<float>(whole(rows - 1, cols - 1));
    require(corner(0, 0) == expected || (corner(0, 0) != corner(0, 0) && expected != expected));
  }
  require(end == data.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  const auto input = std::as_bytes(std::span(bytes, size));
  try_file(input);
  // The same bytes with a length before them that fits: a header up to the last brace, then data. Otherwise hardly any
  // input would get past the length.
  const auto brace = std::find(input.rbegin(), input.rend(), std::byte{'}'});
  const std::uint64_t length = static_cast<std::uint64_t>(input.rend() - brace);
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  file.append(reinterpret_cast<const char*>(bytes), size);
  try_file(std::as_bytes(std::span(file.data(), file.size())));
  return 0;
}
