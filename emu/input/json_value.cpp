#include "emu/input/json_value.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>

namespace shardproof {
namespace {

using Kind = JsonValue::Kind;

constexpr std::size_t kMostProblems = 50;

/// Builds the tree from the parser's events; returning false from one ends the parse.
class Builder {
 public:
  Builder(std::string_view text, std::string_view name, int max_depth, JsonDocument& document)
      : text_(text), name_(name), max_depth_(max_depth), document_(document) {}

  bool null() { return add({}); }
  bool boolean(bool value) {
    JsonValue node;
    node.kind = Kind::boolean;
    node.boolean = value;
    return add(std::move(node));
  }
  bool number_integer(std::int64_t value) {
    JsonValue node;
    node.kind = Kind::integer;
    node.integer = value;
    node.number = static_cast<double>(value);
    return add(std::move(node));
  }
  bool number_unsigned(std::uint64_t value) {
    if (value <= static_cast<std::uint64_t>(INT64_MAX)) return number_integer(static_cast<std::int64_t>(value));
    return number_float(static_cast<double>(value), {});
  }
  bool number_float(double value, const std::string&) {
    JsonValue node;
    node.kind = Kind::number;
    node.number = value;
    return add(std::move(node));
  }
  bool string(std::string& value) {
    JsonValue node;
    node.kind = Kind::string;
    node.text = std::move(value);
    return add(std::move(node));
  }
  bool binary(nlohmann::json::binary_t&) { return false; }  // never produced from text

  bool start_object(std::size_t) { return open(Kind::object); }
  bool start_array(std::size_t) { return open(Kind::array); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool key(std::string& key) {
    Frame& frame = stack_.back();
    frame.key = std::move(key);
    if (!frame.keys.insert(frame.key).second && frame.repeated.insert(frame.key).second) {
      document_.problems.push_back(
          {path(), fmt::format("the key {} stands here twice; keep one", in_quotes(frame.key))});
      if (document_.problems.size() >= kMostProblems) return false;
    }
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) {
    constexpr int kNumberOverflow = 406;
    document_.problems.push_back(syntax_problem(text_, name_, position, error.id == kNumberOverflow));
    return false;
  }

  JsonValue take() { return std::move(root_); }

 private:
  struct Frame {
    JsonValue value;
    std::string key;
    std::unordered_set<std::string> keys;
    std::unordered_set<std::string> repeated;  ///< each reported once
  };

  /// Dotted path of the value that comes next.
  std::string path() const {
    std::string path;
    for (const Frame& frame : stack_) {
      if (frame.value.is(Kind::array)) {
        path += fmt::format("[{}]", frame.value.items.size());
      } else {
        if (!path.empty()) path += '.';
        path += frame.key.size() <= 60 ? frame.key : frame.key.substr(0, 60) + "...";
      }
    }
    return path.empty() ? std::string(name_) : path;
  }

  bool open(Kind kind) {
    if (static_cast<int>(stack_.size()) >= max_depth_) {
      document_.problems.push_back({path(), fmt::format("nested deeper than {} levels", max_depth_)});
      return false;
    }
    stack_.emplace_back();
    stack_.back().value.kind = kind;
    return true;
  }

  bool close() {
    JsonValue value = std::move(stack_.back().value);
    stack_.pop_back();
    return add(std::move(value));
  }

  bool add(JsonValue value) {
    if (stack_.empty()) {
      root_ = std::move(value);
    } else if (stack_.back().value.is(Kind::array)) {
      stack_.back().value.items.push_back(std::move(value));
    } else {
      stack_.back().value.members.push_back({stack_.back().key, std::move(value)});
    }
    return true;
  }

  std::string_view text_;
  std::string_view name_;
  int max_depth_;
  JsonDocument& document_;
  JsonValue root_;
  std::vector<Frame> stack_;
};

}  // namespace

namespace {

/// What stands there, up to what ends a word of JSON.
std::string_view word_at(std::string_view text, std::size_t at) {
  constexpr std::string_view kEnds = " \t\r\n,:[]{}\"";
  const std::size_t end = std::min(text.find_first_of(kEnds, at), text.size());
  if (end <= at) return text.substr(at, 1);
  const std::size_t before = text.find_last_of(kEnds, at);
  const std::size_t begin = before == std::string_view::npos ? 0 : before + 1;
  return text.substr(begin, end - begin);
}

}  // namespace

const JsonValue* JsonValue::find(std::string_view key) const {
  for (const JsonMember& member : members) {
    if (member.key == key) return &member.value;
  }
  return nullptr;
}

JsonDocument parse_json(std::string_view text, std::string_view name, int max_depth) {
  JsonDocument document;
  // The parser would take it for the end of the text.
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos) {
    document.problems.push_back({"", fmt::format("byte {} is NUL, which no JSON text holds", nul + 1)});
    return document;
  }
  Builder builder(text, name, max_depth, document);
  const bool complete = nlohmann::json::sax_parse(text.data(), text.data() + text.size(), &builder);
  if (complete && document.problems.empty()) document.value = builder.take();
  return document;
}

Problem syntax_problem(std::string_view text, std::string_view name, std::size_t read, bool overflow) {
  const std::size_t at = std::min(read == 0 ? 0 : read - 1, text.size());
  const std::string_view before = text.substr(0, at);
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const std::size_t line_start = before.rfind('\n') == std::string_view::npos ? 0 : before.rfind('\n') + 1;
  const std::string field = fmt::format("{}:{}:{}", name, line, at - line_start + 1);
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) return {field, "is empty; JSON is needed"};
  if (overflow)
    return {field, fmt::format("the number {} is beyond what a double holds", in_quotes(word_at(text, at)))};
  if (at >= text.size()) return {field, "is not JSON: the text ends in the middle; was it cut off?"};
  const auto byte = static_cast<unsigned char>(text[at]);
  if (byte >= 0x80) return {field, fmt::format("is not JSON: unexpected byte 0x{:02x}; strings must be UTF-8", byte)};
  return {field, fmt::format("is not JSON from here on: {} was not expected", in_quotes(word_at(text, at)))};
}

std::string in_quotes(std::string_view text) {
  constexpr std::size_t kMost = 60;
  std::string out = "\"";
  for (const char c : text.substr(0, kMost)) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
    } else {
      out += c;
    }
  }
  if (text.size() > kMost) {
    // Do not leave half a UTF-8 character behind.
    std::size_t cut = kMost;
    while (cut > 0 && (static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) {
      --cut;
      out.pop_back();
    }
    out += "...";
  }
  return out + "\"";
}

std::string describe(const JsonValue& value) {
  switch (value.kind) {
    case Kind::null:
      return "null";
    case Kind::boolean:
      return value.boolean ? "true" : "false";
    case Kind::integer:
      return fmt::format("{}", value.integer);
    case Kind::number:
      return fmt::format("{:#}", value.number);
    case Kind::string:
      return in_quotes(value.text);
    case Kind::array:
      return fmt::format("an array of {}", value.items.size());
    case Kind::object:
      return fmt::format("an object of {} keys", value.members.size());
  }
  return "?";
}

}  // namespace shardproof
