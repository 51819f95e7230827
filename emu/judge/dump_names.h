// What the tensors of somebody's dump are called.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emu/input/problem.h"

namespace shardproof {

/// One tensor's name, or that of one of each layer: "{layer}" in both stands for the layer's number, once.
struct DumpName {
  std::string theirs;  ///< "model.layers.{layer}.self_attn.o_proj"
  std::string ours;    ///< a tap, "layer.{layer}.attention.output", or "tokens"; empty: nothing that is judged
};

/// Names that are not listed stand for themselves.
class DumpNames {
 public:
  explicit DumpNames(std::vector<DumpName> names = {}) : names_(std::move(names)) {}
  /// What a tensor of that name is; empty: nothing that is judged.
  std::string ours(std::string_view theirs) const;

 private:
  std::vector<DumpName> names_;
};

struct LoadedDumpNames {
  std::optional<DumpNames> names;  ///< empty exactly when there are problems
  std::vector<Problem> problems;
};

/// A JSON object: what they call it -> what it is, or null for nothing that is judged.
LoadedDumpNames load_dump_names(const std::string& path);
/// `file` stands for the text in messages.
LoadedDumpNames parse_dump_names(std::string_view text, std::string_view file);

}  // namespace shardproof
