#include "emu/weights/checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <span>
#include <system_error>
#include <type_traits>
#include <utility>

#include "emu/input/json_value.h"
#include "emu/model/families/family.h"
#include "emu/model/families/load.h"
#include "emu/model/fields.h"

namespace shardproof {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t kMaxConfigBytes = 4u << 20;
constexpr int kMaxConfigDepth = 16;
constexpr const char* kConfig = "config.json";

/// DeepSeek's name of what the values of a weight are multiplied by, block by block.
std::string scales_of(const std::string& weight) {
  return weight + "_scale_inv";
}

/// "model.layers.61.mlp.gate.weight" is of layer 61; -1: of none.
std::int64_t layer_of(std::string_view name) {
  constexpr std::string_view kLayers = "model.layers.";
  std::int64_t layer = -1;
  if (name.starts_with(kLayers)) std::from_chars(name.data() + kLayers.size(), name.data() + name.size(), layer);
  return layer;
}

bool changes_nothing(std::string_view name, const ModelConfig& model) {
  const Family* const family = find_family(model.model_type);
  if (family != nullptr && family->skips_prediction_layers && layer_of(name) >= model.layers.size()) return true;
  return name.ends_with(".rotary_emb.inv_freq") || (model.tie_word_embeddings && name == "lm_head.weight");
}

ModelConfig read_config(const fs::path& directory) {
  std::error_code error;
  if (!fs::is_directory(directory, error)) {
    throw CheckpointError(directory.string(), "",
                          "is not a directory; one with config.json and model.safetensors is "
                          "needed");
  }
  const fs::path path = directory / kConfig;
  const JsonValue config = read_checkpoint_json(path, kMaxConfigBytes, kMaxConfigDepth);
  std::vector<Problem> problems;
  LoadedModel loaded = read_model(config, "", problems);
  const auto require = [&](bool holds, const char* field, std::string message) {
    if (!holds && problems.empty()) problems.push_back({field, std::move(message)});
  };
  // What validate() says of a plan's model; without it the shapes below would make no sense.
  for (const LayerSpec& layer : loaded.model.layers.kinds()) {
    const AttentionSpec& attention = layer.attention;
    const FeedForwardSpec& experts = layer.feed_forward;
    require(attention.kv_heads > 0 && attention.heads % attention.kv_heads == 0, "num_key_value_heads",
            fmt::format("{} does not divide the {} query heads", attention.kv_heads, attention.heads));
    require(attention.head_dim % 2 == 0, "head_dim", fmt::format("{} is odd; RoPE rotates pairs", attention.head_dim));
    require(experts.num_experts % experts.groups == 0, "n_group",
            fmt::format("{} does not divide the {} experts", experts.groups, experts.num_experts));
    require(experts.top_k <= experts.num_experts, "num_experts_per_tok",
            fmt::format("{} is more than the {} experts", experts.top_k, experts.num_experts));
  }
  if (!problems.empty()) throw checkpoint_error(path.string(), problems);
  return loaded.model;
}

/// Which types its files may hold.
TensorTypes types_of(const ModelConfig& model) {
  return model.quantisation.format == QuantisedFormat::fp8 ? TensorTypes::floats_and_quantised : TensorTypes::floats;
}

}  // namespace

Checkpoint::Checkpoint(const fs::path& directory)
    : model_(read_config(directory)), files_(directory, types_of(model_)) {
  file_names_.push_back((directory / kConfig).string());
  file_names_.insert(file_names_.end(), files_.names().begin(), files_.names().end());
  check_weights(directory.string());
}

void Checkpoint::check_weight(const TensorPlace& needed, const std::string& directory) const {
  const CheckpointFiles::Place* const found = files_.find(needed.name);
  if (found == nullptr) throw CheckpointError(directory, in_quotes(needed.name), "is missing; the model needs it");
  const std::vector<std::int64_t>& shape = found->entry->shape;
  if (shape != needed.shape) {
    throw CheckpointError(
        found->file->name(), in_quotes(needed.name) + ".shape",
        fmt::format("[{}]; the config makes it [{}]", fmt::join(shape, ", "), fmt::join(needed.shape, ", ")));
  }
}

std::string Checkpoint::check_scales(const WeightSpec& spec, const TensorPlace& lies,
                                     const std::string& directory) const {
  const CheckpointFiles::Place& held = files_.at(lies.name);
  if (held.entry->type != TensorType::f8_e4m3) return {};
  const std::int64_t block = model_.weight_block;
  if (!is_quantised(model_, spec.weight) || lies.slice >= 0 || block == 0) {
    throw CheckpointError(held.file->name(), in_quotes(lies.name) + ".dtype",
                          "F8_E4M3; only weights that quantization_config quantises in blocks are read in it");
  }
  const auto blocks = [&](std::int64_t count) { return (count + block - 1) / block; };
  TensorPlace scales;
  scales.name = scales_of(lies.name);
  scales.shape = {blocks(spec.rows), blocks(spec.cols)};
  check_weight(scales, directory);
  return scales.name;
}

void Checkpoint::check_weights(const std::string& directory) const {
  // In program order, so that a config of absurd size stops at the first weight that is not there.
  std::set<std::string> needed;
  for_each_weight(model_, [&](const WeightSpec& spec) {
    const TensorPlace lies = place_in_checkpoint(model_, spec);
    check_weight(lies, directory);
    needed.insert(lies.name);
    if (std::string scales = check_scales(spec, lies, directory); !scales.empty()) needed.insert(std::move(scales));
  });
  for (const auto& [name, held] : files_.places()) {
    if (!needed.contains(name) && !changes_nothing(name, model_)) {
      throw CheckpointError(held.file->name(), in_quotes(name), "is no weight of the model that config.json describes");
    }
  }
}

void Checkpoint::read(const WeightSpec& spec, Range rows, Range cols, ops::MatrixView<double> out) const {
  const TensorPlace lies = place_in_checkpoint(model_, spec);
  const CheckpointFiles::Place& held = files_.at(lies.name);
  if (lies.slice < 0) {
    held.file->read<double>(*held.entry, rows, cols, out);
    if (held.entry->type == TensorType::f8_e4m3) dequantise(lies, rows, cols, out);
  } else {
    read_stacked(held, lies, is_vector(spec.kind), rows, cols, out);
  }
  for (std::int64_t i = 0; i < rows.count; ++i) {
    const std::span<const double> row = out.row(i);
    const auto bad = std::ranges::find_if_not(row, [](double value) { return std::isfinite(value); });
    if (bad == row.end()) continue;
    // A vector is stored as one dim.
    const std::int64_t col = cols.begin + (bad - row.begin());
    const std::string at = is_vector(spec.kind) ? fmt::format("{}", col) : fmt::format("{}, {}", rows.begin + i, col);
    throw CheckpointError(held.file->name(), fmt::format("{}[{}]", in_quotes(spec.name), at),
                          fmt::format("{}; a finite number is needed", *bad));
  }
}

void Checkpoint::dequantise(const TensorPlace& lies, Range rows, Range cols, ops::MatrixView<double> values) const {
  const CheckpointFiles::Place& held = files_.at(scales_of(lies.name));
  const std::int64_t block = model_.weight_block;
  const auto blocks_of = [&](Range range) {
    const std::int64_t first = range.begin / block;
    return Range{first, range.count == 0 ? 0 : (range.end() - 1) / block - first + 1};
  };
  const Range down = blocks_of(rows), across = blocks_of(cols);
  ops::Matrix<double> scales(down.count, across.count);
  held.file->read<double>(*held.entry, down, across, scales);
  for (std::int64_t i = 0; i < rows.count; ++i) {
    const std::span<const double> of_row = std::as_const(scales).row((rows.begin + i) / block - down.begin);
    for (std::int64_t j = 0; j < cols.count; ++j) {
      values(i, j) *= of_row[static_cast<std::size_t>((cols.begin + j) / block - across.begin)];
    }
  }
}

void Checkpoint::read_stacked(const CheckpointFiles::Place& held, const TensorPlace& lies, bool vector, Range rows,
                              Range cols, ops::MatrixView<double> out) const {
  // A slice is one row of the tensor's entry.
  const std::int64_t inner = lies.shape.back();
  const auto read = [&](std::int64_t first, std::vector<double>& values) {
    const auto count = std::ssize(values);
    held.file->read<double>(*held.entry, {lies.slice, 1}, {first, count}, {values.data(), 1, count});
  };
  if (vector || lies.transposed) {
    // What is next to each other in the file is of one column, `step` apart.
    const Range along = vector ? cols : rows, across = vector ? rows : cols;
    std::vector<double> values(static_cast<std::size_t>(std::max<std::int64_t>(0, (along.count - 1) * lies.step + 1)));
    for (std::int64_t j = 0; along.count > 0 && j < across.count; ++j) {
      read((vector ? 0 : (across.begin + j) * inner) + lies.begin + along.begin * lies.step, values);
      for (std::int64_t i = 0; i < along.count; ++i) {
        (vector ? out(j, i) : out(i, j)) = values[static_cast<std::size_t>(i * lies.step)];
      }
    }
    return;
  }
  std::vector<double> values(static_cast<std::size_t>(cols.count));
  for (std::int64_t i = 0; i < rows.count; ++i) {
    read((lies.begin + (rows.begin + i) * lies.step) * inner + cols.begin, values);
    std::ranges::copy(values, out.row(i).begin());
  }
}

std::vector<double> Checkpoint::tensor(std::string_view name) const {
  const CheckpointFiles::Place& held = files_.at(name);
  const std::int64_t rows = held.entry->rows(), cols = held.entry->cols();
  std::vector<double> values(static_cast<std::size_t>(rows * cols));
  held.file->read<double>(*held.entry, {0, rows}, {0, cols}, {values.data(), rows, cols});
  return values;
}

std::vector<Problem> compare_models(const ModelConfig& plan, const ModelConfig& checkpoint) {
  struct Value {
    std::string_view key;
    std::string text;
  };
  const auto values_of = [](const ModelConfig& model) {
    std::vector<Value> values;
    visit_fields(model, [&](const FieldInfo& field, const auto& value) {
      if constexpr (std::is_enum_v<std::decay_t<decltype(value)>>) {
        values.push_back({field.key, std::string(to_string(value))});
      } else {
        values.push_back({field.key, fmt::format("{}", value)});
      }
    });
    return values;
  };
  const std::vector<Value> ours = values_of(plan), theirs = values_of(checkpoint);
  std::vector<Problem> problems;
  for (std::size_t i = 0; i < ours.size() && i < theirs.size(); ++i) {
    if (ours[i].text == theirs[i].text) continue;
    problems.push_back(
        {fmt::format("model.{}", ours[i].key), fmt::format("{}; the checkpoint has {}", ours[i].text, theirs[i].text)});
  }
  if (problems.empty() && plan.layers != checkpoint.layers) {
    problems.push_back(
        {"model.num_hidden_layers", "the layers of the checkpoint are of other kinds, or in another order"});
  }
  return problems;
}

}  // namespace shardproof
