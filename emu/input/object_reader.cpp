#include "emu/input/object_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace shardproof {
namespace {

using Kind = JsonValue::Kind;

/// Levenshtein distance, for "did you mean".
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substitute = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({substitute, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

namespace {

bool same_scalar(const JsonValue& a, const JsonValue& b) {
  if (a.kind != b.kind) return false;
  return (a.is(Kind::integer) && a.integer == b.integer) || (a.is(Kind::number) && a.number == b.number) ||
         (a.is(Kind::boolean) && a.boolean == b.boolean) || (a.is(Kind::string) && a.text == b.text);
}

}  // namespace

ObjectReader::ObjectReader(const JsonValue& object, std::string path, std::vector<Problem>& problems, Null null)
    : object_(object), path_(std::move(path)), problems_(problems), null_(null) {
  if (!object_.is(Kind::object)) {
    problem(path_.empty() ? "plan" : path_, fmt::format("{} where an object is needed", describe(object_)));
  }
}

std::string ObjectReader::field(std::string_view key) const {
  std::string name(key.substr(0, 60));
  for (char& c : name) {
    if (static_cast<unsigned char>(c) < 0x20) c = '?';
  }
  return path_.empty() ? name : path_ + "." + name;
}

std::optional<ObjectReader::Found> ObjectReader::find(Names names) {
  asked_.insert(asked_.end(), names);
  std::optional<Found> found;
  std::string_view first;
  for (const std::string_view name : names) {
    const JsonValue* value = object_.find(name);
    if (value == nullptr || (null_ == Null::absent && value->is(Kind::null))) continue;
    if (found) {
      // Published configs name some things twice.
      if (null_ == Null::absent && same_scalar(*found->value, *value)) continue;
      problem(field(name), fmt::format("given together with {}, which means the same; keep one", in_quotes(first)));
      continue;
    }
    first = name;
    found = Found{field(name), value};
  }
  return found;
}

std::optional<std::int64_t> integer_of(const JsonValue& value, const std::string& field, std::int64_t least,
                                       std::int64_t most, std::vector<Problem>& problems) {
  const bool numeric = value.is(Kind::integer) || value.is(Kind::number);
  if (value.is(Kind::integer) && value.integer >= least && value.integer <= most) return value.integer;
  const char* why = !numeric                                                    ? "is not a number"
                    : value.is(Kind::integer) || std::fabs(value.number) > 9e18 ? "is out of range"
                                                                                : "is not an integer";
  problems.push_back(
      {field, fmt::format("{} {}; an integer from {} to {} is needed", describe(value), why, least, most)});
  return std::nullopt;
}

std::optional<std::int64_t> ObjectReader::integer(Names names, std::int64_t least, std::int64_t most) {
  const auto found = find(names);
  if (!found) return std::nullopt;
  return integer_of(*found->value, found->field, least, most, problems_);
}

std::optional<double> ObjectReader::number(Names names, double least, double most) {
  const auto found = find(names);
  if (!found) return std::nullopt;
  const JsonValue& value = *found->value;
  const bool numeric = value.is(Kind::integer) || value.is(Kind::number);
  if (numeric && std::isfinite(value.number) && value.number >= least && value.number <= most) return value.number;
  problem(found->field, fmt::format("{} {}; a number from {} to {} is needed", describe(value),
                                    numeric ? "is out of range" : "is not a number", least, most));
  return std::nullopt;
}

std::optional<bool> ObjectReader::boolean(Names names) {
  const auto found = find(names);
  if (!found) return std::nullopt;
  if (found->value->is(Kind::boolean)) return found->value->boolean;
  problem(found->field, fmt::format("{} where true or false is needed", describe(*found->value)));
  return std::nullopt;
}

std::optional<std::string> ObjectReader::string(Names names) {
  const auto found = find(names);
  if (!found) return std::nullopt;
  if (found->value->is(Kind::string)) return found->value->text;
  problem(found->field, fmt::format("{} where a string is needed", describe(*found->value)));
  return std::nullopt;
}

bool ObjectReader::says_null(std::string_view name) {
  asked_.push_back(name);
  const JsonValue* const value = object_.find(name);
  return value != nullptr && value->is(JsonValue::Kind::null);
}

void ObjectReader::missing(std::string_view name, std::string_view what) {
  problem(field(name), fmt::format("is missing; {}", what));
}

void ObjectReader::problem(std::string field, std::string message) {
  problems_.push_back({std::move(field), std::move(message)});
}

void ObjectReader::ignore(Names names) {
  asked_.insert(asked_.end(), names);
}

void ObjectReader::finish() {
  constexpr int kMostReported = 20;
  int reported = 0;
  for (const JsonMember& member : object_.members) {
    if (std::find(asked_.begin(), asked_.end(), member.key) != asked_.end()) continue;
    if (++reported > kMostReported) {
      problem(path_.empty() ? "plan" : path_, "has more unknown keys than are listed here");
      return;
    }
    std::string hint;
    if (member.key.size() <= 60) {
      std::size_t nearest = std::max<std::size_t>(2, member.key.size() / 3);
      for (const std::string_view name : asked_) {
        const std::size_t distance = edit_distance(member.key, name);
        if (distance < nearest) {
          nearest = distance;
          hint = fmt::format("; did you mean {}?", in_quotes(name));
        }
      }
    }
    problem(field(member.key), "unknown key" + hint);
  }
}

}  // namespace shardproof
