#include "tools/terminal.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tools/output_error.h"

namespace shardproof::tools {
namespace {

/// Escape sequences mean something to it.
bool terminal_is_smart() {
  const char* kind = std::getenv("TERM");
  return kind != nullptr && *kind != '\0' && std::strcmp(kind, "dumb") != 0;
}

bool wants_colour() {
  static const bool wanted = [] {
    const char* no_colour = std::getenv("NO_COLOR");
    return stdout_is_terminal() && terminal_is_smart() && (no_colour == nullptr || *no_colour == '\0');
  }();
  return wanted;
}

const char* escape_of(Tone tone) {
  switch (tone) {
    case Tone::good:
      return "\x1b[32m";
    case Tone::bad:
      return "\x1b[31m";
    case Tone::warning:
      return "\x1b[33m";
    case Tone::dim:
      return "\x1b[2m";
    case Tone::bold:
      return "\x1b[1m";
    case Tone::plain:
      break;
  }
  return "";
}

constexpr const char* kReset = "\x1b[0m";

/// How long a sequence of ours the text begins with; 0 when it is somebody else's.
std::size_t own_escape(std::string_view text) {
  if (!wants_colour()) return 0;
  if (text.starts_with(kReset)) return std::strlen(kReset);
  for (const Tone tone : {Tone::good, Tone::bad, Tone::warning, Tone::dim, Tone::bold}) {
    if (text.starts_with(escape_of(tone))) return std::strlen(escape_of(tone));
  }
  return 0;
}

struct Character {
  char32_t code = 0;
  std::size_t bytes = 0;  ///< 0: no UTF-8
};

Character first_character(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const std::size_t bytes = lead >= 0xf0 && lead < 0xf5   ? 4
                            : lead >= 0xe0 && lead < 0xf0 ? 3
                            : lead >= 0xc2 && lead < 0xe0 ? 2
                                                          : 0;
  if (bytes == 0 || bytes > text.size()) return {};
  char32_t code = lead & (0x7fu >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xc0u) != 0x80) return {};
    code = code << 6 | (byte(i) & 0x3fu);
  }
  const bool overlong = (bytes == 3 && code < 0x800) || (bytes == 4 && code < 0x10000);
  if (overlong || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return {};
  return {code, bytes};
}

/// It moves, hides or reorders what stands around it.
bool is_control(char32_t code) {
  return code < 0x20 || (code >= 0x7f && code < 0xa0) || (code >= 0x200e && code <= 0x200f) ||
         (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
}

template <class Keep>
std::string escaped(std::string_view text, const Keep& keep) {
  std::string out;
  while (!text.empty()) {
    std::size_t taken = keep(text);
    if (taken > 0) {
      out += text.substr(0, taken);
    } else if (const Character first = first_character(text); first.bytes == 0) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned>(static_cast<unsigned char>(text[0])));
      taken = 1;
    } else {
      taken = first.bytes;
      out += is_control(first.code) ? fmt::format("\\u{:04x}", static_cast<unsigned>(first.code))
                                    : std::string(text.substr(0, taken));
    }
    text.remove_prefix(taken);
  }
  return out;
}

}  // namespace

bool stdout_is_terminal() {
  return isatty(STDOUT_FILENO) != 0;
}
bool progress_can_be_shown() {
  return isatty(STDERR_FILENO) != 0 && terminal_is_smart();
}

std::string fit_for_terminal(std::string_view text) {
  return escaped(text, [](std::string_view rest) {
    return rest[0] == '\n' || rest[0] == '\t' ? std::size_t{1} : own_escape(rest);
  });
}

std::string one_line(std::string_view text) {
  return escaped(text, [](std::string_view) { return std::size_t{0}; });
}

void say(std::string_view text) {
  const std::string fit = fit_for_terminal(text);
  if (std::fwrite(fit.data(), 1, fit.size(), stdout) != fit.size() || std::ferror(stdout) != 0) {
    throw OutputError(fmt::format("standard output: {}", std::strerror(errno)));
  }
}

void complain(std::string_view text) {
  const std::string line = "shardproof: " + fit_for_terminal(text) + "\n";
  // Where standard error cannot be written, nobody can be told.
  (void)std::fwrite(line.data(), 1, line.size(), stderr);
}

std::string toned(std::string_view text, Tone tone) {
  if (tone == Tone::plain || !wants_colour()) return std::string(text);
  return fmt::format("{}{}\x1b[0m", escape_of(tone), text);
}

std::string table(const std::vector<std::vector<std::string>>& rows, std::size_t left) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (std::size_t col = 0; col < row.size(); ++col) widths[col] = std::max(widths[col], row[col].size());
  }
  std::string text;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    std::string line;
    for (std::size_t col = 0; col < rows[r].size(); ++col) {
      if (col > 0) line += "  ";
      line += col < left ? fmt::format("{:<{}}", rows[r][col], widths[col])
                         : fmt::format("{:>{}}", rows[r][col], widths[col]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += "  " + (r == 0 ? toned(line, Tone::dim) : line) + "\n";
  }
  return text;
}

std::string with_thousands(long long value) {
  std::string digits = fmt::format("{}", value < 0 ? -value : value);
  for (auto at = static_cast<std::ptrdiff_t>(digits.size()) - 3; at > 0; at -= 3) {
    digits.insert(static_cast<std::size_t>(at), ",");
  }
  return (value < 0 ? "-" : "") + digits;
}

std::string human_bytes(double bytes) {
  static constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  std::size_t unit = 0;
  while (bytes >= 999.5 && unit + 1 < std::size(kUnits)) {
    bytes /= 1000;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", bytes, unit == 0 || bytes >= 99.95 ? 0 : 1, kUnits[unit]);
}

}  // namespace shardproof::tools
