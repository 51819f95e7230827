// JUnit XML, as continuous-integration systems read it: a suite a verification, a case a tap.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "emu/judge/report.h"
#include "emu/report/baseline.h"

namespace shardproof {

struct JunitCase {
  std::string classname;
  std::string name;
  double seconds = 0;
  /// A failure is a check that did not hold; an error, a check that could not be made.
  enum class Outcome { passed, failure, error } outcome = Outcome::passed;
  std::string type;     ///< one word: "mismatch", "missing", "deadlock", "invalid", "inconclusive", "changed"
  std::string message;  ///< one line
  std::string text;     ///< more of it; may be empty
};

struct JunitSuite {
  std::string name;
  std::vector<std::pair<std::string, std::string>> properties;
  std::vector<JunitCase> cases;
};

/// The document. Characters that XML cannot hold, and bytes that are not UTF-8, become U+FFFD.
std::string junit_xml(const std::vector<JunitSuite>& suites);

/// A case for each tap; a mismatch and a missing tap are failures, an inconclusive one an error, the first divergence
/// with its message. What stopped the run before its taps (an invalid plan, a deadlock), and why a check is vacuous, is
/// an error of its own case. What was not judged of a dump is no case.
JunitSuite junit_suite(const VerifyReport& report);

/// The case of a comparison with a baseline.
JunitCase junit_case(const Baseline& recorded, const std::optional<BaselineChange>& change);

}  // namespace shardproof
