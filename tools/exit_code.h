// The exit codes of the command.
#pragma once

namespace shardproof {
enum class Verdict;
}

namespace shardproof::tools {

inline constexpr int kPass = 0;
inline constexpr int kMismatch = 1;  ///< a mismatch, or a refuted claim
inline constexpr int kUsage = 2;     ///< usage, or an invalid plan
inline constexpr int kDeadlock = 3;  ///< a deadlock, or a collective mismatch
inline constexpr int kInconclusive = 4;
inline constexpr int kInternal = 70;

/// What a verdict ends the command with.
int exit_code_of(Verdict verdict);

}  // namespace shardproof::tools
