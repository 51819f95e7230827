// Reads hardware presets: emu/timeline/presets.json, which is in the library, and files in its format.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "emu/input/json_value.h"
#include "emu/input/object_reader.h"
#include "emu/timeline/hardware_model.h"

namespace shardproof {

extern const std::string_view kHardwarePresetsJson;

namespace {

using Kind = JsonValue::Kind;

constexpr int kMaxHardwareDepth = 12;
constexpr double kMicrosecond = 1e-6;
constexpr std::string_view kHardwareSchema = "shardproof.hardware/1";

class BookReader {
 public:
  BookReader(HardwareBook base, std::vector<Problem>& problems) : book_(std::move(base)), problems_(problems) {}

  HardwareBook read(const JsonValue& document) {
    ObjectReader reader(document, "", problems_);
    const auto schema = reader.string({"schema"});
    if (!schema || *schema != kHardwareSchema) {
      reader.problem("schema", fmt::format("\"{}\" is needed", kHardwareSchema));
    }
    if (const auto presets = members(reader, "presets")) {
      for (const JsonMember& member : presets->members) {
        read_preset(member.key, member.value, "presets." + member.key);
      }
    }
    reader.finish();
    return std::move(book_);
  }

 private:
  const JsonValue* members(ObjectReader& reader, std::string_view key) {
    const auto found = reader.find({key});
    if (!found || found->value->is(Kind::object)) return found ? found->value : nullptr;
    reader.problem(found->field, fmt::format("{} where an object is needed", describe(*found->value)));
    return nullptr;
  }

  void read_preset(const std::string& name, const JsonValue& value, const std::string& path) {
    ObjectReader reader(value, path, problems_);
    HardwarePreset preset;
    if (const auto like = reader.string({"like"})) {
      const HardwarePreset* known = book_.find(*like);
      if (known == nullptr) {
        reader.problem(path + ".like",
                       fmt::format("{} stands nowhere before; one of {} is needed", in_quotes(*like), book_.names()));
      } else {
        preset = *known;
        // What was measured on another card, and said of it, is not this one's.
        preset.sources.clear();
        preset.engines.clear();
        preset.model.prefill = preset.model.decode = {};
      }
    }
    preset.name = name;
    HardwareModel& model = preset.model;
    if (const JsonValue* rates = members(reader, "tflops")) read_rates(*rates, path + ".tflops", model);
    seconds(reader, "launch_us", model.launch_seconds);
    seconds(reader, "overhead_us", model.overhead_seconds);
    seconds(reader, "request_overhead_us", model.request_overhead_seconds);
    if (const auto share = reader.number({"grouped_share"}, 1e-3, 1)) model.grouped_share = *share;
    scaled(reader, "memory_gb", 1, preset.memory_gb);
    scaled(reader, "memory_bandwidth_tbps", 1e12, model.memory_bytes_per_second);
    curve(reader, "compute_efficiency", model.compute);
    curve(reader, "memory_efficiency", model.memory);
    link(reader, path, "inside", model.inside);
    link(reader, path, "across", model.across);
    residuals(reader, path, model.prefill, model.decode);
    if (const JsonValue* engines = members(reader, "engines")) {
      for (const JsonMember& member : engines->members) {
        preset.engines.push_back(read_engine(member.key, member.value, path + ".engines." + member.key, model));
      }
    }
    read_sources(reader, preset.sources);
    reader.finish();
    require(path, preset);
    const auto same = std::ranges::find(book_.presets, name, &HardwarePreset::name);
    if (same != book_.presets.end()) {
      *same = std::move(preset);
    } else {
      book_.presets.push_back(std::move(preset));
    }
  }

  void read_rates(const JsonValue& value, const std::string& path, HardwareModel& model) {
    ObjectReader reader(value, path, problems_);
    for (int i = 0; i < kRates; ++i) {
      scaled(reader, to_string(static_cast<Rate>(i)), 1e12, model.flops_per_second[static_cast<std::size_t>(i)]);
    }
    reader.finish();
  }

  EngineModel read_engine(const std::string& name, const JsonValue& value, const std::string& path,
                          const HardwareModel& card) {
    ObjectReader reader(value, path, problems_);
    EngineModel engine{.name = name,
                       .launch_seconds = card.launch_seconds,
                       .overhead_seconds = card.overhead_seconds,
                       .request_overhead_seconds = card.request_overhead_seconds,
                       .prefill = {},
                       .decode = {}};
    seconds(reader, "launch_us", engine.launch_seconds);
    seconds(reader, "overhead_us", engine.overhead_seconds);
    seconds(reader, "request_overhead_us", engine.request_overhead_seconds);
    scaled(reader, "compute_scale", 1, engine.compute_scale, 100);
    scaled(reader, "memory_scale", 1, engine.memory_scale, 100);
    residuals(reader, path, engine.prefill, engine.decode);
    reader.finish();
    return engine;
  }

  /// A time may be zero; so may be what is left out.
  void seconds(ObjectReader& reader, std::string_view key, double& to) {
    if (const auto value = reader.number({key}, 0, 1e9)) to = *value * kMicrosecond;
  }

  /// A rate of zero would stop the clock.
  void scaled(ObjectReader& reader, std::string_view key, double factor, double& to, double most = 1e12) {
    if (const auto value = reader.number({key}, 1e-9, most)) to = *value * factor;
  }

  void curve(ObjectReader& reader, std::string_view key, Efficiency& to) {
    const auto found = reader.find({key});
    if (!found) return;
    std::vector<EfficiencyPoint> points;
    for (const JsonValue& item : found->value->items) {
      const auto number = [&](std::size_t i) {
        const JsonValue& value = item.items[i];
        return value.is(Kind::integer) || value.is(Kind::number) ? value.number : 0;
      };
      if (!item.is(Kind::array) || item.items.size() != 2) {
        reader.problem(found->field, fmt::format("{} where [size, share] is needed", describe(item)));
        return;
      }
      points.push_back({number(0), number(1)});
    }
    const std::string problem = Efficiency::problem_of(points);
    if (!problem.empty()) {
      reader.problem(found->field, problem);
    } else {
      to = Efficiency(std::move(points));
    }
  }

  void link(ObjectReader& outer, const std::string& path, const char* key, Link& to) {
    const JsonValue* value = members(outer, key);
    if (value == nullptr) return;
    ObjectReader reader(*value, path + "." + key, problems_);
    scaled(reader, "gbps", 1e9, to.bytes_per_second);
    curve(reader, "efficiency", to.efficiency);
    seconds(reader, "base_us", to.base_seconds);
    seconds(reader, "step_us", to.step_seconds);
    seconds(reader, "direct_base_us", to.direct_base_seconds);
    curve(reader, "direct_efficiency", to.direct_efficiency);
    reader.finish();
  }

  void residuals(ObjectReader& outer, const std::string& path, Residuals& prefill, Residuals& decode) {
    const JsonValue* value = members(outer, "residuals");
    if (value == nullptr) return;
    ObjectReader reader(*value, path + ".residuals", problems_);
    for (const auto& [key, to] : {std::pair{"prefill", &prefill}, std::pair{"decode", &decode}}) {
      const JsonValue* one = members(reader, key);
      if (one == nullptr) continue;
      ObjectReader fields(*one, path + ".residuals." + key, problems_);
      to->low = fields.number({"low"}, -0.99, 0).value_or(0);
      to->high = fields.number({"high"}, 0, 100).value_or(0);
      to->cases = static_cast<int>(fields.integer({"cases"}, 0, 1'000'000).value_or(0));
      fields.finish();
    }
    reader.finish();
  }

  static void read_sources(ObjectReader& reader, std::vector<std::string>& sources) {
    const auto found = reader.find({"sources"});
    if (!found) return;
    for (const JsonValue& item : found->value->items) {
      if (item.is(Kind::string)) sources.push_back(item.text);
    }
    if (sources.empty()) {
      reader.problem(found->field, fmt::format("{} where an array of strings is needed", describe(*found->value)));
    }
  }

  void require(const std::string& path, const HardwarePreset& preset) {
    const auto needed = [&](const char* key, double value) {
      if (value <= 0) problems_.push_back({path + "." + key, "is missing; a number above 0 is needed"});
    };
    needed("tflops.bf16", preset.model.peak(Rate::bf16));
    needed("memory_bandwidth_tbps", preset.model.memory_bytes_per_second);
    needed("memory_gb", preset.memory_gb);
    needed("inside.gbps", preset.model.inside.bytes_per_second);
    needed("across.gbps", preset.model.across.bytes_per_second);
    if (preset.sources.empty()) {
      problems_.push_back({path + ".sources", "is missing; where the figures come from is needed"});
    }
  }

  HardwareBook book_;
  std::vector<Problem>& problems_;
};

}  // namespace

LoadedHardware parse_hardware(std::string_view text, std::string_view name, const HardwareBook& base) {
  LoadedHardware loaded;
  JsonDocument document = parse_json(text, name, kMaxHardwareDepth);
  loaded.problems = std::move(document.problems);
  if (!document.value) return loaded;
  HardwareBook book = BookReader(base, loaded.problems).read(*document.value);
  if (loaded.problems.empty()) loaded.book = std::move(book);
  return loaded;
}

const HardwareBook& built_in_hardware() {
  static const HardwareBook book = [] {
    LoadedHardware loaded = parse_hardware(kHardwarePresetsJson, "presets.json");
    if (!loaded.book) throw std::logic_error("presets.json: " + loaded.problems.front().message);
    return std::move(*loaded.book);
  }();
  return book;
}

}  // namespace shardproof
