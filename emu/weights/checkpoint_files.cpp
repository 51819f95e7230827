#include "emu/weights/checkpoint_files.h"

#include <fmt/format.h>

#include <set>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "emu/input/problem.h"
#include "emu/weights/checkpoint_error.h"

namespace shardproof {
namespace {

namespace fs = std::filesystem;
using Kind = JsonValue::Kind;

constexpr std::uintmax_t kMaxIndexBytes = 16u << 20;
constexpr int kMaxIndexDepth = 8;
constexpr std::string_view kWhole = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";

/// A file that the index may name: in the directory itself, not somewhere else on the machine.
bool is_plain_name(std::string_view name) {
  return name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos &&
         name.ends_with(".safetensors");
}

}  // namespace

JsonValue read_checkpoint_json(const fs::path& path, std::uintmax_t max_bytes, int max_depth) {
  const FileText file = read_file(path, max_bytes);
  if (!file.text) throw checkpoint_error(path.string(), file.problems);
  JsonDocument document = parse_json(*file.text, path.filename().string(), max_depth);
  if (!document.value) throw checkpoint_error(path.string(), document.problems);
  return std::move(*document.value);
}

CheckpointFiles::CheckpointFiles(const fs::path& directory, TensorTypes types) : types_(types) {
  std::error_code error;
  const bool whole = fs::exists(directory / kWhole, error);
  const bool index = fs::exists(directory / kIndex, error);
  if (whole == index) {
    throw CheckpointError(
        directory.string(), "",
        fmt::format("has {} {} and {}; exactly one is needed", whole ? "both" : "neither", kWhole, kIndex));
  }
  if (whole) {
    add_file(directory / kWhole);
  } else {
    open_index(directory, directory / kIndex);
  }
}

void CheckpointFiles::add_file(const fs::path& path) {
  names_.push_back(path.string());
  files_.push_back(std::make_unique<SafetensorsFile>(path, types_));
  const SafetensorsFile& file = *files_.back();
  for (const TensorEntry& entry : file.header().tensors) {
    const auto [position, added] = places_.emplace(entry.name, Place{&file, &entry});
    if (!added) {
      throw CheckpointError(file.name(), in_quotes(entry.name),
                            fmt::format("stands in {} too", position->second.file->name()));
    }
  }
}

void CheckpointFiles::open_index(const fs::path& directory, const fs::path& index) {
  names_.push_back(index.string());
  const JsonValue document = read_checkpoint_json(index, kMaxIndexBytes, kMaxIndexDepth);
  if (!document.is(Kind::object)) throw CheckpointError(index.string(), "", "an object is needed");
  for (const JsonMember& member : document.members) {
    if (member.key != "metadata" && member.key != "weight_map") {
      throw CheckpointError(index.string(), in_quotes(member.key),
                            "unknown key; only metadata and weight_map are known");
    }
  }
  const JsonValue* const map = document.find("weight_map");
  if (map == nullptr || !map->is(Kind::object)) {
    throw CheckpointError(index.string(), "weight_map", "an object from tensor to file is needed");
  }
  std::set<std::string> names;
  for (const JsonMember& member : map->members) {
    if (!member.value.is(Kind::string) || !is_plain_name(member.value.text)) {
      throw CheckpointError(
          index.string(), "weight_map." + in_quotes(member.key),
          fmt::format("{}; the name of a .safetensors file in this directory is needed", describe(member.value)));
    }
    names.insert(member.value.text);
  }
  for (const std::string& name : names) add_file(directory / name);
  for (const JsonMember& member : map->members) {
    const auto found = places_.find(member.key);
    const std::string file = (directory / member.value.text).string();
    if (found == places_.end() || found->second.file->name() != file) {
      throw CheckpointError(index.string(), "weight_map." + in_quotes(member.key),
                            fmt::format("{} has no such tensor", describe(member.value)));
    }
  }
  if (places_.size() != map->members.size()) {
    for (const auto& [name, held] : places_) {
      if (map->find(name) == nullptr) {
        throw CheckpointError(index.string(), "weight_map",
                              fmt::format("lacks {}, which stands in {}", in_quotes(name), held.file->name()));
      }
    }
  }
}

const CheckpointFiles::Place* CheckpointFiles::find(std::string_view name) const {
  const auto found = places_.find(name);
  return found == places_.end() ? nullptr : &found->second;
}

const CheckpointFiles::Place& CheckpointFiles::at(std::string_view name) const {
  const Place* const found = find(name);
  if (found == nullptr) throw std::out_of_range(fmt::format("the checkpoint has no tensor named '{}'", name));
  return *found;
}

}  // namespace shardproof
