// How far a long run is.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

namespace shardproof::tools {

/// A line on standard error that is rewritten as work completes, and gone when it is done; only on a terminal that can
/// rewrite a line. Not for several threads at once.
class ProgressLine {
 public:
  /// Of so many pieces of work, about equal; 0 where nobody knows.
  explicit ProgressLine(double total) : total_(total) {}
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  ~ProgressLine() { clear(); }

  /// So many are complete, and `what` is under way or was last. After a moment, the time that is left is told from
  /// them.
  void show(std::string_view what, double done);
  /// One more is complete.
  void complete_one(std::string_view what) { show(what, done_ + 1); }
  void clear();

 private:
  double total_;
  double done_ = 0;
  bool shown_ = false;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// "3 s", "5 min", "2.5 h": of a rough number.
std::string rough_time(double seconds);

}  // namespace shardproof::tools
