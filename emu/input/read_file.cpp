#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "emu/input/json_value.h"

namespace shardproof {
namespace {

struct Descriptor {
  int value = -1;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
};

std::string reason(int error) {
  return error == ENOENT ? "no such file" : std::generic_category().message(error);
}

bool same_content(const struct stat& a, const struct stat& b) {
  return a.st_size == b.st_size && a.st_mtim.tv_sec == b.st_mtim.tv_sec && a.st_mtim.tv_nsec == b.st_mtim.tv_nsec;
}

/// Of a pipe that was opened without waiting for a writer: who starts both sides at once gets a second.
bool writer_may_come(int& tries) {
  constexpr int kTries = 20;
  if (++tries > kTries) return false;
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  return true;
}

/// Appends what is left; the message why not, or an empty one.
std::string read_all(int descriptor, bool pipe, std::uintmax_t max_bytes, std::string& text) {
  char buffer[65536];
  int tries = 0;
  for (;;) {
    const ssize_t count = ::read(descriptor, buffer, sizeof buffer);
    if (count > 0) {
      text.append(buffer, static_cast<std::size_t>(count));
      if (text.size() > max_bytes) return fmt::format("larger than the limit of {} bytes; not read", max_bytes);
    } else if (count == 0) {
      if (!pipe || !text.empty()) return {};
      if (!writer_may_come(tries)) return "is a pipe to which nobody writes";
    } else if (errno == EAGAIN) {
      struct pollfd waited {
        descriptor, POLLIN, 0
      };
      ::poll(&waited, 1, -1);
    } else if (errno != EINTR) {
      return fmt::format("could not be read to its end: {}", reason(errno));
    }
  }
}

/// Why a file of this kind is not read, or an empty text.
std::string unreadable(const struct stat& status, std::uintmax_t max_bytes) {
  if (S_ISDIR(status.st_mode)) return "is a directory; a JSON file is needed";
  if (S_ISFIFO(status.st_mode)) return {};
  if (!S_ISREG(status.st_mode)) return "is a device or a socket; a JSON file is needed";
  const auto size = static_cast<std::uintmax_t>(status.st_size);
  return size > max_bytes ? fmt::format("{} bytes, larger than the limit of {} bytes; not read", size, max_bytes) : "";
}

}  // namespace

FileText read_file(const std::filesystem::path& path, std::uintmax_t max_bytes) {
  FileText file;
  const auto refuse = [&](std::string message) {
    file.problems.push_back({path.string(), std::move(message)});
    return file;
  };
  // The system would take it for the end of the name.
  if (path.native().find('\0') != std::string::npos) return refuse("a file name holds no NUL");
  // Without O_NONBLOCK, opening a pipe would wait for somebody to write to it.
  const Descriptor input{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)};
  if (input.value < 0) return refuse(reason(errno));
  struct stat before {};
  struct stat after {};
  if (::fstat(input.value, &before) != 0) return refuse(reason(errno));
  if (std::string message = unreadable(before, max_bytes); !message.empty()) return refuse(std::move(message));
  std::string text;
  const bool pipe = S_ISFIFO(before.st_mode);
  if (std::string message = read_all(input.value, pipe, max_bytes, text); !message.empty()) {
    return refuse(std::move(message));
  }
  if (!pipe && (::fstat(input.value, &after) != 0 || !same_content(before, after))) {
    return refuse("was changed while it was read; start again when it is complete");
  }
  file.text = std::move(text);
  return file;
}

}  // namespace shardproof
