#include "emu/weights/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "emu/weights/safetensors_save.h"

namespace shardproof {
namespace {

using ::testing::HasSubstr;

/// A file of that header, with its length before it and `data_bytes` bytes 0, 1, 2, ... after it.
std::string file_of(const std::string& header, std::size_t data_bytes) {
  const std::uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  file += header;
  for (std::size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i);
  return file;
}

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

SafetensorsHeader parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file.data(), file.size())), "f.safetensors");
}

/// The message with which the file is refused, or "" when it is not.
std::string refusal(const std::string& file) {
  try {
    parse(file);
  } catch (const CheckpointError& error) {
    return error.what();
  }
  return "";
}

std::string refusal(const std::string& header, std::size_t data_bytes) {
  return refusal(file_of(header, data_bytes));
}

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& content)
      : path_(std::filesystem::temp_directory_path() /
              ("safetensors_test_" + std::to_string(::getpid()) + "_" + std::to_string(counter_++))) {
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  static inline int counter_ = 0;
  std::filesystem::path path_;
};

TEST(SafetensorsHeader, ReadsNamesShapesAndOffsetsInOrderOfBytes) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]},)"
      R"("a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"s":{"dtype":"F64","shape":[],"data_offsets":[20,28]}}   )";

  const SafetensorsHeader parsed = parse(file_of(header, 28));

  ASSERT_EQ(parsed.tensors.size(), 3U);
  EXPECT_EQ(parsed.data_begin, 8 + header.size());
  EXPECT_EQ(parsed.tensors[0].name, "a");
  EXPECT_EQ(parsed.tensors[0].type, TensorType::bf16);
  EXPECT_EQ(parsed.tensors[0].shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(parsed.find("b")->rows(), 1);
  EXPECT_EQ(parsed.find("b")->cols(), 2);
  EXPECT_EQ(parsed.find("s")->cols(), 1);
  EXPECT_EQ(parsed.find("c"), nullptr);
}

TEST(SafetensorsHeader, AcceptsEmptyTensorsAndAnEmptyFile) {
  const std::string header = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                             R"("e":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]},)"
                             R"("f":{"dtype":"F16","shape":[3,0],"data_offsets":[4,4]}})";

  EXPECT_EQ(refusal(header, 4), "");
  EXPECT_EQ(refusal("{}", 0), "");
}

TEST(SafetensorsHeader, RefusesALengthThatDoesNotFit) {
  std::string huge = file_of("{}", 0);
  huge[7] = '\x7f';
  std::string one_more = file_of("{}", 0);
  one_more[0] = 3;
  std::string over_limit(8, '\0');
  const std::uint64_t length = kMaxHeaderBytes + 1;
  std::memcpy(over_limit.data(), &length, 8);
  over_limit.resize(8 + length, ' ');

  EXPECT_THAT(refusal(std::string{}), HasSubstr("f.safetensors: 0 bytes; a header length takes 8"));
  EXPECT_THAT(refusal(std::string(7, '\0')), HasSubstr("7 bytes"));
  EXPECT_THAT(refusal(huge), HasSubstr("header length: 9151314442816847874; 2 bytes follow it"));
  EXPECT_THAT(refusal(one_more), HasSubstr("header length: 3; 2 bytes follow it"));
  EXPECT_THAT(refusal(over_limit), HasSubstr("header length: 16777217"));
}

TEST(SafetensorsHeader, RefusesWhatIsNotStrictJson) {
  const std::string deep = R"({"a":{"dtype":"F32","shape":[[[[[[1]]]]]],"data_offsets":[0,4]}})";

  EXPECT_THAT(refusal("", 0), HasSubstr("does not start with '{'"));
  EXPECT_THAT(refusal("[]", 0), HasSubstr("does not start with '{'"));
  EXPECT_THAT(refusal(" {}", 0), HasSubstr("does not start with '{'"));
  EXPECT_NE(refusal("{", 0), "");
  EXPECT_NE(refusal("{}{}", 0), "");
  EXPECT_NE(refusal(std::string("{}\0", 3), 0), "");
  EXPECT_NE(refusal("{\"\xff\":{}}", 0), "");
  EXPECT_THAT(refusal(deep, 4), HasSubstr("deep"));
  EXPECT_NE(refusal(R"({"a":)" + std::string(1'000'000, '[') + "}", 0), "");
}

TEST(SafetensorsHeader, RefusesDuplicateAndUnknownKeys) {
  const std::string a = R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";

  EXPECT_THAT(refusal("{" + a + "," + a + "}", 4), HasSubstr("twice"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4),
              HasSubstr("twice"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4),
              HasSubstr(R"("a": unknown key "x")"));
}

TEST(SafetensorsHeader, RefusesMissingMembersAndOtherTypes) {
  EXPECT_THAT(refusal(R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4), HasSubstr(R"("a".dtype: is missing)"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4), HasSubstr(R"("a".shape: is missing)"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F32","shape":[1]}})", 4), HasSubstr(R"("a".data_offsets: is missing)"));
  EXPECT_THAT(refusal(R"({"a":7})", 0), HasSubstr("an object is needed"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", 8),
              HasSubstr(R"("a".dtype: "I64"; one of F64, F32, F16, BF16 is needed)"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"f32","shape":[1],"data_offsets":[0,4]}})", 4), HasSubstr("dtype"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":4,"shape":[1],"data_offsets":[0,4]}})", 4), HasSubstr("dtype"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})", 4), HasSubstr("shape"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4), HasSubstr("shape"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4), HasSubstr("shape"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}})", 4), HasSubstr("shape"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}})", 4),
              HasSubstr("at most 8"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4), HasSubstr("begin and end"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}})", 4), HasSubstr("begin and end"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}})", 4), HasSubstr("data_offsets"));
  EXPECT_THAT(refusal(R"({"__metadata__":{"format":1}})", 0), HasSubstr("__metadata__: an object of strings"));
  EXPECT_THAT(refusal(R"({"__metadata__":"pt"})", 0), HasSubstr("__metadata__"));
}

TEST(SafetensorsHeader, RefusesOffsetsOutsideTheFile) {
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 3),
              HasSubstr("[0, 4]; begin <= end <= 3"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4), HasSubstr("begin <= end"));
  EXPECT_NE(refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551620]}})", 4), "");
  EXPECT_NE(refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[9223372036854775807,4]}})", 4), "");
}

TEST(SafetensorsHeader, RefusesAShapeOfOtherBytes) {
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F16","shape":[3,1],"data_offsets":[0,4]}})", 4),
              HasSubstr("[0, 4] are 4 bytes; the shape [3, 1] of F16 needs 6"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0),
              HasSubstr("more than 2^63"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}})", 0),
              HasSubstr("more than 2^63"));
  EXPECT_NE(refusal(R"({"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}})", 4), "");
}

TEST(SafetensorsHeader, RefusesHolesOverlapsAndBytesNoTensorHas) {
  const auto two = [](int begin, int end) {
    return R"({"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"F16","shape":[)" +
           std::to_string((end - begin) / 2) + R"(],"data_offsets":[)" + std::to_string(begin) + "," +
           std::to_string(end) + "]}}";
  };

  EXPECT_EQ(refusal(two(4, 8), 8), "");
  EXPECT_THAT(refusal(two(6, 8), 8), HasSubstr(R"("b".data_offsets: starts at 6)"));
  EXPECT_THAT(refusal(two(6, 8), 8), HasSubstr("hole"));
  EXPECT_THAT(refusal(two(2, 8), 8), HasSubstr("overlap"));
  EXPECT_THAT(refusal(two(0, 4), 4), HasSubstr("overlap"));
  EXPECT_THAT(refusal(two(4, 6), 8), HasSubstr("the tensors end at 6, but 8 bytes follow"));
  EXPECT_THAT(refusal("{}", 1), HasSubstr("the tensors end at 0"));
}

TEST(SafetensorsFile, ReadsAnySliceOfAMatrix) {
  std::vector<float> values;
  for (int i = 0; i < 5 * 7; ++i) values.push_back(static_cast<float>(i) / 8.0F);
  // An odd header length leaves the data unaligned.
  std::string header = R"({"a":{"dtype":"F32","shape":[5,7],"data_offsets":[0,140]}})";
  if (header.size() % 2 == 0) header += ' ';
  const TemporaryFile written(file_of(header, 0) + raw(values));
  const SafetensorsFile file(written.path());
  const TensorEntry& a = *file.header().find("a");

  ops::Matrix<double> slice = ops::Matrix<double>::zeros(4, 9);
  file.read<double>(a, {1, 3}, {2, 4}, slice.view().row_range(1, 3).col_range(5, 4));
  ops::Matrix<float> whole(5, 7);
  file.read<float>(a, {0, 5}, {0, 7}, whole);
  ops::Matrix<float> nothing(0, 7);
  file.read<float>(a, {5, 0}, {0, 7}, nothing);

  for (ops::Index i = 0; i < 4; ++i) {
    for (ops::Index j = 0; j < 9; ++j) {
      const bool inside = i >= 1 && j >= 5;
      EXPECT_EQ(slice(i, j), inside ? static_cast<double>(i * 7 + (j - 5) + 2) / 8.0 : 0.0) << i << ", " << j;
    }
  }
  EXPECT_TRUE(std::equal(values.begin(), values.end(), whole.span().begin()));
}

TEST(SafetensorsFile, ReadsEveryHalfAndBfloatExactly) {
  std::vector<std::uint16_t> bits(65536);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
  const std::string header = R"({"h":{"dtype":"F16","shape":[65536],"data_offsets":[0,131072]},)"
                             R"("b":{"dtype":"BF16","shape":[65536],"data_offsets":[131072,262144]}})";
  const TemporaryFile written(file_of(header, 0) + raw(bits) + raw(bits));
  const SafetensorsFile file(written.path());

  ops::Matrix<double> half(1, 65536), bfloat(1, 65536);
  file.read<double>(*file.header().find("h"), {0, 1}, {0, 65536}, half);
  file.read<double>(*file.header().find("b"), {0, 1}, {0, 65536}, bfloat);

  const auto value = [](int i, int exponent_bits, int mantissa_bits) {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = (i >> mantissa_bits) & ((1 << exponent_bits) - 1);
    const int mantissa = i & ((1 << mantissa_bits) - 1);
    const double sign = (i & 0x8000) != 0 ? -1.0 : 1.0;
    if (exponent == (1 << exponent_bits) - 1) {
      return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
    }
    const int leading = exponent == 0 ? 0 : 1 << mantissa_bits;
    return sign * std::ldexp(leading + mantissa, std::max(exponent, 1) - bias - mantissa_bits);
  };
  for (int i = 0; i < 65536; ++i) {
    const double expected_half = value(i, 5, 10), expected_bfloat = value(i, 8, 7);
    const double read_half = half(0, i), read_bfloat = bfloat(0, i);
    ASSERT_TRUE(std::isnan(expected_half) ? std::isnan(read_half) : read_half == expected_half) << i;
    ASSERT_TRUE(std::isnan(expected_bfloat) ? std::isnan(read_bfloat) : read_bfloat == expected_bfloat) << i;
    ASSERT_EQ(std::signbit(read_half), (i & 0x8000) != 0) << i;
  }
}

TEST(SafetensorsFile, ReadsDoublesAsTheyAre) {
  const std::vector<double> values = {0.1, -1e300, 0x1p-1074};
  const TemporaryFile written(file_of(R"({"d":{"dtype":"F64","shape":[3],"data_offsets":[0,24]}})", 0) + raw(values));
  const SafetensorsFile file(written.path());

  ops::Matrix<double> read(1, 3);
  file.read<double>(file.header().tensors[0], {0, 1}, {0, 3}, read);

  EXPECT_TRUE(std::equal(values.begin(), values.end(), read.span().begin()));
}

TEST(SafetensorsFile, RefusesSlicesOutsideTheTensor) {
  const TemporaryFile written(file_of(R"({"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}})", 12));
  const SafetensorsFile file(written.path());
  const TensorEntry& a = file.header().tensors[0];
  ops::Matrix<float> out(2, 3);
  const auto read = [&](Range rows, Range cols) { file.read<float>(a, rows, cols, out); };

  EXPECT_THROW(read({1, 2}, {0, 3}), std::out_of_range);
  EXPECT_THROW(read({0, 2}, {1, 3}), std::out_of_range);
  EXPECT_THROW(read({-1, 2}, {0, 3}), std::out_of_range);
  EXPECT_THROW(read({INT64_MAX, 2}, {0, 3}), std::out_of_range);
  EXPECT_THROW(read({0, 1}, {0, 3}), std::invalid_argument);
}

TEST(SafetensorsFile, RefusesWhatIsNoRegularFile) {
  const TemporaryFile empty("");

  EXPECT_THROW(SafetensorsFile("/nonexistent/model.safetensors"), CheckpointError);
  EXPECT_THROW(SafetensorsFile{std::filesystem::temp_directory_path()}, CheckpointError);
  EXPECT_THROW(SafetensorsFile(empty.path()), CheckpointError);
}

TEST(SaveSafetensors, MakesWhatIsReadInEveryType) {
  const double tiny = 0x1p-24;  // subnormal in fp16
  const std::vector<double> values{0, -0.0, 1.5, -2, tiny, -3 * tiny, std::numeric_limits<double>::infinity(), 1024};
  for (const TensorType type : {TensorType::f64, TensorType::f32, TensorType::f16, TensorType::bf16}) {
    const std::string file = safetensors_file(std::vector{
        tensor_of("a", type, {2, 4}, values), tensor_of("b", {3}, std::vector<std::int64_t>{1, -2, 1L << 40})});
    const auto bytes = std::as_bytes(std::span(file.data(), file.size()));
    const SafetensorsHeader header = parse_safetensors(bytes, file.size(), "f", TensorTypes::floats_and_ids);
    std::vector<double> read(8);
    std::vector<std::int64_t> ids(3);
    read_slice(bytes.subspan(header.data_begin), *header.find("a"), {0, 2}, {0, 4},
               ops::MatrixView<double>{read.data(), 2, 4});
    read_slice(bytes.subspan(header.data_begin), *header.find("b"), {0, 1}, {0, 3},
               ops::MatrixView<std::int64_t>{ids.data(), 1, 3});

    EXPECT_EQ(read, values) << to_string(type);
    EXPECT_TRUE(std::signbit(read[1])) << to_string(type);
    EXPECT_EQ(ids, (std::vector<std::int64_t>{1, -2, 1L << 40}));
    EXPECT_THROW(parse_safetensors(bytes, "f"), CheckpointError);  // weights are no ids
    EXPECT_THROW(read_slice(bytes.subspan(header.data_begin), *header.find("b"), {0, 1}, {0, 3},
                            ops::MatrixView<double>{read.data(), 1, 3}),
                 std::invalid_argument);
  }
}

TEST(SaveSafetensors, RoundsNothing) {
  EXPECT_THROW(tensor_of("a", TensorType::bf16, {1}, std::vector<double>{1 + 0x1p-9}), std::invalid_argument);
  EXPECT_THROW(tensor_of("a", TensorType::f16, {1}, std::vector<double>{70000}), std::invalid_argument);
  EXPECT_THROW(tensor_of("a", TensorType::f32, {2}, std::vector<double>{1}), std::invalid_argument);
  EXPECT_TRUE(holds(TensorType::f16, std::vector<double>{std::numeric_limits<double>::quiet_NaN()}));
}

}  // namespace
}  // namespace shardproof
