#include "tools/arguments.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <type_traits>

#include "collectives/executor.h"
#include "tools/terminal.h"
#include "tools/usage_error.h"

namespace shardproof::tools {
namespace {

constexpr int kMostThreads = 1024;
constexpr int kMostThreadsOfACore = 32;
constexpr const char* kEmpty = "the value is empty (an unset variable?)";

/// "0" or digits that do not start with it.
bool is_plain_digits(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos &&
         (text.size() == 1 || text[0] != '0');
}

template <class T>
T parse(std::string_view flag, std::string_view text, T least, T most) {
  T value{};
  const bool minus = text.starts_with('-') && text != "-0";
  const bool plain = is_plain_digits(minus ? text.substr(1) : text);
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (!plain || error != std::errc{} || stop != end || value < least || value > most) {
    throw UsageError(
        fmt::format("{}: '{}' is no whole number from {} to {}, in plain digits", flag, text, least, most));
  }
  return value;
}

/// As messages name it: the long form.
std::string long_name(const std::string& flag) {
  return flag.substr(0, flag.find(','));
}

template <class Value>
void show_default(CLI::Option& option, const Value& value) {
  if constexpr (std::is_arithmetic_v<Value>) option.default_str(fmt::format("{}", value));
}

}  // namespace

std::int64_t parse_whole(std::string_view flag, std::string_view text, std::int64_t least, std::int64_t most) {
  return parse<std::int64_t>(flag, text, least, most);
}

std::uint64_t parse_seed(std::string_view flag, std::string_view text) {
  return parse<std::uint64_t>(flag, text, 0, std::numeric_limits<std::uint64_t>::max());
}

double parse_positive(std::string_view flag, std::string_view text) {
  double value = 0;
  const std::size_t whole = text.find_first_of(".eE");
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (!is_plain_digits(text.substr(0, whole)) || error != std::errc{} || stop != end || !std::isfinite(value) ||
      value <= 0) {
    throw UsageError(fmt::format("{}: '{}' is no number above 0, like 4 or 1.5", flag, text));
  }
  return value;
}

template <class Value>
CLI::Option* add_whole(CLI::App& command, const std::string& flag, Value& value, WholeRange range,
                       const std::string& description) {
  CLI::Option* const option = command.add_option_function<std::string>(
      flag,
      [&value, range, name = long_name(flag)](const std::string& text) {
        if constexpr (std::is_arithmetic_v<Value>) {
          value = static_cast<Value>(parse_whole(name, text, range.least, range.most));
        } else {
          value = static_cast<typename Value::value_type>(parse_whole(name, text, range.least, range.most));
        }
      },
      description);
  show_default(*option, value);
  return option->type_name("N");
}

template CLI::Option* add_whole(CLI::App&, const std::string&, int&, WholeRange, const std::string&);
template CLI::Option* add_whole(CLI::App&, const std::string&, std::int64_t&, WholeRange, const std::string&);
template CLI::Option* add_whole(CLI::App&, const std::string&, std::size_t&, WholeRange, const std::string&);
template CLI::Option* add_whole(CLI::App&, const std::string&, std::optional<std::int64_t>&, WholeRange,
                                const std::string&);

CLI::Option* add_seed(CLI::App& command, const std::string& flag, std::optional<std::uint64_t>& value,
                      const std::string& description) {
  return command
      .add_option_function<std::string>(
          flag, [&value, name = long_name(flag)](const std::string& text) { value = parse_seed(name, text); },
          description)
      ->type_name("N");
}

CLI::Option* add_positive(CLI::App& command, const std::string& flag, std::optional<double>& value,
                          const std::string& description) {
  return command
      .add_option_function<std::string>(
          flag, [&value, name = long_name(flag)](const std::string& text) { value = parse_positive(name, text); },
          description)
      ->type_name("X");
}

CLI::Option* add_threads(CLI::App& command, int& threads) {
  return command
      .add_option_function<std::string>(
          "--threads",
          [&threads](const std::string& text) {
            const int asked = static_cast<int>(parse_whole("--threads", text, 1, kMostThreads));
            threads = std::min(asked, kMostThreadsOfACore * available_threads());
            if (threads == asked) return;
            complain(fmt::format("--threads: {} would only wait for one another; {} run, {} a core", asked, threads,
                                 kMostThreadsOfACore));
          },
          "Threads to run on (default: all that the process may use)")
      ->type_name("N");
}

void refuse_empty_values(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_expected_max() == 0 || option->get_type_size_max() == 0) continue;  // a flag
    option->check([](const std::string& text) { return text.empty() ? std::string(kEmpty) : std::string(); });
  }
  for (CLI::App* command : app.get_subcommands({})) refuse_empty_values(*command);
}

void refuse_empty_values(int argc, const char* const* argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--") return;
    if (word.starts_with("--") && word.ends_with('=') && word.find('=') == word.size() - 1) {
      throw UsageError(fmt::format("{}: {}", word.substr(0, word.size() - 1), kEmpty));
    }
  }
}

}  // namespace shardproof::tools
