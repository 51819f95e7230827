// What every file of the repository holds to, whatever its language.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <regex>

#include "tests/project/source_tree.h"

namespace shardproof::project {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

/// Bytes that only a program reads: binary files, and the examples that a fuzzer starts from.
bool is_data(const SourceFile& file) {
  static const std::regex kExamples("tests/fuzz/[^/]+/.*");
  return file.text.find('\0') != std::string::npos || std::regex_match(file.path, kExamples);
}

/// An absolute path below a folder that belongs to one machine, or a numeric host address.
std::optional<std::string> machine_name_in(const std::string& line) {
  static const std::regex kPath(
      R"((^|[^\w.\-:/*>$}\])])(/(home|root|Users|mnt|media|srv|work|workspace|tmp|var)/[\w.]+))");
  static const std::regex kAddress(R"((^|[^\d.])(\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3})($|[^\d.]))");
  std::smatch match;
  if (std::regex_search(line, match, kPath) || std::regex_search(line, match, kAddress)) return match[2].str();
  return std::nullopt;
}

std::vector<std::string> offences(const std::vector<SourceFile>& files,
                                  const std::function<std::optional<std::string>(const std::string&)>& offence_in) {
  std::vector<std::string> found;
  for (const SourceFile& file : files) {
    if (is_data(file)) continue;
    const std::vector<std::string> lines = lines_of(file.text);
    for (std::size_t i = 0; i < lines.size(); ++i) {
      if (lines[i].size() > 2000) continue;
      if (const auto offence = offence_in(lines[i])) {
        found.push_back(file.path + ":" + std::to_string(i + 1) + ": " + *offence);
      }
    }
  }
  return found;
}

TEST(RepositoryText, NamesNoPathOrHostOfAMachine) {
  const std::vector<SourceFile> files = read_tree(SHARDPROOF_SOURCE_DIR);

  const std::vector<std::string> found = offences(files, machine_name_in);

  EXPECT_GT(files.size(), 50U);
  EXPECT_THAT(found, IsEmpty());
}

TEST(RepositoryText, HasNoTabsTrailingSpacesOrConflictMarkers) {
  std::vector<SourceFile> files = read_tree(SHARDPROOF_SOURCE_DIR);
  std::erase_if(files, [](const SourceFile& file) { return file.path == "LICENSE"; });
  static const std::regex kUntidy(R"(\t|\s$|^(<{7}|={7}|>{7})( |$))");

  const std::vector<std::string> found = offences(files, [](const std::string& line) -> std::optional<std::string> {
    if (std::regex_search(line, kUntidy)) return "untidy white space or a conflict marker";
    return std::nullopt;
  });

  EXPECT_THAT(found, IsEmpty());
}

TEST(RepositoryText, EndsEveryFileWithOneNewline) {
  std::vector<std::string> found;

  for (const SourceFile& file : read_tree(SHARDPROOF_SOURCE_DIR)) {
    if (is_data(file) || file.text.empty()) continue;
    if (!file.text.ends_with('\n') || file.text.ends_with("\n\n")) found.push_back(file.path);
  }

  EXPECT_THAT(found, IsEmpty());
}

TEST(MachineNames, AreFoundWhereTheyArePlanted) {
  const std::string slash = "/";
  const std::vector<std::string> planted{"see " + slash + "home/someone/plan.json", "\"" + slash + "tmp/out.json\"",
                                         slash + "root/x", "host 10.1" + std::string(".2.3 answers")};

  const std::vector<std::string> found = offences({{"a.txt",
                                                    [&] {
                                                      std::string text;
                                                      for (const std::string& line : planted) text += line + "\n";
                                                      return text;
                                                    }()}},
                                                  machine_name_in);

  EXPECT_THAT(found, SizeIs(planted.size()));
}

TEST(MachineNames, AreNotSeenInRelativePathsAndVersions) {
  const std::vector<SourceFile> files{
      {"a.txt", "tests/home/x\n$prefix/root/x\nversion 0.1.2\n1.2.3.4.5\nhttps://example.org/home/x\n"}};

  const std::vector<std::string> found = offences(files, machine_name_in);

  EXPECT_THAT(found, IsEmpty());
}

}  // namespace
}  // namespace shardproof::project
