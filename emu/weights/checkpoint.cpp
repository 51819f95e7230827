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
#include "emu/weights/quantised_weight.h"

namespace shardproof {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t kMaxConfigBytes = 4u << 20;
constexpr int kMaxConfigDepth = 16;
constexpr const char* kConfig = "config.json";

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
  // What engines that compute in fp8 scale activations and cache by; a run's are of its own format.
  const auto scales_activations = [&] {
    return name.ends_with(".input_scale") || name.ends_with(".k_scale") || name.ends_with(".v_scale");
  };
  if (model.quantisation.format != QuantisedFormat::none && scales_activations()) return true;
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
  return model.quantisation.format != QuantisedFormat::none ? TensorTypes::floats_and_quantised : TensorTypes::floats;
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
  const TensorType type = found->entry->type;
  if (is_integer(type) || type == TensorType::f8_e4m3) {
    throw CheckpointError(
        found->file->name(), in_quotes(needed.name) + ".dtype",
        fmt::format("{}; floats are needed: quantization_config does not quantise it", to_string(type)));
  }
}

void Checkpoint::check_weights(const std::string& directory) const {
  // In program order, so that a config of absurd size stops at the first weight that is not there.
  std::set<std::string> needed;
  for_each_weight(model_, [&](const WeightSpec& spec) {
    const TensorPlace lies = place_in_checkpoint(model_, spec);
    if (const auto quantised = QuantisedWeight::find(model_, spec, lies, files_)) {
      needed.insert(quantised->tensors().begin(), quantised->tensors().end());
    } else {
      check_weight(lies, directory);
      needed.insert(lies.name);
    }
  });
  for (const auto& [name, held] : files_.places()) {
    if (!needed.contains(name) && !changes_nothing(name, model_)) {
      throw CheckpointError(held.file->name(), in_quotes(name), "is no weight of the model that config.json describes");
    }
  }
}

void Checkpoint::read(const WeightSpec& spec, Range rows, Range cols, ops::MatrixView<double> out) const {
  const TensorPlace lies = place_in_checkpoint(model_, spec);
  const auto quantised = QuantisedWeight::find(model_, spec, lies, files_);
  const CheckpointFiles::Place& held = files_.at(quantised ? quantised->tensors().front() : lies.name);
  if (quantised) {
    quantised->read(rows, cols, out);
  } else if (lies.slice < 0) {
    held.file->read<double>(*held.entry, rows, cols, out);
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
