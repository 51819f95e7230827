#include "emu/model/families/internal/windows.h"

#include <fmt/format.h>

#include <optional>

#include "emu/model/families/internal/keys.h"
#include "emu/model/fields.h"

namespace shardproof::family_config {
namespace {

using Kind = JsonValue::Kind;

constexpr std::int64_t kMostWindow = std::int64_t{1} << 40;

/// "layer_types": a name for each layer.
std::optional<std::vector<bool>> read_layer_types(ObjectReader& reader, std::int64_t layers, bool windows_known) {
  const auto found = reader.find({"layer_types"});
  if (!found) return std::nullopt;
  if (!found->value->is(Kind::array)) {
    reader.problem(found->field, fmt::format("{} where an array of names is needed", describe(*found->value)));
    return std::nullopt;
  }
  std::vector<bool> windowed;
  for (std::size_t i = 0; i < found->value->items.size(); ++i) {
    const JsonValue& type = found->value->items[i];
    const bool full = type.is(Kind::string) && type.text == "full_attention";
    const bool sliding = type.is(Kind::string) && type.text == "sliding_attention" && windows_known;
    if (!full && !sliding) {
      reader.problem(fmt::format("{}[{}]", found->field, i),
                     fmt::format("{}: only \"full_attention\"{} is computed", describe(type),
                                 windows_known ? " or \"sliding_attention\"" : ""));
      return std::nullopt;
    }
    windowed.push_back(sliding);
  }
  if (std::ssize(windowed) != layers && !windowed.empty()) {
    reader.problem(found->field, fmt::format("{} names for {} layers", windowed.size(), layers));
    return std::nullopt;
  }
  return windowed;
}

}  // namespace

std::vector<bool> read_windows(ObjectReader& reader, const Family& family, std::int64_t layers,
                               AttentionSpec& attention) {
  const auto all = [&](bool value) { return std::vector<bool>(static_cast<std::size_t>(layers), value); };
  const bool by_layer = family.window == Window::later_layers || family.window == Window::early_layers ||
                        family.window == Window::alternating;
  const auto types = read_layer_types(reader, layers, by_layer);
  const bool has_switch = family.window == Window::later_layers || family.window == Window::early_layers ||
                          family.window == Window::with_switch;
  // A window that a switch leaves off may stand in any config.
  const auto switched = reader.boolean({"use_sliding_window"});
  const bool on = switched.value_or(!has_switch);
  const std::int64_t first = reader.integer({"max_window_layers"}, 0, kMaxLayers).value_or(28);
  // Null is no window; a family's default holds only where the key is absent.
  const bool given = reader.find({"sliding_window"}).has_value();
  const auto window = reader.integer({"sliding_window"}, 0, kMostWindow);
  if (has_switch && on) attention.sliding_window = 4096;
  if (given) attention.sliding_window = window.value_or(0);
  if (reader.says_null("sliding_window")) attention.sliding_window = 0;
  if (family.window == Window::none) {
    if (on && attention.sliding_window > 0) {
      reader.problem(reader.field("sliding_window"),
                     fmt::format("{}: this family has no windows", attention.sliding_window));
    }
    attention.sliding_window = 0;
  }
  if (!on) attention.sliding_window = 0;
  if (attention.sliding_window == 0) {
    for (std::size_t i = 0; types && i < types->size(); ++i) {
      if (!(*types)[i]) continue;
      reader.problem(reader.field(fmt::format("layer_types[{}]", i)), "there is no sliding_window for it");
      break;
    }
    return all(false);
  }
  if (types && by_layer && !types->empty()) return *types;
  std::vector<bool> windowed = all(true);
  for (std::int64_t i = 0; i < layers; ++i) {
    bool here = true;
    if (family.window == Window::later_layers) here = i >= first;
    if (family.window == Window::early_layers) here = i % 2 == 0 && i < first;
    if (family.window == Window::alternating) here = i % 2 == 0;
    windowed[static_cast<std::size_t>(i)] = here;
  }
  return windowed;
}

}  // namespace shardproof::family_config
