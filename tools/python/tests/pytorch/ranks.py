"""What the tests of PyTorch programs share."""

import torch.distributed as dist

import shardproof.torch

ISOLATION = "process"  # of the test that runs


def run(main, **options):
    return shardproof.torch.run(main, **{"isolation": ISOLATION, **options})


def completes(main, world_size=4, **options):
    """Every rank comes to the end; nothing is expected, so that nothing is proven."""
    if ISOLATION == "process":
        options.pop("schedules", None)
    report = run(main, world_size=world_size, patience=120, **options)
    assert report.stall is None, str(report)
    assert report.verdict == "inconclusive" and "no tap is expected" in str(report)


def me():
    return dist.get_rank()
