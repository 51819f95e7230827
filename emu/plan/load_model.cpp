#include "emu/plan/internal/load_model.h"

#include <fmt/format.h>

#include <string>
#include <system_error>
#include <utility>

namespace shardproof {
namespace {

using Kind = JsonValue::Kind;
using Problems = std::vector<Problem>;

/// A model file's problems are its own.
LoadedModel read_model_file(const std::filesystem::path& path, Problems& problems) {
  FileText file = read_file(path, kMaxPlanBytes);
  if (!file.text) {
    for (const Problem& problem : file.problems) {
      problems.push_back({"model", fmt::format("{}: {}", in_quotes(problem.field), problem.message)});
    }
    return {};
  }
  JsonDocument document = parse_json(*file.text, path.string(), kMaxPlanDepth);
  LoadedModel loaded;
  if (document.value) loaded = read_model(*document.value, "", document.problems);
  for (Problem& problem : document.problems) {
    problem.file = path.string();
    problems.push_back(std::move(problem));
  }
  return loaded;
}

/// What a directory lacks that a checkpoint has; empty: nothing.
std::string missing_in_checkpoint(const std::filesystem::path& directory) {
  std::error_code error;
  if (!std::filesystem::exists(directory / "config.json", error)) return "config.json";
  for (std::filesystem::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->path().extension() == ".safetensors") return "";
  }
  return ".safetensors file";
}

}  // namespace

LoadedModel read_model_member(const JsonValue& value, const std::filesystem::path& base_dir, LoadedPlan& files,
                              Problems& problems) {
  if (!value.is(Kind::string)) return read_model(value, "model", problems);
  std::filesystem::path path = base_dir / std::filesystem::path(value.text);
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    if (const std::string missing = missing_in_checkpoint(path); !missing.empty()) {
      problems.push_back({"model", fmt::format("{}: there is no {} in this directory; a checkpoint's config.json and "
                                               ".safetensors are needed, or the path of a config.json",
                                               in_quotes(path.string()), missing)});
      return {};
    }
    files.model_directory = path.string();
    path /= "config.json";
  }
  files.model_file = path.string();
  return read_model_file(path, problems);
}

}  // namespace shardproof
