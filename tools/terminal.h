// Text for people: colours where they are wanted, tables that line up.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace shardproof::tools {

/// Standard output (diagnostics: standard error) is a terminal.
bool stdout_is_terminal();
bool stderr_is_terminal();

enum class Tone { plain, good, bad, warning, dim, bold };

/// The text in the tone's colour, if standard output is a terminal and NO_COLOR is not set.
std::string toned(std::string_view text, Tone tone);

/// Rows of cells, each column as wide as its widest cell; the first `left` columns are flush left, the rest flush
/// right. The first row is the head.
std::string table(const std::vector<std::vector<std::string>>& rows, std::size_t left = 1);

/// "1,234,567".
std::string with_thousands(long long value);
/// "1.5 GB", in powers of 1000.
std::string human_bytes(double bytes);

}  // namespace shardproof::tools
