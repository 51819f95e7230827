// Where a call was written: file, function and line.
//
// Not std::source_location: clang 14 with the GNU standard library has none, and a type of its own has one layout for
// every compiler, so that a library built with one can be used from another.
#pragma once

#include <cstdint>

namespace shardproof {

class SourceLocation {
 public:
  constexpr SourceLocation() = default;
  /// As a default argument: where the call stands that leaves it out.
  static constexpr SourceLocation current(const char* file = __builtin_FILE(),
                                          const char* function = __builtin_FUNCTION(),
                                          std::uint32_t line = __builtin_LINE()) {
    SourceLocation location;
    location.file_ = file;
    location.function_ = function;
    location.line_ = line;
    return location;
  }
  constexpr const char* file_name() const { return file_; }
  constexpr const char* function_name() const { return function_; }
  constexpr std::uint32_t line() const { return line_; }

 private:
  const char* file_ = "";
  const char* function_ = "";
  std::uint32_t line_ = 0;
};
static_assert(sizeof(SourceLocation) == 2 * sizeof(const char*) + sizeof(std::uint64_t));

}  // namespace shardproof
