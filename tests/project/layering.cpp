#include "tests/project/layering.h"

#include <algorithm>
#include <map>
#include <optional>
#include <regex>

namespace shardproof::project {
namespace {

using Paths = std::vector<std::string_view>;

struct Library {
  std::string_view name;
  Paths includes;     // how its headers begin
  std::regex places;  // the files that may name it
};

const std::vector<Library>& libraries() {
  static const std::vector<Library> kLibraries{
      {"Eigen", {"Eigen/"}, std::regex(R"(ops/([^/]*\.cpp|internal/.*))")},
      {"oneTBB", {"tbb/", "oneapi/"}, std::regex(R"((collectives/tbb_executor|ops/threads)\.cpp)")},
      {"JSON",
       {"nlohmann/"},
       std::regex(R"((emu|tools)/.*(json|load|save|write|report)[^/]*\.cpp|emu/report/internal/.*)")},
      {"fmt", {"fmt/"}, std::regex(R"((collectives|emu|tools|bench)/.*)")},
      {"CLI11", {"CLI/"}, std::regex(R"(tools/.*)")},
      {"nanobind", {"nanobind/"}, std::regex(R"(tools/python/src/.*)")},
      {"Google Benchmark", {"benchmark/"}, std::regex(R"(bench/.*)")},
  };
  return kLibraries;
}

bool starts_with_any(std::string_view text, const Paths& prefixes) {
  return std::ranges::any_of(prefixes, [&](std::string_view prefix) { return text.starts_with(prefix); });
}

struct Include {
  std::string path;
  bool quoted = false;
};

std::optional<Include> include_of(const std::string& line) {
  static const std::regex kInclude(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"].*)");
  std::smatch match;
  if (!std::regex_match(line, match, kInclude)) return std::nullopt;
  return Include{match[2].str(), match[1].str() == "\""};
}

bool is_project_path(std::string_view path) {
  return starts_with_any(path, {"ops/", "collectives/", "emu/", "tools/", "bench/", "tests/"});
}

std::optional<std::string> wrong_include(std::string_view file, const std::vector<Room>& rooms,
                                         const Include& include) {
  if (is_project_path(include.path)) {
    const bool drawn = std::ranges::any_of(rooms, [&](const Room& room) {
      return file.starts_with(room.path) &&
             (include.path.starts_with(room.path) || std::ranges::any_of(room.may_include, [&](const std::string& to) {
                return include.path.starts_with(to);
              }));
    });
    if (drawn) return std::nullopt;
    return "no arrow is drawn to " + include.path;
  }
  for (const Library& library : libraries()) {
    if (!starts_with_any(include.path, library.includes)) continue;
    if (std::regex_match(file.begin(), file.end(), library.places)) return std::nullopt;
    return std::string(library.name) + " has no place here: " + include.path;
  }
  if (include.quoted) return "not a path from the repository root: " + include.path;
  const bool system = include.path.find('/') == std::string::npos || include.path.starts_with("sys/");
  if (!system) return "an unknown library: " + include.path;
  return std::nullopt;
}

// Libraries return or throw; only the command, the benchmarks and the tests talk to a terminal or end the process.
std::optional<std::string> wrong_output(const std::string& line) {
  static const std::regex kOutput(
      R"(\b(std::(cout|cerr|clog|abort|exit|quick_exit|_Exit)\b|fmt::print|stdout\b|stderr\b)"
      R"(|v?f?printf\s*\(|f?puts\s*\(|abort\s*\(|exit\s*\())");
  std::smatch match;
  if (!std::regex_search(line, match, kOutput)) return std::nullopt;
  return "a library neither prints nor ends the process: " + match[1].str();
}

class CycleSearch {
 public:
  explicit CycleSearch(const std::vector<SourceFile>& files) {
    for (const SourceFile& file : files) {
      if (!is_cpp(file.path)) continue;
      for (const std::string& line : lines_of(blanked(file.text, Blank::comments))) {
        if (const auto include = include_of(line)) edges_[file.path].push_back(include->path);
      }
    }
  }

  std::vector<std::string> run() {
    for (const auto& edge : edges_) visit(edge.first);
    return cycles_;
  }

 private:
  void visit(const std::string& file) {
    const auto on_path = std::ranges::find(path_, file);
    if (on_path != path_.end()) {
      std::string cycle;
      for (auto step = on_path; step != path_.end(); ++step) cycle += *step + " -> ";
      cycles_.push_back(cycle + file);
      return;
    }
    if (!edges_.contains(file) || done_[file]) return;
    path_.push_back(file);
    for (const std::string& next : edges_[file]) visit(next);
    path_.pop_back();
    done_[file] = true;
  }

  std::map<std::string, std::vector<std::string>> edges_;
  std::map<std::string, bool> done_;
  std::vector<std::string> path_;
  std::vector<std::string> cycles_;
};

}  // namespace

std::vector<Violation> check_layering(const SourceFile& file, const std::vector<Room>& rooms) {
  const bool in_a_room = std::ranges::any_of(rooms, [&](const Room& room) { return file.path.starts_with(room.path); });
  if (!in_a_room || !is_cpp(file.path) || file.path.starts_with("tools/cmake/")) return {};
  const bool may_print = file.path.starts_with("tools/") || file.path.starts_with("bench/");
  const std::vector<std::string> with_literals = lines_of(blanked(file.text, Blank::comments));
  const std::vector<std::string> code = lines_of(blanked(file.text, Blank::comments_and_literals));
  std::vector<Violation> found;
  for (std::size_t i = 0; i < code.size(); ++i) {
    std::optional<std::string> what;
    if (const auto include = include_of(with_literals[i])) {
      what = wrong_include(file.path, rooms, *include);
    } else if (!may_print) {
      what = wrong_output(code[i]);
    }
    if (what) found.push_back({file.path, static_cast<int>(i) + 1, *what});
  }
  return found;
}

std::vector<std::string> include_cycles(const std::vector<SourceFile>& files) {
  return CycleSearch(files).run();
}

std::string to_string(const Violation& violation) {
  return violation.file + ":" + std::to_string(violation.line) + ": " + violation.what;
}

}  // namespace shardproof::project
