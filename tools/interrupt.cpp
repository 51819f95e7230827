#include "tools/interrupt.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/types.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string_view>
#include <utility>

#include "tools/exit_code.h"

namespace shardproof::tools {
namespace {

constexpr std::array kFatal{SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGXFSZ, SIGABRT};

struct Slot {
  std::atomic<bool> used = false;
  std::array<char, PATH_MAX> path{};
};

// A signal handler may use nothing but memory that is there already.
std::array<Slot, 16> listed_files;
std::atomic<pid_t> listed_process = 0;
std::atomic<bool> progress_shown = false;

void write_error(std::string_view text) {
  // Nothing can be done about a failure here.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text.data(), text.size());
}

void clean_up() {
  for (Slot& slot : listed_files) {
    if (slot.used) unlink(slot.path.data());
  }
  if (const pid_t process = listed_process; process > 0) kill(process, SIGTERM);
  if (progress_shown) write_error("\r\x1b[K");
}

extern "C" void end_by_signal(int number) {
  clean_up();
  // The handler is gone (SA_RESETHAND) and the signal blocked until this returns.
  raise(number);
}

/// Threads fail together: the first speaks, the others wait for the end.
void only_once() {
  static std::atomic_flag begun = ATOMIC_FLAG_INIT;
  while (begun.test_and_set()) pause();
}

constexpr std::string_view kOutOfMemory =
    "shardproof: out of memory; a larger --scale divisor, fewer or shorter sequences, or fewer --threads need less\n";

[[noreturn]] void out_of_memory() {
  only_once();
  clean_up();
  write_error(kOutOfMemory);
  _exit(kInternal);
}

/// What no code of ours could catch, since it was thrown where a thread begins or in a destructor.
[[noreturn]] void uncaught() {
  only_once();
  clean_up();
  try {
    if (const std::exception_ptr thrown = std::current_exception()) std::rethrow_exception(thrown);
    write_error("shardproof: internal error\n");
  } catch (const std::bad_alloc&) {
    write_error(kOutOfMemory);
  } catch (const std::exception& error) {
    write_error("shardproof: internal error, or a limit on memory or threads: ");
    write_error(error.what());
    write_error("\n");
  } catch (...) {
    write_error("shardproof: internal error\n");
  }
  _exit(kInternal);
}

/// While this lives, a signal waits: a file is listed before it can be left behind.
class SignalsWait {
 public:
  SignalsWait() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before_);
  }
  SignalsWait(const SignalsWait&) = delete;
  SignalsWait& operator=(const SignalsWait&) = delete;
  ~SignalsWait() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_{};
};

int free_slot() {
  for (std::size_t i = 0; i < listed_files.size(); ++i) {
    if (!listed_files[i].used) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace

void guard_the_end_of_the_process() {
  std::set_new_handler(out_of_memory);
  std::set_terminate(uncaught);
  for (const int number : kFatal) {
    struct sigaction action {};
    if (sigaction(number, nullptr, &action) != 0 || action.sa_handler == SIG_IGN) continue;
    action = {};
    action.sa_handler = end_by_signal;
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigfillset(&action.sa_mask);
    sigaction(number, &action, nullptr);
  }
}

ListedFile::ListedFile(ListedFile&& other) noexcept
    : path_(std::exchange(other.path_, {})), slot_(std::exchange(other.slot_, -1)) {}

ListedFile& ListedFile::operator=(ListedFile&& other) noexcept {
  if (this == &other) return *this;
  remove();
  path_ = std::exchange(other.path_, {});
  slot_ = std::exchange(other.slot_, -1);
  return *this;
}

int ListedFile::create(const std::string& prefix) {
  remove();
  const int slot = free_slot();
  std::string path = prefix + "XXXXXX";
  if (slot < 0 || path.size() >= PATH_MAX) {
    errno = slot < 0 ? EMFILE : ENAMETOOLONG;
    return -1;
  }
  const SignalsWait wait;
  const int descriptor = mkostemp(path.data(), O_CLOEXEC);
  if (descriptor < 0) return -1;
  Slot& listed = listed_files[static_cast<std::size_t>(slot)];
  std::memcpy(listed.path.data(), path.c_str(), path.size() + 1);
  listed.used = true;
  slot_ = slot;
  path_ = std::move(path);
  return descriptor;
}

void ListedFile::remove() {
  if (slot_ < 0) return;
  unlink(path_.c_str());
  keep();
}

void ListedFile::keep() {
  if (slot_ >= 0) listed_files[static_cast<std::size_t>(slot_)].used = false;
  slot_ = -1;
}

ListedProcess::ListedProcess(int id) {
  listed_process = id;
}
ListedProcess::~ListedProcess() {
  listed_process = 0;
}

void progress_is_shown(bool shown) {
  progress_shown = shown;
}

}  // namespace shardproof::tools
