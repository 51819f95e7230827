// What reaches a terminal.
#include "tools/terminal.h"

#include <gtest/gtest.h>

#include <string>

namespace shardproof::tools {
namespace {

TEST(FitForTerminal, KeepsTextInAnyLanguage) {
  const std::string text = "a\tb\n  \xC3\xA9 \xE6\xBC\xA2 \xF0\x9F\x90\x8B <&\"\\>";

  EXPECT_EQ(fit_for_terminal(text), text);
}

TEST(FitForTerminal, EscapesWhatMovesHidesOrReordersText) {
  EXPECT_EQ(fit_for_terminal("\x1b[2J\x1b]0;title\x07"), "\\u001b[2J\\u001b]0;title\\u0007");
  EXPECT_EQ(fit_for_terminal("a\rb\bc\x7f"), "a\\u000db\\u0008c\\u007f");
  EXPECT_EQ(fit_for_terminal(std::string("\0", 1)), "\\u0000");
  EXPECT_EQ(fit_for_terminal("\xC2\x9B"
                             "31m"),
            "\\u009b31m");
  EXPECT_EQ(fit_for_terminal("\xE2\x80\xAE"
                             "x\xE2\x81\xA6"),
            "\\u202ex\\u2066");
}

TEST(FitForTerminal, EscapesBytesThatAreNoUtf8) {
  EXPECT_EQ(fit_for_terminal("\x9B"), "\\x9b");
  EXPECT_EQ(fit_for_terminal("\xC3"), "\\xc3");
  EXPECT_EQ(fit_for_terminal("\xC0\x9B"), "\\xc0\\x9b");
  EXPECT_EQ(fit_for_terminal("\xE0\x80\x80"), "\\xe0\\x80\\x80");
  EXPECT_EQ(fit_for_terminal("\xED\xA0\x80"), "\\xed\\xa0\\x80");
  EXPECT_EQ(fit_for_terminal("\xF4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");
}

TEST(OneLine, EscapesNewlinesToo) {
  EXPECT_EQ(one_line("p\nalgebra   pass\t"), "p\\u000aalgebra   pass\\u0009");
}

// The tests' standard output is no terminal.
TEST(Toned, IsPlainWhereThereIsNoTerminal) {
  if (stdout_is_terminal()) GTEST_SKIP();

  EXPECT_EQ(toned("word", Tone::bad), "word");
  EXPECT_EQ(fit_for_terminal("\x1b[31m"), "\\u001b[31m");
}

}  // namespace
}  // namespace shardproof::tools
