// Where a call was written: std::source_location, or its equal where a compiler lacks it.
//
// clang 14 with the GNU standard library has no std::source_location, but has the builtins it is made of.
#pragma once

#if __has_builtin(__builtin_source_location)
#include <source_location>
#else
#include <cstdint>
#endif

namespace shardproof {

#if __has_builtin(__builtin_source_location)
using SourceLocation = std::source_location;
#else
/// The part of std::source_location that the project uses.
class SourceLocation {
 public:
  constexpr SourceLocation() = default;
  static constexpr SourceLocation current(const char* file = __builtin_FILE(),
                                          const char* function = __builtin_FUNCTION(),
                                          std::uint_least32_t line = __builtin_LINE(),
                                          std::uint_least32_t column = __builtin_COLUMN()) {
    SourceLocation location;
    location.file_ = file;
    location.function_ = function;
    location.line_ = line;
    location.column_ = column;
    return location;
  }
  constexpr const char* file_name() const { return file_; }
  constexpr const char* function_name() const { return function_; }
  constexpr std::uint_least32_t line() const { return line_; }
  constexpr std::uint_least32_t column() const { return column_; }

 private:
  const char* file_ = "";
  const char* function_ = "";
  std::uint_least32_t line_ = 0;
  std::uint_least32_t column_ = 0;
};
#endif

}  // namespace shardproof
