#include "emu/report/junit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "emu/judge/digits.h"

namespace shardproof {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

/// The bytes of the UTF-8 character at the start of `text` if it is one that XML 1.0 may hold, else 0.
std::size_t character_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i])); };
  const std::uint32_t first = byte(0);
  if (first < 0x80) return first >= 0x20 || first == '\t' || first == '\n' || first == '\r' ? 1 : 0;
  const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < length) return 0;
  std::uint32_t code = first & (0xFFu >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0u) != 0x80u) return 0;
    code = code << 6 | (byte(i) & 0x3Fu);
  }
  constexpr std::uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool valid = code >= kLeast[length] && code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF) && code != 0xFFFE &&
                     code != 0xFFFF;
  return valid ? length : 0;
}

std::string xml_escaped(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t length = character_length(text);
    const std::string_view character = text.substr(0, std::max<std::size_t>(length, 1));
    if (length == 0) {
      out += kReplacement;
    } else if (character == "&") {
      out += "&amp;";
    } else if (character == "<") {
      out += "&lt;";
    } else if (character == ">") {
      out += "&gt;";
    } else if (character == "\"") {
      out += "&quot;";
    } else if (character == "\n" || character == "\r" || character == "\t") {
      // Unescaped, a reader would turn them into spaces inside an attribute.
      out += fmt::format("&#{};", static_cast<int>(character[0]));
    } else {
      out += character;
    }
    text.remove_prefix(character.size());
  }
  return out;
}

std::string_view element_of(JunitCase::Outcome outcome) {
  return outcome == JunitCase::Outcome::error ? "error" : "failure";
}

std::string case_xml(const JunitCase& test) {
  std::string out = fmt::format("    <testcase classname=\"{}\" name=\"{}\" time=\"{:.6f}\"",
                                xml_escaped(test.classname), xml_escaped(test.name), test.seconds);
  if (test.outcome == JunitCase::Outcome::passed) return out + "/>\n";
  const std::string_view element = element_of(test.outcome);
  out += fmt::format(">\n      <{} type=\"{}\" message=\"{}\">{}</{}>\n    </testcase>\n", element,
                     xml_escaped(test.type), xml_escaped(test.message), xml_escaped(test.text), element);
  return out;
}

/// Divides what is said of an error into the line that lists show and the whole.
void describe_outcome(JunitCase& test, JunitCase::Outcome outcome, std::string type, const std::string& message) {
  test.outcome = outcome;
  test.type = std::move(type);
  test.message = message.substr(0, message.find('\n'));
  if (test.message != message) test.text = message;
}

JunitCase error_case(const std::string& plan, std::string name, Verdict verdict, const std::string& message) {
  JunitCase test{.classname = plan, .name = std::move(name), .type = {}, .message = {}, .text = {}};
  describe_outcome(test, JunitCase::Outcome::error, to_string(verdict), message);
  return test;
}

/// What is said of a tap that is not the first divergence.
std::string tap_message(const TapReport& tap) {
  if (tap.verdict == TapVerdict::missing) return "ranks produced none of it, or not all";
  const auto [error, bound] = told_apart(tap.max_error, tap.bound, 3);
  return fmt::format("error {}, bound {}{}", error, bound, tap.replicas_equal ? "" : ", replicas differ");
}

JunitCase tap_case(const std::string& plan, const TapReport& tap, const std::optional<Divergence>& first) {
  JunitCase test{.classname = plan, .name = tap.name, .type = {}, .message = {}, .text = {}};
  if (tap.verdict == TapVerdict::pass) return test;
  const bool diverges = first && first->tap == tap.name;
  describe_outcome(test,
                   tap.verdict == TapVerdict::inconclusive ? JunitCase::Outcome::error : JunitCase::Outcome::failure,
                   to_string(tap.verdict), diverges ? first->message : tap_message(tap));
  return test;
}

}  // namespace

std::string junit_xml(const std::vector<JunitSuite>& suites) {
  std::string out = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n";
  for (const JunitSuite& suite : suites) {
    const auto count = [&](JunitCase::Outcome outcome) {
      return std::ranges::count(suite.cases, outcome, &JunitCase::outcome);
    };
    double seconds = 0;
    for (const JunitCase& test : suite.cases) seconds += test.seconds;
    out += fmt::format(
        "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"0\" time=\"{:.6f}\">\n",
        xml_escaped(suite.name), suite.cases.size(), count(JunitCase::Outcome::failure),
        count(JunitCase::Outcome::error), seconds);
    if (!suite.properties.empty()) {
      out += "    <properties>\n";
      for (const auto& [name, value] : suite.properties) {
        out += fmt::format("      <property name=\"{}\" value=\"{}\"/>\n", xml_escaped(name), xml_escaped(value));
      }
      out += "    </properties>\n";
    }
    for (const JunitCase& test : suite.cases) out += case_xml(test);
    out += "  </testsuite>\n";
  }
  return out + "</testsuites>\n";
}

JunitSuite junit_suite(const VerifyReport& report) {
  const std::string plan = report.plan.name.empty() ? "plan" : report.plan.name;
  JunitSuite suite{.name = fmt::format("shardproof verify {}", plan),
                   .properties = {{"format", std::string(ops::to_string(report.format))},
                                  {"ranks", std::to_string(report.plan.world())},
                                  {"seed", std::to_string(report.plan.workload.seed)},
                                  {"threads", std::to_string(report.threads)},
                                  {"verdict", to_string(report.verdict)}},
                   .cases = {}};
  const double seconds = report.seconds();
  for (const TapReport& tap : report.taps) {
    if (tap.verdict == TapVerdict::not_judged) continue;
    JunitCase& test = suite.cases.emplace_back(tap_case(plan, tap, report.first_divergence));
    test.seconds = seconds / static_cast<double>(report.taps.size());
  }
  if (report.stall) suite.cases.push_back(error_case(plan, "run", report.verdict, report.stall->text));
  for (const Problem& problem : report.problems) {
    suite.cases.push_back(error_case(plan, problem.field, report.verdict, problem.message));
  }
  return suite;
}

JunitCase junit_case(const Baseline& recorded, const std::optional<BaselineChange>& change) {
  JunitCase test{.classname = recorded.plan, .name = "baseline", .type = {}, .message = {}, .text = {}};
  if (change) {
    const bool comparable = !change->tap.empty();
    describe_outcome(test, comparable ? JunitCase::Outcome::failure : JunitCase::Outcome::error, "changed",
                     comparable ? fmt::format("{}: {}", change->tap, change->message) : change->message);
  }
  return test;
}

}  // namespace shardproof
