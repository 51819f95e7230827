#include <fmt/format.h>

#include <cstdint>
#include <utility>

#include "emu/input/json_value.h"
#include "emu/judge/dump_names.h"
#include "emu/model/taps.h"

namespace shardproof {
namespace {

constexpr std::string_view kLayer = "{layer}";
constexpr int kMaxDepth = 4;
constexpr std::uintmax_t kMaxBytes = 16U << 20;

std::string with_layer(std::string_view pattern, std::string_view layer) {
  const std::size_t at = pattern.find(kLayer);
  if (at == std::string_view::npos) return std::string(pattern);
  return fmt::format("{}{}{}", pattern.substr(0, at), layer, pattern.substr(at + kLayer.size()));
}

/// The digits that stand for the layer when the text is of the pattern; "" where the pattern has none.
std::optional<std::string_view> layer_of(std::string_view pattern, std::string_view text) {
  const std::size_t at = pattern.find(kLayer);
  if (at == std::string_view::npos) return text == pattern ? std::optional(std::string_view()) : std::nullopt;
  const std::string_view before = pattern.substr(0, at), after = pattern.substr(at + kLayer.size());
  if (text.size() <= before.size() + after.size() || !text.starts_with(before) || !text.ends_with(after)) {
    return std::nullopt;
  }
  const std::string_view layer = text.substr(before.size(), text.size() - before.size() - after.size());
  if (layer.find_first_not_of("0123456789") != std::string_view::npos) return std::nullopt;
  return layer;
}

/// Why it is no name of a tap; empty when it is one.
std::string name_problem(const DumpName& name) {
  const bool layered = name.theirs.find(kLayer) != std::string::npos;
  if (layered != (name.ours.find(kLayer) != std::string::npos)) return "{layer} has to stand in both names, or in none";
  const std::string tap = with_layer(name.ours, "0");
  if (tap == "tokens" || parse_tap_id(tap)) return {};
  return fmt::format("\"{}\" is no tap; one like \"layer.{{layer}}.attention.output\", \"tokens\" or null is needed",
                     name.ours);
}

}  // namespace

std::string DumpNames::ours(std::string_view theirs) const {
  for (const DumpName& name : names_) {
    const std::optional<std::string_view> layer = layer_of(name.theirs, theirs);
    if (layer) return with_layer(name.ours, *layer);
  }
  return std::string(theirs);
}

LoadedDumpNames parse_dump_names(std::string_view text, std::string_view file) {
  const JsonDocument document = parse_json(text, file, kMaxDepth);
  if (!document.value) return {std::nullopt, document.problems};
  LoadedDumpNames loaded;
  if (!document.value->is(JsonValue::Kind::object)) {
    return {std::nullopt, {{"", fmt::format("{}; an object of names is needed", describe(*document.value))}}};
  }
  std::vector<DumpName> names;
  for (const JsonMember& member : document.value->members) {
    if (member.value.is(JsonValue::Kind::null)) {
      names.push_back({member.key, {}});
      continue;
    }
    if (!member.value.is(JsonValue::Kind::string)) {
      loaded.problems.push_back(
          {member.key, fmt::format("{}; the name of a tap or null is needed", describe(member.value))});
      continue;
    }
    const DumpName& name = names.emplace_back(DumpName{member.key, member.value.text});
    if (std::string problem = name_problem(name); !problem.empty()) loaded.problems.push_back({member.key, problem});
  }
  if (loaded.problems.empty()) loaded.names = DumpNames(std::move(names));
  return loaded;
}

LoadedDumpNames load_dump_names(const std::string& path) {
  FileText file = read_file(path, kMaxBytes);
  if (!file.text) return {std::nullopt, std::move(file.problems)};
  return parse_dump_names(*file.text, path);
}

}  // namespace shardproof
