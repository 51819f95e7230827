// shardproof: the one command.
#include <fcntl.h>
#include <unistd.h>

#include "tools/command_line.h"
#include "tools/exit_code.h"
#include "tools/interrupt.h"

namespace {

/// A stream that was closed: what is opened next must not take its place. Writing to it fails, as it should.
void occupy_closed_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(stream, F_GETFD) < 0) (void)open("/dev/null", O_RDONLY);
  }
}

}  // namespace

int main(int argc, char** argv) {
  occupy_closed_streams();
  shardproof::tools::guard_the_end_of_the_process();
  const int exit_code = shardproof::tools::run_command(argc, argv);
  // What could not be finished need not be taken down in order either: that may wait for threads that never were.
  if (exit_code == shardproof::tools::kInternal) _exit(exit_code);
  return exit_code;
}
