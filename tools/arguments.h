// Options of the command line, each read by one strict rule.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace shardproof::tools {

/// Decimal digits, without sign (but for a minus where `least` is below 0), leading zeros or spaces, within
/// [least, most]. Throws UsageError (usage_error.h) that names the flag, the text and the range.
std::int64_t parse_whole(std::string_view flag, std::string_view text, std::int64_t least, std::int64_t most);
/// Of 64 bits: a seed.
std::uint64_t parse_seed(std::string_view flag, std::string_view text);
/// A finite decimal number above 0.
double parse_positive(std::string_view flag, std::string_view text);

struct WholeRange {
  std::int64_t least = 0;
  std::int64_t most = 0;
};

/// Options that parse_whole, parse_seed and parse_positive read. The value is a default, which help shows, or is not
/// there until it is given.
template <class Value>
CLI::Option* add_whole(CLI::App& command, const std::string& flag, Value& value, WholeRange range,
                       const std::string& description);
CLI::Option* add_seed(CLI::App& command, const std::string& flag, std::optional<std::uint64_t>& value,
                      const std::string& description);
CLI::Option* add_positive(CLI::App& command, const std::string& flag, std::optional<double>& value,
                          const std::string& description);
/// --threads N: 0 until it is given. No result depends on it, and threads beyond several a core only wait for one
/// another (1,024 on two cores took twenty times as long as two): those are left out, which is said.
CLI::Option* add_threads(CLI::App& command, int& threads);

/// Has every option and argument of every subcommand refuse an empty value: a variable that is not set, which must
/// drop no gate and no output. Called when all are there.
void refuse_empty_values(CLI::App& app);
/// The same of `--flag=`, after which the next word would be taken for the value. Throws UsageError.
void refuse_empty_values(int argc, const char* const* argv);

}  // namespace shardproof::tools
