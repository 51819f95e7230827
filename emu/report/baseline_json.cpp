#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "emu/input/json_value.h"
#include "emu/input/object_reader.h"
#include "emu/report/baseline.h"

namespace shardproof {
namespace {

constexpr std::string_view kSchema = "shardproof.baseline/1";
constexpr int kMaxDepth = 4;
constexpr std::int64_t kMaxDim = std::int64_t{1} << 40;

std::string hex(std::uint64_t value) {
  return fmt::format("{:016x}", value);
}

std::optional<std::uint64_t> parse_hex(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (text.size() != 16 || error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// A member that holds 16 hexadecimal digits.
std::optional<std::uint64_t> read_hash(ObjectReader& reader, std::string_view key, std::vector<Problem>& problems) {
  const std::optional<std::string> text = reader.string({key});
  if (!text) return std::nullopt;
  const std::optional<std::uint64_t> value = parse_hex(*text);
  if (!value)
    problems.push_back({reader.field(key), fmt::format("{}; 16 hexadecimal digits are needed", in_quotes(*text))});
  return value;
}

template <class T>
T require(std::optional<T> value, ObjectReader& reader, std::string_view key, const std::vector<Problem>& problems,
          std::size_t problems_before) {
  if (!value && problems.size() == problems_before) reader.missing(key, "it is needed");
  return value.value_or(T{});
}

BaselineTap read_tap(const JsonValue& value, const std::string& path, ops::Format format,
                     std::vector<Problem>& problems) {
  ObjectReader reader(value, path, problems);
  BaselineTap tap;
  std::size_t before = problems.size();
  if (!value.is(JsonValue::Kind::object)) return tap;
  tap.name = require(reader.string({"name"}), reader, "name", problems, before);
  before = problems.size();
  tap.rows = require(reader.integer({"rows"}, 0, kMaxDim), reader, "rows", problems, before);
  before = problems.size();
  tap.cols = require(reader.integer({"cols"}, 0, kMaxDim), reader, "cols", problems, before);
  before = problems.size();
  tap.norm = require(reader.number({"norm"}, 0, 1.7976931348623157e308), reader, "norm", problems, before);
  before = problems.size();
  tap.hash = read_hash(reader, "hash", problems);
  if (tap.hash.has_value() != (format == ops::Format::exact) && problems.size() == before) {
    problems.push_back({reader.field("hash"), tap.hash ? "only the format exact has one" : "is missing"});
  }
  reader.finish();
  return tap;
}

Baseline read_baseline(const JsonValue& document, std::vector<Problem>& problems) {
  ObjectReader reader(document, "", problems);
  Baseline baseline;
  if (!document.is(JsonValue::Kind::object)) return baseline;
  std::size_t before = problems.size();
  const std::string schema = require(reader.string({"schema"}), reader, "schema", problems, before);
  if (schema != kSchema && problems.size() == before) {
    problems.push_back({"schema", fmt::format("{}; {} is needed", in_quotes(schema), in_quotes(kSchema))});
  }
  before = problems.size();
  baseline.plan = require(reader.string({"plan"}), reader, "plan", problems, before);
  before = problems.size();
  baseline.weights = require(reader.string({"weights"}), reader, "weights", problems, before);
  before = problems.size();
  const std::string format = require(reader.string({"format"}), reader, "format", problems, before);
  if (const auto parsed = ops::parse_format(format)) {
    baseline.format = *parsed;
  } else if (problems.size() == before) {
    problems.push_back(
        {"format", fmt::format("{}; one of fp64, fp32, bf16, fp16, exact is needed", in_quotes(format))});
  }
  before = problems.size();
  baseline.inputs = require(read_hash(reader, "inputs", problems), reader, "inputs", problems, before);
  const auto taps = reader.find({"taps"});
  if (!taps) {
    reader.missing("taps", "it is needed");
  } else if (!taps->value->is(JsonValue::Kind::array)) {
    problems.push_back({taps->field, fmt::format("{}; an array is needed", describe(*taps->value))});
  } else {
    for (std::size_t i = 0; i < taps->value->items.size() && problems.size() < 20; ++i) {
      baseline.taps.push_back(read_tap(taps->value->items[i], fmt::format("taps[{}]", i), baseline.format, problems));
    }
  }
  const auto digest = read_hash(reader, "digest", problems);
  if (problems.empty() && digest && *digest != digest_of(baseline)) {
    problems.push_back(
        {"digest", fmt::format("{}; what stands here has {}: it was edited since it was recorded; record "
                               "it anew",
                               hex(*digest), hex(digest_of(baseline)))});
  }
  reader.finish();
  return baseline;
}

}  // namespace

std::string to_json(const Baseline& baseline) {
  using Json = nlohmann::ordered_json;
  const Json head = {{"schema", kSchema},
                     {"plan", baseline.plan},
                     {"weights", baseline.weights},
                     {"format", ops::to_string(baseline.format)},
                     {"inputs", hex(baseline.inputs)}};
  // A tap a line, so that a change of a baseline reads well as a difference.
  std::string text = head.dump(2, ' ', false, Json::error_handler_t::replace);
  text.resize(text.size() - 2);  // the newline and the closing brace
  text += ",\n  \"taps\": [";
  for (std::size_t i = 0; i < baseline.taps.size(); ++i) {
    const BaselineTap& tap = baseline.taps[i];
    Json line = {{"name", tap.name}, {"rows", tap.rows}, {"cols", tap.cols}};
    // JSON has no infinity; the loader refuses the string, since nothing can be compared with such a norm.
    line["norm"] = std::isfinite(tap.norm) ? Json(tap.norm) : Json(fmt::format("{}", tap.norm));
    if (tap.hash) line["hash"] = hex(*tap.hash);
    text += (i == 0 ? "\n    " : ",\n    ") + line.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  return text + fmt::format("\n  ],\n  \"digest\": \"{}\"\n}}\n", hex(digest_of(baseline)));
}

LoadedBaseline parse_baseline(std::string_view text, std::string_view name) {
  LoadedBaseline loaded;
  const JsonDocument document = parse_json(text, name, kMaxDepth);
  if (!document.value) {
    loaded.problems = document.problems;
    return loaded;
  }
  Baseline baseline = read_baseline(*document.value, loaded.problems);
  if (loaded.problems.empty()) loaded.baseline = std::move(baseline);
  return loaded;
}

LoadedBaseline load_baseline(const std::filesystem::path& path) {
  FileText file = read_file(path, kMaxBaselineBytes);
  if (!file.text) return {.baseline = {}, .problems = std::move(file.problems)};
  return parse_baseline(*file.text, path.string());
}

}  // namespace shardproof
