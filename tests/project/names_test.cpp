// Comments and documents name files that there are.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "tests/project/source_tree.h"

namespace shardproof::project {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

/// Paths of files, and of the folders that they lie in, with and without the '/' at their end.
class Tree {
 public:
  explicit Tree(const std::vector<SourceFile>& files) {
    for (const SourceFile& file : files) {
      paths_.insert(file.path);
      for (std::size_t slash = file.path.find('/'); slash != std::string::npos;
           slash = file.path.find('/', slash + 1)) {
        names_.insert(file.path.substr(slash + 1));
        paths_.insert(file.path.substr(0, slash));
        paths_.insert(file.path.substr(0, slash + 1));
      }
      names_.insert(file.path);
    }
  }

  bool has_path(const std::string& path) const { return paths_.contains(path); }
  /// The path of a file, or the end of one: "mesh.h", "plan/mesh.h".
  bool has_file(const std::string& name) const { return names_.contains(name); }

 private:
  std::set<std::string> paths_, names_;
};

std::string place_of(const SourceFile& file, std::size_t line, const std::string& name) {
  return file.path + ":" + std::to_string(line + 1) + ": " + name;
}

/// Names of C++ files in the comments of a C++ file; those in quotes are examples, those in angles are the system's.
std::vector<std::string> lost_in_comments(const SourceFile& file, const Tree& tree) {
  static const std::regex kName(R"((^|[^\w/.<"*{-])([a-z0-9_]+(/[a-z0-9_]+)*\.(h|cpp))\b)");
  static const std::regex kQuoted(R"("[^"]*")");
  const std::vector<std::string> all = lines_of(file.text);
  const std::vector<std::string> code = lines_of(blanked(file.text, Blank::comments));
  std::vector<std::string> lost;
  for (std::size_t i = 0; i < all.size(); ++i) {
    std::string comment;
    for (std::size_t at = 0; at < all[i].size(); ++at) comment += all[i][at] == code[i][at] ? ' ' : all[i][at];
    comment = std::regex_replace(comment, kQuoted, " ");
    for (std::sregex_iterator match(comment.begin(), comment.end(), kName), end; match != end; ++match) {
      const std::string name = (*match)[2].str();
      if (!tree.has_file(name)) lost.push_back(place_of(file, i, name));
    }
  }
  return lost;
}

/// Paths from the repository root in a document: in prose, in a command, in an include.
std::vector<std::string> lost_in_document(const SourceFile& file, const Tree& tree) {
  static const std::regex kPath(R"((^|[^\w/.-])((ops|collectives|emu|tools|bench|tests|plans)/[a-z0-9_./-]*))");
  const std::vector<std::string> lines = lines_of(file.text);
  std::vector<std::string> lost;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    for (std::sregex_iterator match(lines[i].begin(), lines[i].end(), kPath), end; match != end; ++match) {
      std::string path = (*match)[2].str();
      while (path.ends_with('.')) path.pop_back();
      if (!tree.has_path(path)) lost.push_back(place_of(file, i, path));
    }
  }
  return lost;
}

TEST(FileNames, InCommentsAreThoseOfFiles) {
  const std::vector<SourceFile> files = read_tree(SHARDPROOF_SOURCE_DIR);
  const Tree tree(files);
  std::vector<std::string> lost;

  for (const SourceFile& file : files) {
    if (is_cpp(file.path)) std::ranges::copy(lost_in_comments(file, tree), std::back_inserter(lost));
  }

  EXPECT_THAT(lost, IsEmpty());
}

TEST(FileNames, InDocumentsAreThoseOfFiles) {
  const std::vector<SourceFile> files = read_tree(SHARDPROOF_SOURCE_DIR);
  const Tree tree(files);
  std::vector<std::string> lost;

  for (const SourceFile& file : files) {
    // The changelog names what was, too.
    if (!file.path.ends_with(".md") || file.path == "CHANGELOG.md") continue;
    std::ranges::copy(lost_in_document(file, tree), std::back_inserter(lost));
  }

  EXPECT_THAT(lost, IsEmpty());
}

TEST(FileNames, ThatAreLostAreFoundInComments) {
  const Tree tree({{"emu/plan/mesh.h", ""}, {"emu/run/cluster.cpp", ""}});
  const SourceFile file{"emu/run/cluster.cpp",
                        "// See mesh.h, plan/mesh.h, \"gone.h\" and <unistd.h>.\n"
                        "int a = 1;  // gone.h has it\n"
                        "const char* b = \"gone.h\";\n"
                        "/// (emu/deploy/mesh.h)\n"};

  const std::vector<std::string> lost = lost_in_comments(file, tree);

  EXPECT_THAT(lost, ElementsAre("emu/run/cluster.cpp:2: gone.h", "emu/run/cluster.cpp:4: emu/deploy/mesh.h"));
}

TEST(FileNames, ThatAreLostAreFoundInDocuments) {
  const Tree tree({{"emu/plan/mesh.h", ""}, {"tools/test", ""}});
  const SourceFile file{"README.md",
                        "`emu/plan/` has emu/plan/mesh.h. Run ./tools/test or tools/test --all.\n"
                        "build/release/tools/shardproof is built; `emu/verify/` is gone, as is\n"
                        "#include \"emu/plan/gone.h\"\n"};

  const std::vector<std::string> lost = lost_in_document(file, tree);

  EXPECT_THAT(lost, ElementsAre("README.md:2: emu/verify/", "README.md:3: emu/plan/gone.h"));
}

}  // namespace
}  // namespace shardproof::project
