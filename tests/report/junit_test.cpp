#include "emu/report/junit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace shardproof {
namespace {

using ::testing::HasSubstr;

VerifyReport passing_report() {
  VerifyReport report;
  report.verdict = Verdict::pass;
  report.plan.name = "small";
  report.taps = {{.name = "embedding", .verdict = TapVerdict::pass, .max_error = 0, .bound = 1e-6},
                 {.name = "layer.0.attention.output", .verdict = TapVerdict::pass, .max_error = 1e-7, .bound = 1e-6},
                 {.name = "logits", .verdict = TapVerdict::pass, .max_error = 2e-7, .bound = 1e-6}};
  report.reference_seconds = 1;
  report.sharded_seconds = 2;
  return report;
}

TEST(JunitXml, IsExactlyThisForOneSuite) {
  const JunitSuite suite{
      .name = "s",
      .properties = {{"seed", "1"}},
      .cases = {{.classname = "p", .name = "a", .seconds = 0.5, .type = {}, .message = {}, .text = {}},
                {.classname = "p",
                 .name = "b",
                 .seconds = 0.25,
                 .outcome = JunitCase::Outcome::failure,
                 .type = "mismatch",
                 .message = "1 < 2",
                 .text = "more"}}};

  const std::string xml = junit_xml({suite});

  EXPECT_EQ(xml, R"(<?xml version="1.0" encoding="UTF-8"?>
<testsuites>
  <testsuite name="s" tests="2" failures="1" errors="0" skipped="0" time="0.750000">
    <properties>
      <property name="seed" value="1"/>
    </properties>
    <testcase classname="p" name="a" time="0.500000"/>
    <testcase classname="p" name="b" time="0.250000">
      <failure type="mismatch" message="1 &lt; 2">more</failure>
    </testcase>
  </testsuite>
</testsuites>
)");
}

TEST(JunitXml, EscapesWhatXmlCannotHold) {
  const auto name = [](const std::string& text) {
    const std::string xml = junit_xml({{.name = text, .properties = {}, .cases = {}}});
    const std::size_t begin = xml.find("name=\"") + 6;
    return xml.substr(begin, xml.find("\" tests") - begin);
  };
  const std::string replacement = "\xEF\xBF\xBD";

  EXPECT_EQ(name("a&b<c>\"d'"), "a&amp;b&lt;c&gt;&quot;d'");
  EXPECT_EQ(name("a\nb\t"), "a&#10;b&#9;");
  EXPECT_EQ(name(std::string("\0\x1b", 2)), replacement + replacement);
  EXPECT_EQ(name("\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"), "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
  EXPECT_EQ(name("\xC3"), replacement);                                      // cut off
  EXPECT_EQ(name("\xC0\x80"), replacement + replacement);                    // overlong
  EXPECT_EQ(name("\xED\xA0\x80"), replacement + replacement + replacement);  // a surrogate
  EXPECT_EQ(name("\xEF\xBF\xBF"), replacement + replacement + replacement);  // U+FFFF
}

TEST(JunitSuite, HasAPassingCaseForEachTap) {
  const JunitSuite suite = junit_suite(passing_report());

  ASSERT_EQ(suite.cases.size(), 3U);
  for (const JunitCase& test : suite.cases) {
    EXPECT_EQ(test.outcome, JunitCase::Outcome::passed);
    EXPECT_EQ(test.seconds, 1.0);
  }
  EXPECT_EQ(suite.cases[1].name, "layer.0.attention.output");
}

TEST(JunitSuite, FailsTheFirstDivergenceWithItsMessageAndTheTapsAfterIt) {
  VerifyReport report = passing_report();
  report.verdict = Verdict::mismatch;
  report.taps[1].verdict = TapVerdict::mismatch;
  report.taps[2].verdict = TapVerdict::mismatch;
  report.taps[2].max_error = std::numeric_limits<double>::infinity();
  report.first_divergence = Divergence{.tap = "layer.0.attention.output", .ranks = {1}, .message = "rank 1\ngot 2"};

  const JunitSuite suite = junit_suite(report);

  EXPECT_EQ(suite.cases[0].outcome, JunitCase::Outcome::passed);
  EXPECT_EQ(suite.cases[1].outcome, JunitCase::Outcome::failure);
  EXPECT_EQ(suite.cases[1].message, "rank 1");
  EXPECT_EQ(suite.cases[1].text, "rank 1\ngot 2");
  EXPECT_EQ(suite.cases[2].outcome, JunitCase::Outcome::failure);
}

TEST(JunitSuite, FailsATapWhoseReplicasDiffer) {
  VerifyReport report = passing_report();
  report.verdict = Verdict::mismatch;
  report.taps[2].verdict = TapVerdict::mismatch;
  report.taps[2].replicas_equal = false;

  EXPECT_THAT(junit_suite(report).cases[2].message, HasSubstr("replicas differ"));
}

TEST(JunitSuite, ReadsTheVerdictOfATapAndNotItsFigures) {
  VerifyReport report = passing_report();
  report.verdict = Verdict::mismatch;
  report.taps[0].max_error = 1;
  report.taps[1].verdict = TapVerdict::missing;
  report.taps[2].verdict = TapVerdict::inconclusive;

  const JunitSuite suite = junit_suite(report);

  EXPECT_EQ(suite.cases[0].outcome, JunitCase::Outcome::passed);
  EXPECT_EQ(suite.cases[1].outcome, JunitCase::Outcome::failure);
  EXPECT_EQ(suite.cases[1].type, "missing");
  EXPECT_EQ(suite.cases[2].outcome, JunitCase::Outcome::error);
  EXPECT_EQ(suite.cases[2].type, "inconclusive");
}

TEST(JunitSuite, ReportsWhatStoppedTheRunAsErrors) {
  VerifyReport deadlock = passing_report(), invalid = passing_report();
  deadlock.verdict = Verdict::deadlock;
  deadlock.stall = Stall{.text = "ranks 0 and 1 wait", .graph = {}, .calls = {}, .cause = {}};
  deadlock.taps.clear();
  invalid.verdict = Verdict::invalid;
  invalid.problems = {{"parallel.tp", "3 does not divide 16"}};
  invalid.taps.clear();

  const std::string of_deadlock = junit_xml({junit_suite(deadlock)}), of_invalid = junit_xml({junit_suite(invalid)});

  EXPECT_THAT(of_deadlock, HasSubstr("<error type=\"deadlock\" message=\"ranks 0 and 1 wait\">"));
  EXPECT_THAT(of_invalid, HasSubstr("name=\"parallel.tp\""));
  EXPECT_THAT(of_invalid, HasSubstr("errors=\"1\""));
}

TEST(JunitCase, FailsWhereATapChangedAndErrsWhereNothingCanBeCompared) {
  const Baseline baseline{.plan = "small", .taps = {}};

  const JunitCase same = junit_case(baseline, std::nullopt);
  const JunitCase changed = junit_case(baseline, BaselineChange{.tap = "logits", .message = "bits changed"});
  const JunitCase other = junit_case(baseline, BaselineChange{.tap = "", .message = "record a new one"});

  EXPECT_EQ(same.outcome, JunitCase::Outcome::passed);
  EXPECT_EQ(changed.outcome, JunitCase::Outcome::failure);
  EXPECT_EQ(changed.message, "logits: bits changed");
  EXPECT_EQ(other.outcome, JunitCase::Outcome::error);
}

}  // namespace
}  // namespace shardproof
