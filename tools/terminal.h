// Text for people: colours where they are wanted, tables that line up.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace shardproof::tools {

/// Standard output is a terminal.
bool stdout_is_terminal();
/// Standard error is a terminal on which a line can be rewritten.
bool progress_can_be_shown();

/// The text as a terminal may show it: control characters other than newlines and tabs, marks that turn the direction
/// of writing, and bytes that are no UTF-8 are escaped (\u001b, \xff). Tones stay.
std::string fit_for_terminal(std::string_view text);
/// The same with newlines and tabs escaped too: a name in a line of its own text.
std::string one_line(std::string_view text);

/// Onto standard output, fit for a terminal. Throws OutputError (output_error.h) where it cannot be written.
void say(std::string_view text);
/// A diagnostic on standard error: "shardproof: ", the text, and a newline.
void complain(std::string_view text);

enum class Tone { plain, good, bad, warning, dim, bold };

/// The text in the tone's colour, if standard output is a terminal that knows colours and NO_COLOR is not set.
std::string toned(std::string_view text, Tone tone);

/// Rows of cells, each column as wide as its widest cell; the first `left` columns are flush left, the rest flush
/// right. The first row is the head.
std::string table(const std::vector<std::vector<std::string>>& rows, std::size_t left = 1);

/// "1,234,567".
std::string with_thousands(long long value);
/// "1.5 GB", in powers of 1000.
std::string human_bytes(double bytes);

}  // namespace shardproof::tools
