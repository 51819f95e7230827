// Reads the members of one JSON object by name, and remembers which were asked for: what is left is unknown.
//
// Names come as a list: the first is ours, the others aliases of it. A key given together with an alias is a problem,
// unless null counts as absent, as in other people's configs, and both say the same.
// A reader never throws on input; each problem goes to the list, and the value that cannot be used is empty.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "emu/input/json_value.h"
#include "emu/input/problem.h"

namespace shardproof {

class ObjectReader {
 public:
  using Names = std::initializer_list<std::string_view>;
  struct Found {
    std::string field;  ///< dotted path, with the key as it was written
    const JsonValue* value = nullptr;
  };
  enum class Null { refuse, absent };

  /// `object` may be of any kind: one that is not an object is a problem and reads as empty.
  ObjectReader(const JsonValue& object, std::string path, std::vector<Problem>& problems, Null null = Null::refuse);

  std::optional<Found> find(Names names);
  std::optional<std::int64_t> integer(Names names, std::int64_t least, std::int64_t most);
  std::optional<double> number(Names names, double least, double most);
  std::optional<bool> boolean(Names names);
  std::optional<std::string> string(Names names);

  /// The key stands there, and is null.
  bool says_null(std::string_view name);

  /// Reports that a member is missing; returns nothing of use.
  void missing(std::string_view name, std::string_view what);
  void problem(std::string field, std::string message);
  /// The key may stand there and means nothing here.
  void ignore(Names names);
  /// Reports every member that nobody asked for.
  void finish();

  std::string field(std::string_view key) const;

 private:
  const JsonValue& object_;
  std::string path_;
  std::vector<Problem>& problems_;
  Null null_;
  std::vector<std::string_view> asked_;
};

/// The value as an integer within [least, most], or a problem.
std::optional<std::int64_t> integer_of(const JsonValue& value, const std::string& field, std::int64_t least,
                                       std::int64_t most, std::vector<Problem>& problems);

}  // namespace shardproof
