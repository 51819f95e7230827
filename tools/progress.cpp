#include "tools/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "tools/interrupt.h"
#include "tools/terminal.h"

namespace shardproof::tools {

void ProgressLine::show(std::string_view what, double done) {
  constexpr double kTellsFrom = 2;  // seconds; before, the first pieces say little
  done_ = done;
  if (!progress_can_be_shown()) return;
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  std::string left;
  if (seconds > kTellsFrom && total_ > 0 && done_ > 0) {
    left = fmt::format(", about {} left", rough_time(seconds * std::max(0.0, total_ - done_) / done_));
  }
  progress_is_shown(true);
  fmt::print(stderr, "\r\x1b[K  {}{}", one_line(what), left);
  std::fflush(stderr);
  shown_ = true;
}

void ProgressLine::clear() {
  if (!shown_) return;
  fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
  progress_is_shown(false);
  shown_ = false;
}

std::string rough_time(double seconds) {
  if (seconds < 99.5) return fmt::format("{:.0f} s", seconds);
  if (seconds < 99.5 * 60) return fmt::format("{:.0f} min", seconds / 60);
  return fmt::format("{:.1f} h", seconds / 3600);
}

}  // namespace shardproof::tools
