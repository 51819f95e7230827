"""PyTorch programs as they are, on virtual ranks: torch.distributed without GPUs, and with proofs.

    report = shardproof.torch.run(main, world_size=16)       # main() is what torchrun would start

Whatever backend main() names, its groups are those of the run: calls are matched where they meet, splits are checked
edge by edge, a deadlock is proven, and sums are taken in one order, so that a run has the same bits each time.
"""

import torch as _torch

_PARTS = _torch.__version__.split("+")[0].split(".")
_VERSION = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in _PARTS[:2])
if _VERSION < (2, 4):
    raise ImportError(f"shardproof.torch needs torch 2.4 or newer, and this is {_torch.__version__}: its process "
                      "groups cannot be written in Python; pip install torch. shardproof.run takes its tensors as they "
                      "are.")

from ._run import rank, run  # noqa: E402
from ._watch import tap, watch  # noqa: E402

__all__ = ["rank", "run", "tap", "watch"]
