// The whole command: whatever its words and the files that they name, it ends in time with an exit code of its own,
// leaves nothing behind, and where it refuses, every file as it was.
//
// The input is text: the words of the command line in the first line, then files, each behind a line "== name". Words
// and names hold no '/': nothing outside the folder of the run is written.
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "emu/plan/load.h"
#include "tools/command_line.h"
#include "tools/exit_code.h"

namespace {

namespace fs = std::filesystem;
using namespace shardproof;

struct Input {
  std::vector<std::string> words;
  std::map<std::string, std::string> files;
};

void require(bool holds) {
  if (!holds) std::abort();
}

bool is_plain_name(std::string_view name) {
  return !name.empty() && name.size() <= 20 && name[0] != '.' &&
         name.find_first_of(std::string_view("/\0", 2)) == std::string_view::npos;
}

Input read_input(std::string_view text) {
  Input input;
  std::istringstream words{std::string(text.substr(0, text.find('\n')))};
  // Two quotes are the empty word.
  for (std::string word; words >> word && input.words.size() < 16;) {
    // As an argument is: up to its first NUL.
    input.words.push_back(word == "''" ? "" : word.c_str());
  }
  constexpr std::string_view kBegin = "\n== ";
  for (std::size_t at = text.find(kBegin); at != std::string_view::npos && input.files.size() < 4;) {
    const std::size_t name_begin = at + kBegin.size();
    const std::size_t name_end = std::min(text.find('\n', name_begin), text.size());
    const std::string name(text.substr(name_begin, name_end - name_begin));
    at = text.find(kBegin, name_end);
    const std::size_t end = std::min(at, text.size());
    if (is_plain_name(name) && end > name_end) input.files[name] = text.substr(name_end + 1, end - name_end - 1);
  }
  return input;
}

/// The largest number among the words, or 0.
double largest_number(const std::vector<std::string>& words) {
  double largest = 0;
  for (const std::string& word : words) {
    const std::size_t digit = word.find_first_of("0123456789");
    if (digit != std::string::npos) largest = std::max(largest, std::strtod(word.c_str() + digit, nullptr));
  }
  return largest;
}

/// About how many multiplications a run of the plan takes.
double cost_of(const Plan& plan, double largest) {
  const double tokens =
      std::max(static_cast<double>(plan.workload.tokens()), 1.0) * std::max(largest, 1.0) * std::max(largest, 1.0);
  double cost = static_cast<double>(plan.model.vocab_size) * static_cast<double>(plan.model.hidden_size);
  for (const LayerSpec& layer : plan.model.layers.kinds()) {
    const double width = static_cast<double>(layer.attention.heads * layer.attention.head_dim + plan.model.hidden_size);
    cost += static_cast<double>(plan.model.layers.size()) * width *
            (width + 3.0 * static_cast<double>(layer.feed_forward.top_k * layer.feed_forward.intermediate_size));
  }
  return tokens * cost * plan.world();
}

/// What would only take long.
bool is_slow(const Input& input) {
  const auto has = [&](std::string_view word) { return std::ranges::find(input.words, word) != input.words.end(); };
  // Timing takes its time, and drawing is another program's work; the embedded plan is proven by other tests.
  if (has("collectives") || has("svg") || input.files.empty()) return true;
  const double largest = largest_number(input.words);
  if (largest > 64 && !has("--seed") && !has("--schedule")) return true;
  for (const auto& [name, text] : input.files) {
    const LoadedPlan loaded = parse_plan(text, name, ".");
    if (loaded.plan && cost_of(*loaded.plan, std::min(largest, 64.0)) > (has("mutate") ? 1e6 : 1e7)) return true;
  }
  // Without a plan that is named, not as what a flag takes, the embedded one would run.
  const auto names_plan = [&] {
    for (std::size_t i = 1; i < input.words.size(); ++i) {
      if (input.files.contains(input.words[i]) && !input.words[i - 1].starts_with('-')) return true;
    }
    return false;
  };
  return (has("verify") || has("mutate") || has("check") || has("time")) && !names_plan();
}

std::map<std::string, std::string> files_in(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    std::ostringstream text;
    text << std::ifstream(entry.path(), std::ios::binary).rdbuf();
    files[entry.path().filename().string()] = text.str();
  }
  return files;
}

/// The folder in which every run begins, empty.
const fs::path& folder() {
  static const fs::path made = [] {
    std::error_code error;
    const fs::path parent = fs::is_directory("/dev/shm", error) ? "/dev/shm" : fs::temp_directory_path();
    fs::path path = parent / ("shardproof_fuzz_" + std::to_string(getpid()));
    fs::create_directories(path);
    fs::current_path(path);
    return path;
  }();
  return made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const Input input = read_input({reinterpret_cast<const char*>(data), size});
  const auto writes_elsewhere = [](const std::string& word) { return word.find('/') != std::string::npos; };
  if (std::ranges::any_of(input.words, writes_elsewhere) || is_slow(input)) return -1;
  for (const auto& [name, text] : input.files) std::ofstream(folder() / name, std::ios::binary) << text;
  std::vector<const char*> words{"shardproof"};
  for (const std::string& word : input.words) words.push_back(word.c_str());
  words.push_back(nullptr);

  const int exit_code = tools::run_command(static_cast<int>(words.size()) - 1, words.data());

  require(exit_code >= 0 && exit_code <= tools::kInconclusive);
  const std::map<std::string, std::string> after = files_in(folder());
  if (exit_code == tools::kUsage) {
    for (const auto& [name, text] : input.files) require(after.contains(name) && after.at(name) == text);
  }
  for (const auto& [name, text] : after) {
    require(!name.starts_with(".shardproof-"));
    fs::remove(folder() / name);
  }
  return 0;
}
