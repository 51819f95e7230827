#include "emu/model/families/internal/quantisation.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "emu/model/fields.h"

namespace shardproof::family_config {
namespace {

using Kind = JsonValue::Kind;

/// Values of MXFP4 that share a scale.
constexpr std::int64_t kMxfp4Group = 32;
/// Columns that share a scale where GPTQ and AWQ say nothing.
constexpr std::int64_t kCommonGroup = 128;

/// The object under quantization_config, and what is wrong with it.
class Reader {
 public:
  Reader(ObjectReader& reader, const JsonValue& value, std::string field)
      : reader_(reader), value_(value), field_(std::move(field)) {}

  const JsonValue& value() const { return value_; }
  const JsonValue* find(const char* key) const {
    const JsonValue* const found = value_.find(key);
    return found == nullptr || found->is(Kind::null) ? nullptr : found;
  }
  Reader inside(const JsonValue& value, const std::string& key) const { return {reader_, value, field_ + "." + key}; }
  void problem(const std::string& key, const std::string& message) const {
    reader_.problem(field_ + "." + key, message);
  }
  std::int64_t integer(const char* key, std::int64_t otherwise) const {
    const JsonValue* const found = find(key);
    if (found == nullptr) return otherwise;
    if (found->is(Kind::integer) && found->integer >= 1 && found->integer <= kMaxWidth) return found->integer;
    problem(key, fmt::format("{}: a whole number from 1 to {} is needed", describe(*found), kMaxWidth));
    return otherwise;
  }
  /// In lower case.
  std::string word(const char* key, std::string otherwise) const {
    const JsonValue* const found = find(key);
    if (found == nullptr) return otherwise;
    if (!found->is(Kind::string)) problem(key, fmt::format("{}: a word is needed", describe(*found)));
    std::string text = found->is(Kind::string) ? found->text : std::move(otherwise);
    std::ranges::transform(text, text.begin(),
                           [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    return text;
  }

 private:
  ObjectReader& reader_;
  const JsonValue& value_;
  std::string field_;
};

/// Rows and columns of a block that has one scale, two equal numbers; 0 where nothing says them.
std::int64_t read_square(const Reader& config, const char* key) {
  const JsonValue* const block = config.find(key);
  if (block == nullptr) return 0;
  const bool square = block->is(Kind::array) && block->items.size() == 2 && block->items[0].is(Kind::integer) &&
                      block->items[1].is(Kind::integer) && block->items[0].integer == block->items[1].integer;
  if (square && block->items[0].integer >= 1 && block->items[0].integer <= kMaxWidth) return block->items[0].integer;
  config.problem(key, fmt::format("{}: two equal numbers of rows and columns are needed", describe(*block)));
  return 0;
}

/// Integers of 4 or 8 bits in groups of columns.
void read_integers(const Reader& config, const char* bits_key, std::int64_t default_group, ModelConfig& model) {
  const std::int64_t bits = config.integer(bits_key, 4);
  if (bits != 4 && bits != 8) {
    return config.problem(bits_key, fmt::format("{}: weights of 4 or of 8 bits are counted", bits));
  }
  model.quantisation.format = bits == 4 ? QuantisedFormat::int4 : QuantisedFormat::int8;
  const JsonValue* const group = config.find("group_size");
  const bool whole_row = group != nullptr && group->is(Kind::integer) && group->integer == -1;
  if (!whole_row) model.weight_block = config.integer("group_size", bits == 4 ? default_group : 0);
}

/// compressed-tensors: the weights of the first group.
void read_groups(const Reader& config, ModelConfig& model) {
  const JsonValue* const groups = config.find("config_groups");
  if (groups == nullptr) return;
  if (!groups->is(Kind::object) || groups->members.empty()) {
    return config.problem("config_groups", fmt::format("{}: an object of groups is needed", describe(*groups)));
  }
  const auto& [name, group] = groups->members.front();
  const JsonValue* const weights = group.find("weights");
  if (weights == nullptr || !weights->is(Kind::object)) {
    return config.problem("config_groups." + name, "weights, an object, is needed");
  }
  const Reader inside = config.inside(*weights, "config_groups." + name + ".weights");
  const std::string type = inside.word("type", "int");
  if (type != "int" && type != "float") {
    return inside.problem("type", fmt::format("{}: int or float is understood", in_quotes(type)));
  }
  if (type == "int") {
    const JsonValue* const symmetric = inside.find("symmetric");
    model.quantisation.zero_points = symmetric != nullptr && symmetric->is(Kind::boolean) && !symmetric->boolean;
    return read_integers(inside, "num_bits", 0, model);
  }
  if (inside.integer("num_bits", 8) != 8) return inside.problem("num_bits", "of floats, 8 bits are counted");
  model.quantisation.format = QuantisedFormat::fp8;
  model.weight_block = read_square(inside, "block_structure");
}

/// What compressed-tensors says the engine's cache holds.
void read_cache_scheme(const Reader& config, Quantisation& quantisation) {
  const JsonValue* const scheme = config.find("kv_cache_scheme");
  if (scheme == nullptr) return;
  const Reader inside = config.inside(*scheme, "kv_cache_scheme");
  if (!scheme->is(Kind::object)) {
    return config.problem("kv_cache_scheme", fmt::format("{}: an object or null is needed", describe(*scheme)));
  }
  const std::string type = inside.word("type", "float");
  if (inside.integer("num_bits", 8) != 8 || (type != "float" && type != "int")) {
    return inside.problem("num_bits", "a cache of floats or integers of 8 bits is counted");
  }
  quantisation.kv_cache_dtype = type == "float" ? "fp8" : "int8";
}

/// Whether a name of modules, plain, with * or a regular expression, speaks of what all layers have. A name with a
/// layer's number is taken for what the layer in the middle has.
bool speaks_of(std::string_view name, std::string_view what, std::int64_t middle) {
  if (name.find(what) == std::string_view::npos) return false;
  const std::string_view before = "layers.";
  const auto at = name.find(before);
  if (at == std::string_view::npos) return true;
  const std::string_view rest = name.substr(at + before.size());
  const bool numbered = !rest.empty() && rest.front() >= '0' && rest.front() <= '9';
  return !numbered || rest.starts_with(fmt::format("{}.", middle));
}

/// Which products' weights are left as they were.
void read_left_out(const Reader& config, ModelConfig& model) {
  const std::int64_t middle = model.layers.size() / 2;
  Quantisation& quantisation = model.quantisation;
  for (const char* const key : {"modules_to_not_convert", "ignored_layers", "ignore"}) {
    const JsonValue* const list = config.find(key);
    if (list == nullptr) continue;
    const bool strings = list->is(Kind::array) &&
                         std::ranges::all_of(list->items, [](const JsonValue& item) { return item.is(Kind::string); });
    if (!strings) {
      config.problem(key, fmt::format("{}: an array of names is needed", describe(*list)));
      continue;
    }
    for (const JsonValue& item : list->items) {
      const auto named = [&](std::initializer_list<const char*> any) {
        return std::ranges::any_of(any, [&](const char* what) { return speaks_of(item.text, what, middle); });
      };
      if (named({"self_attn"})) quantisation.attention = false;
      const bool shared = named({"shared_expert"});
      if (shared || named({"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp\\.("})) quantisation.mlp = false;
      if (!shared && named({"mlp.experts", "mlp\\.experts"})) quantisation.experts = false;
    }
  }
}

void read_method(const Reader& config, ModelConfig& model) {
  Quantisation& quantisation = model.quantisation;
  if (quantisation.method == "fp8") {
    quantisation.format = QuantisedFormat::fp8;
    model.weight_block = read_square(config, "weight_block_size");
  } else if (quantisation.method == "mxfp4") {
    // The experts of gpt-oss: what the method knows to convert.
    quantisation.format = QuantisedFormat::mxfp4;
    model.weight_block = kMxfp4Group;
    quantisation.attention = quantisation.mlp = false;
  } else if (quantisation.method == "awq" || quantisation.method == "gptq") {
    const bool gptq = quantisation.method == "gptq";
    read_integers(config, "bits", kCommonGroup, model);
    quantisation.zero_points = true;
    quantisation.packing = gptq ? config.word("checkpoint_format", "gptq") : config.word("version", "gemm");
  } else if (quantisation.method == "compressed-tensors") {
    read_groups(config, model);
    read_cache_scheme(config, quantisation);
  }
  read_left_out(config, model);
}

}  // namespace

void read_quantisation(ObjectReader& reader, LoadedModel& loaded) {
  const auto found = reader.find({"quantization_config"});
  if (!found) return;
  const JsonValue* const method = found->value->find("quant_method");
  if (!found->value->is(Kind::object) || method == nullptr || !method->is(Kind::string)) {
    reader.problem(found->field, fmt::format("{}: an object with a quant_method is needed", describe(*found->value)));
    return;
  }
  ModelConfig& model = loaded.model;
  model.quantisation.method = method->text;
  read_method(Reader(reader, *found->value, found->field), model);
  const bool known = model.quantisation.format != QuantisedFormat::none;
  loaded.notes.push_back(
      known ? fmt::format("quantization_config ({}): weights are counted as it stores them, with their scales, and "
                          "computed with in the format of the run",
                          in_quotes(method->text))
            : fmt::format("quantization_config ({}) is not known here: weights are computed with and counted as {}",
                          in_quotes(method->text), model.dtype));
}

}  // namespace shardproof::family_config
