// A baseline: what each tap of a run was, small enough to keep in a repository, and the comparison of a later run.
//
// The document ends with a digest of all that stands before it, so that none of it can be edited unnoticed.
//
// In `exact` a tap is its bits, so a baseline holds on every compiler, instruction set and valid plan of the same model
// and workload. In a float format bits depend on the machine, and only the norm is compared.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "emu/judge/report.h"
#include "emu/plan/plan.h"
#include "ops/format.h"

namespace shardproof {

inline constexpr std::uintmax_t kMaxBaselineBytes = 16u << 20;

struct BaselineTap {
  std::string name;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  double norm = 0;                    ///< square root of the sum of squares, summed row by row
  std::optional<std::uint64_t> hash;  ///< of the bits, row-major; in `exact` only

  bool operator==(const BaselineTap&) const = default;
};

struct Baseline {
  std::string plan;                   ///< its name, for people
  std::string weights = "generated";  ///< where they came from
  ops::Format format = ops::Format::exact;
  std::uint64_t inputs = 0;       ///< hash_inputs() of the plan that was run
  std::vector<BaselineTap> taps;  ///< in program order

  bool operator==(const Baseline&) const = default;
};

/// The baseline of a run: its taps' shapes, norms and, in `exact`, hashes.
Baseline baseline_of(const VerifyReport& report);

/// A hash of everything that the baseline says.
std::uint64_t digest_of(const Baseline& baseline);

/// A hash of what determines the taps: the model and the workload, and in a float format the parallel degrees too,
/// since they decide the order of sums.
std::uint64_t hash_inputs(const Plan& plan, ops::Format format);

/// The JSON document, version 1 ("shardproof.baseline/1").
std::string to_json(const Baseline& baseline);

struct LoadedBaseline {
  std::optional<Baseline> baseline;  ///< empty exactly when there are problems
  std::vector<Problem> problems;
};

/// Refuses unknown and duplicate keys, wrong types, absurd sizes, a digest of something else, and a file over
/// kMaxBaselineBytes. Baselines of 0.2 and before have no digest.
LoadedBaseline load_baseline(const std::filesystem::path& path);
/// `name` stands for the text in messages.
LoadedBaseline parse_baseline(std::string_view text, std::string_view name);

/// The first thing that is not as it was recorded.
struct BaselineChange {
  std::string tap;      ///< empty when the runs cannot be compared at all
  std::string message;  ///< what was recorded, what it is now
};

/// Relative difference of a norm that is allowed: 16 u of the format; in `exact`, where the hash decides, of the
/// float64 in which the norm is summed.
double norm_tolerance(ops::Format format);

std::optional<BaselineChange> first_change(const Baseline& recorded, const Baseline& now);

}  // namespace shardproof
