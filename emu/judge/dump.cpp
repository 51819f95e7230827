#include "emu/judge/dump.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <numeric>
#include <set>
#include <string_view>
#include <utility>

#include "emu/judge/dump_folder.h"
#include "emu/judge/dump_placement.h"
#include "emu/judge/prepared.h"

namespace shardproof {
namespace {

constexpr std::string_view kRowsOf = ".rows", kTokens = "tokens", kInputIds = "input_ids";

/// Whether dims of that shape can be folded into rows x cols.
bool folds_into(const std::vector<std::int64_t>& shape, std::int64_t rows, std::int64_t cols) {
  const std::int64_t size = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies{});
  if (size != rows * cols) return false;
  std::int64_t before = 1;
  for (std::size_t dim = 0; dim <= shape.size(); ++dim) {
    const std::int64_t after = std::accumulate(shape.begin() + static_cast<std::ptrdiff_t>(dim), shape.end(),
                                               std::int64_t{1}, std::multiplies{});
    if (before == rows && after == cols) return true;
    if (dim < shape.size()) before *= shape[dim];
  }
  return false;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::string block_text(const HeldBlock& block, const ExpectedTap& whole) {
  std::string text = fmt::format("[{}, {}]", block.rows.size(), block.cols.count);
  if (block.cols.count < whole.cols) text += fmt::format(" (columns {} to {})", block.cols.begin, block.cols.end() - 1);
  return text;
}

ops::Format format_of(TensorType type) {
  return type == TensorType::bf16  ? ops::Format::bf16
         : type == TensorType::f16 ? ops::Format::fp16
         : type == TensorType::f32 ? ops::Format::fp32
                                   : ops::Format::fp64;
}

bool can_hold(TensorType type, ops::Format format) {
  return bytes_of(type) > ops::bytes_per_element(format) || format_of(type) == format;
}

}  // namespace

class DumpReader {
 public:
  DumpReader(std::string path, const Plan& plan, const DumpNames& names, std::optional<ops::Format> format)
      : path_(std::move(path)), plan_(plan), names_(names), format_(format), placement_(plan) {
    auto taps = std::make_shared<ExpectedTaps>();
    for (const TapId& id : all_taps(plan.model, tap_parts(plan))) {
      taps->add_shape(id, tap_rows(plan.model, id, plan.workload.tokens()), tap_width(plan.model, id),
                      {.ids = tap_row(id.kind).ids});
    }
    dump_.taps_ = std::move(taps);
    for (std::int64_t layer = 0; layer < plan.model.layers.size(); ++layer) {
      dump_.experts_.push_back(plan.model.layers[layer].feed_forward.num_experts);
    }
  }

  OpenedDump read() {
    for (const auto& [rank, file] : find_dump_files(path_, placement_.world(), problems_)) read_file(rank, file);
    if (problems_.empty() && dump_.tensors_.empty()) {
      problem(path_, "no tensor of it is a tap of the plan: there is nothing to judge");
    }
    if (problems_.empty()) check_types();
    if (problems_.empty()) check_cover();
    if (problems_.empty()) join_tokens();
    if (!problems_.empty()) return {std::nullopt, std::move(problems_)};
    std::ranges::stable_sort(dump_.tensors_, {}, &DumpTensor::index);
    return {std::move(dump_), {}};
  }

 private:
  void problem(std::string field, std::string message) { problems_.push_back({std::move(field), std::move(message)}); }
  static std::string place(const SafetensorsFile& file, std::string_view tensor) {
    return fmt::format("{}: {}", std::filesystem::path(file.name()).filename().string(), tensor);
  }

  void read_file(int rank, const std::filesystem::path& path) {
    dump_.files_.push_back(std::make_unique<SafetensorsFile>(path, TensorTypes::floats_and_ids));
    const SafetensorsFile& file = *dump_.files_.back();
    dump_.file_names_.push_back(file.name());
    std::map<std::string, const TensorEntry*> rows;  // NAME.rows, by NAME
    std::map<std::string, std::string> theirs;       // by what it is
    for (const TensorEntry& entry : file.header().tensors) {
      const bool lists_rows = entry.name.ends_with(kRowsOf);
      const std::string name = lists_rows ? entry.name.substr(0, entry.name.size() - kRowsOf.size()) : entry.name;
      std::string ours = names_.ours(name);
      if (ours.empty()) continue;
      if (ours == kInputIds) ours = kTokens;
      if (lists_rows) {
        rows[ours] = &entry;
      } else if (const auto [other, fresh] = theirs.emplace(ours, entry.name); !fresh) {
        problem(place(file, entry.name), fmt::format("{} is the same tensor, {}", other->second, ours));
      }
    }
    for (const auto& [ours, name] : theirs) {
      const auto list = rows.find(ours);
      const TensorEntry& entry = *file.header().find(name);
      if (ours == kTokens) {
        add_tokens(rank, file, entry);
      } else {
        add_tensor(rank, file, entry, ours, list == rows.end() ? nullptr : list->second);
      }
      if (list != rows.end()) rows.erase(list);
    }
    for (const auto& [ours, entry] : rows) {
      problem(place(file, entry->name), fmt::format("lists rows of {}, which is not there", ours));
    }
  }

  void add_tensor(int rank, const SafetensorsFile& file, const TensorEntry& entry, const std::string& ours,
                  const TensorEntry* list) {
    std::optional<TapId> id = parse_tap_id(ours);
    // Whose partial sum it is, the rank says.
    if (id && rank >= 0 && id->part < 0) id->part = placement_.part_of_rank(rank, id->kind);
    const int index = id ? dump_.taps().find(*id) : -1;
    const std::string where = place(file, entry.name);
    if (id && index < 0 && is_no_step_of_its_own(*id)) {
      dump_.unused_.push_back(
          {to_string(*id), "is no step of its own in this model: what it goes into is judged at once"});
      return;
    }
    if (index < 0) {
      return problem(where, id ? fmt::format("{} is no tap of this plan's model", to_string(*id))
                               : "is no tap, as layer.0.attention.output is one; name what it is with --names, or null "
                                 "there for nothing that is judged");
    }
    if (rank >= 0 && !placement_.holds(rank, *id)) {
      return problem(
          where,
          fmt::format("is in the file of another rank's: {}{}", placement_.describe(rank),
                      id->part >= 0 ? fmt::format(" and has part {}", placement_.part_of_rank(rank, id->kind)) : ""));
    }
    const bool ids = tap_row(id->kind).ids;
    if (ids != is_integer(entry.type)) {
      return problem(where, fmt::format("{}; {} is needed", to_string(entry.type),
                                        ids ? "I64 or I32, ids of experts," : "F64, F32, F16 or BF16"));
    }
    DumpTensor tensor{
        .tap = *id, .index = static_cast<std::size_t>(index), .file = &file, .entry = entry, .blocks = {}};
    const std::vector<std::int64_t> listed =
        list == nullptr ? std::vector<std::int64_t>() : read_rows(file, *list, index);
    if (list != nullptr && listed.empty() && entry.rows() > 0 && entry.begin != entry.end) return;
    if (rank >= 0 ? fits_rank(rank, listed, list != nullptr, where, tensor)
                  : fits_whole(listed, list != nullptr, where, tensor)) {
      dump_.tensors_.push_back(std::move(tensor));
    }
  }

  bool is_no_step_of_its_own(const TapId& id) const {
    return id.layer >= 0 && id.layer < plan_.model.layers.size() && tap_row(id.kind).inner &&
           tap_width(plan_.model, id) == 0;
  }

  const ExpectedTap& whole(const DumpTensor& tensor) const { return dump_.taps().all()[tensor.index]; }

  void fold(DumpTensor& tensor, const HeldBlock& block) const {
    tensor.entry.shape = {std::ssize(block.rows), block.cols.count};
  }

  static std::vector<std::int64_t> counted(std::size_t count) {
    std::vector<std::int64_t> places(count);
    std::iota(places.begin(), places.end(), std::int64_t{0});
    return places;
  }

  bool fits_rank(int rank, const std::vector<std::int64_t>& listed, bool is_listed, const std::string& where,
                 DumpTensor& tensor) {
    std::vector<std::string> right;
    for (HeldBlock& block : placement_.parts(rank, tensor.tap)) {
      if (is_listed) block.rows = listed;
      if (folds_into(tensor.entry.shape, std::ssize(block.rows), block.cols.count)) {
        fold(tensor, block);
        std::vector<std::int64_t> places = counted(block.rows.size());
        tensor.blocks.push_back({rank, std::move(block.rows), block.cols, std::move(places), 0});
        return true;
      }
      right.push_back(block_text(block, whole(tensor)));
    }
    std::string hint = tap_row(tensor.tap.kind).slots && !is_listed
                           ? fmt::format("; which slots its rows are of, {}{} says", tensor.entry.name, kRowsOf)
                           : "";
    problem(where, fmt::format("{}; rank {} has {} of it{}", shape_text(tensor.entry.shape), rank,
                               fmt::join(right, " or "), hint));
    return false;
  }

  /// Each rank's part of it, a replicated one once.
  bool fits_whole(const std::vector<std::int64_t>& listed, bool is_listed, const std::string& where,
                  DumpTensor& tensor) {
    const ExpectedTap& tap = whole(tensor);
    if (!folds_into(tensor.entry.shape, tap.rows, tap.cols)) {
      problem(where,
              fmt::format("{}; the whole tensor is [{}, {}]", shape_text(tensor.entry.shape), tap.rows, tap.cols));
      return false;
    }
    fold(tensor, {counted(static_cast<std::size_t>(tap.rows)), {0, tap.cols}});
    std::vector<std::int64_t> places = counted(static_cast<std::size_t>(tap.rows));  // row of the tensor -> of the file
    for (std::size_t i = 0; is_listed && i < listed.size(); ++i) {
      places[static_cast<std::size_t>(listed[i])] = static_cast<std::int64_t>(i);
    }
    std::set<HeldBlock> known;
    for (int rank = 0; rank < placement_.world(); ++rank) {
      if (!placement_.holds(rank, tensor.tap)) continue;
      HeldBlock block = placement_.part(rank, tensor.tap);
      if (block.rows.empty() || !known.insert(block).second) continue;
      std::vector<std::int64_t> file_rows;
      for (const std::int64_t row : block.rows) file_rows.push_back(places[static_cast<std::size_t>(row)]);
      tensor.blocks.push_back({rank, std::move(block.rows), block.cols, std::move(file_rows), block.cols.begin});
    }
    return true;
  }

  std::vector<std::int64_t> read_ids(const SafetensorsFile& file, const TensorEntry& entry) const {
    ops::Matrix<std::int64_t> ids(entry.rows(), entry.cols());
    file.read(entry, {0, entry.rows()}, {0, entry.cols()}, ids.view());
    return {ids.span().begin(), ids.span().end()};
  }

  /// Empty where there are problems.
  std::vector<std::int64_t> read_rows(const SafetensorsFile& file, const TensorEntry& entry, int tap) {
    const std::int64_t count = dump_.taps().all()[static_cast<std::size_t>(tap)].rows;
    const std::string where = place(file, entry.name);
    if (!is_integer(entry.type) || entry.shape.size() != 1) {
      problem(where,
              fmt::format("{} {}; a list of I64 or I32 is needed", to_string(entry.type), shape_text(entry.shape)));
      return {};
    }
    std::vector<std::int64_t> rows = read_ids(file, entry);
    std::set<std::int64_t> seen;
    for (const std::int64_t row : rows) {
      if (row >= 0 && row < count && seen.insert(row).second) continue;
      problem(where, fmt::format("row {}{}; each is one of 0 to {}, once", row, seen.contains(row) ? " twice" : "",
                                 count - 1));
      return {};
    }
    return rows;
  }

  void add_tokens(int rank, const SafetensorsFile& file, const TensorEntry& entry) {
    const std::string where = place(file, entry.name);
    if (!is_integer(entry.type)) return problem(where, fmt::format("{}; I64 or I32 is needed", to_string(entry.type)));
    const std::vector<std::int64_t> ids = read_ids(file, entry);
    std::vector<std::int64_t> rows = counted(static_cast<std::size_t>(plan_.workload.tokens()));
    if (rank >= 0 && ids.size() != rows.size()) rows = placement_.rows(rank);
    if (ids.size() != rows.size()) {
      return problem(where, fmt::format("{} ids; the plan's workload has {} sequences of {} tokens in all{}",
                                        ids.size(), plan_.workload.batch(), plan_.workload.tokens(),
                                        rank >= 0 ? fmt::format(", of which rank {} has {}", rank, rows.size()) : ""));
    }
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] < 0 || ids[i] >= plan_.model.vocab_size) {
        return problem(where,
                       fmt::format("id {} at {}; the vocabulary is 0 to {}", ids[i], i, plan_.model.vocab_size - 1));
      }
      const auto [known, fresh] = tokens_.emplace(rows[i], static_cast<std::int32_t>(ids[i]));
      if (fresh || known->second == ids[i]) continue;
      return problem(where,
                     fmt::format("id {} of token {}, for which another file has {}", ids[i], rows[i], known->second));
    }
  }

  void join_tokens() {
    const std::int64_t count = plan_.workload.tokens();
    const bool in_plan = !plan_.workload.token_ids.empty();
    if (tokens_.empty()) {
      if (in_plan) return;
      return problem(path_,
                     "has no token ids; a tensor \"tokens\" of it, or \"tokens\" of the plan's workload, is needed");
    }
    if (std::ssize(tokens_) != count) {
      return problem(
          path_, fmt::format("ids of {} of {} tokens; those of the other ranks are needed too", tokens_.size(), count));
    }
    std::vector<std::int32_t> ids;
    for (const auto& [row, id] : tokens_) ids.push_back(id);
    std::vector<std::int32_t> planned;
    for (const auto& sequence : plan_.workload.token_ids)
      planned.insert(planned.end(), sequence.begin(), sequence.end());
    if (in_plan && planned != ids) {
      const auto at = static_cast<std::size_t>(std::ranges::mismatch(ids, planned).in1 - ids.begin());
      return problem(path_,
                     fmt::format("token {} is {}, and workload.tokens of the plan says {}", at, ids[at], planned[at]));
    }
    dump_.token_ids_ = std::move(ids);
  }

  /// One narrow type may be there: that is the format. Values may be wider than it.
  void check_types() {
    const auto values = [](const DumpTensor& tensor) { return !is_integer(tensor.entry.type); };
    std::optional<ops::Format> narrowest = format_;
    for (const DumpTensor& tensor : dump_.tensors_) {
      if (!values(tensor) || format_) continue;
      const ops::Format format = format_of(tensor.entry.type);
      if (!narrowest || ops::bytes_per_element(format) < ops::bytes_per_element(*narrowest)) narrowest = format;
    }
    if (!narrowest) return problem(path_, "holds ids alone: there is nothing to judge");
    for (const DumpTensor& tensor : dump_.tensors_) {
      if (!values(tensor) || can_hold(tensor.entry.type, *narrowest)) continue;
      return problem(place(*tensor.file, tensor.entry.name),
                     fmt::format("{} is no type for a value of a run in {}; the run's format is said with --format",
                                 to_string(tensor.entry.type), ops::to_string(*narrowest)));
    }
    dump_.format_ = *narrowest;
  }

  /// Of tensors whose rows are slots the router decides who has what: what is missing of them is the run's fault.
  void check_cover() {
    std::map<std::size_t, std::vector<const DumpTensor*>> by_tap;
    for (const DumpTensor& tensor : dump_.tensors_) by_tap[tensor.index].push_back(&tensor);
    for (const auto& [index, tensors] : by_tap) {
      const ExpectedTap& tap = dump_.taps().all()[index];
      if (tap_row(tap.id->kind).slots) continue;
      std::vector<bool> covered(static_cast<std::size_t>(tap.size()));
      for (const DumpTensor* tensor : tensors) {
        for (const DumpBlock& block : tensor->blocks) {
          for (const std::int64_t row : block.rows) {
            std::fill_n(covered.begin() + row * tap.cols + block.cols.begin, block.cols.count, true);
          }
        }
      }
      const auto gap = std::ranges::find(covered, false);
      if (gap != covered.end()) name_owner(tap, gap - covered.begin());
    }
  }

  void name_owner(const ExpectedTap& tap, std::int64_t element) {
    const std::int64_t row = element / tap.cols, col = element % tap.cols;
    for (int rank = 0; rank < placement_.world(); ++rank) {
      if (!placement_.holds(rank, *tap.id)) continue;
      const HeldBlock part = placement_.part(rank, *tap.id);
      if (std::ranges::find(part.rows, row) == part.rows.end() || col < part.cols.begin || col >= part.cols.end())
        continue;
      return problem(fmt::format("rank_{}.safetensors: {}", rank, tap.name),
                     fmt::format("is missing; rank {} has {} of it, and no other file has row {}, column {}", rank,
                                 block_text(part, tap), row, col));
    }
    problem(tap.name, fmt::format("row {}, column {} is in no file", row, col));
  }

  std::string path_;
  const Plan& plan_;
  const DumpNames& names_;
  std::optional<ops::Format> format_;
  DumpPlacement placement_;
  Dump dump_;
  std::map<std::int64_t, std::int32_t> tokens_;  // by row
  std::vector<Problem> problems_;
};

OpenedDump open_dump(const std::string& path, const RunnablePlan& plan, const DumpNames& names,
                     std::optional<ops::Format> format) {
  return DumpReader(path, plan.plan(), names, format).read();
}

}  // namespace shardproof
