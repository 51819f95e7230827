"""`python -m shardproof` is the command."""

from __future__ import annotations

import os
import sys

from ._commands import command_path


def main() -> None:
    path = str(command_path())
    os.execv(path, [path, *sys.argv[1:]])


if __name__ == "__main__":
    main()
