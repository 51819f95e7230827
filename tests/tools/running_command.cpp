#include "tests/tools/running_command.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <stdexcept>
#include <thread>

namespace shardproof::testing {
namespace {

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

}  // namespace

RunningCommand::RunningCommand(const std::vector<std::string>& arguments, const std::string& out,
                               const std::string& err, const std::vector<std::string>& environment) {
  std::vector<std::string> words{SHARDPROOF_COMMAND};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<std::string> variables = environment;
  for (char** variable = environ; *variable != nullptr; ++variable) variables.emplace_back(*variable);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  const auto open = [&](int descriptor, const std::string& path) {
    posix_spawn_file_actions_addopen(&files, descriptor, path.empty() ? "/dev/null" : path.c_str(),
                                     O_WRONLY | O_CREAT | O_TRUNC, 0666);
  };
  posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  open(STDOUT_FILENO, out);
  open(STDERR_FILENO, err);
  // Whoever starts the tests may ignore a signal or two.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t all;
  sigfillset(&all);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
  const int failed =
      posix_spawn(&id_, SHARDPROOF_COMMAND, &files, &attributes, pointers(words).data(), pointers(variables).data());
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attributes);
  if (failed != 0) throw std::runtime_error("the command cannot be started");
}

RunningCommand::~RunningCommand() {
  if (id_ < 0) return;
  signal(SIGKILL);
  wait();
}

void RunningCommand::signal(int number) const {
  kill(id_, number);
}

int RunningCommand::wait() {
  int status = 0;
  struct rusage usage {};
  wait4(id_, &status, 0, &usage);
  most_bytes_ = static_cast<double>(usage.ru_maxrss) * 1024;
  id_ = -1;
  return status;
}

bool RunningCommand::ended(int& status) {
  if (id_ < 0 || waitpid(id_, &status, WNOHANG) != id_) return id_ < 0;
  id_ = -1;
  return true;
}

bool wait_until(bool (*holds)(const void*), const void* what) {
  for (int i = 0; i < 1000; ++i) {
    if (holds(what)) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

}  // namespace shardproof::testing
