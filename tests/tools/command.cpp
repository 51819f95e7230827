#include "tests/tools/command.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

namespace shardproof::testing {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string unique_path(const std::string& name) {
  static int count = 0;
  return ::testing::TempDir() + "shardproof_" + std::to_string(getpid()) + "_" + std::to_string(count++) + "_" + name;
}

}  // namespace

CommandResult shardproof(const std::string& arguments) {
  return shardproof_in(".", arguments);
}

CommandResult shardproof_in(const std::string& folder, const std::string& arguments, const std::string& before) {
  const std::string out = unique_path("out");
  const std::string err = unique_path("err");
  const std::string line = "exec > " + out + " 2> " + err + " < /dev/null; cd '" + folder + "' && { " + before + " " +
                           SHARDPROOF_COMMAND + " " + arguments + "; }";
  const int status = std::system(line.c_str());  // NOLINT(cert-env33-c): a test's own words
  CommandResult result{WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_file(out),
                       read_file(err)};
  unlink(out.c_str());
  unlink(err.c_str());
  return result;
}

std::string temporary_file(const std::string& name, const std::string& text) {
  std::string path = unique_path(name);
  std::ofstream(path) << text;
  return path;
}

}  // namespace shardproof::testing
