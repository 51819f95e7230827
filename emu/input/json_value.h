// A JSON document as a plain tree, read strictly: what a loader walks without naming a JSON library.
//
// Refused while parsing: syntax errors (with line and column), duplicate keys, text that is not UTF-8, numbers that
// overflow a double, bytes of zero, nesting deeper than the limit. The parser keeps its own stack, so hostile nesting
// costs nothing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "emu/input/problem.h"

namespace shardproof {

struct JsonMember;

struct JsonValue {
  enum class Kind { null, boolean, integer, number, string, array, object };

  Kind kind = Kind::null;
  bool boolean = false;
  std::int64_t integer = 0;         ///< kind integer only
  double number = 0;                ///< kinds number and integer
  std::string text;                 ///< kind string
  std::vector<JsonValue> items;     ///< kind array
  std::vector<JsonMember> members;  ///< kind object, in file order, keys unique

  bool is(Kind other) const { return kind == other; }
  /// The member's value, or null.
  const JsonValue* find(std::string_view key) const;
};

struct JsonMember {
  std::string key;
  JsonValue value;
};

struct JsonDocument {
  std::optional<JsonValue> value;  ///< empty when there are problems
  std::vector<Problem> problems;
};

/// `name` stands for the text in messages.
JsonDocument parse_json(std::string_view text, std::string_view name, int max_depth);

struct FileText {
  std::optional<std::string> text;
  std::vector<Problem> problems;
};

/// Where the text stops being JSON: the parser has taken `read` bytes of it. `overflow`: the last are a number that no
/// double holds.
Problem syntax_problem(std::string_view text, std::string_view name, std::size_t read, bool overflow);

/// The whole file, or why not: missing, a directory or device, unreadable, changed while it was read, or larger than
/// `max_bytes` (then it is not read). A pipe is read to its end, if anybody writes to it.
FileText read_file(const std::filesystem::path& path, std::uintmax_t max_bytes);

/// The value as it would stand in a message: quoted, on one line, shortened.
std::string describe(const JsonValue& value);
/// Text from outside made fit for a message: quoted, control characters escaped, shortened.
std::string in_quotes(std::string_view text);

}  // namespace shardproof
