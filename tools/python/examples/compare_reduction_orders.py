"""How far the order of an all-reduce moves a sum: the same ranks, the orders that real libraries use."""

import numpy as np

import shardproof

parts = np.random.default_rng(1).standard_normal((8, 4, 64)).astype(np.float32)  # a partial sum of each rank
whole = parts.astype(np.float64).sum(axis=0)

for algorithm in ["rank_order", "ring", "tree", "recursive_doubling"]:
    for wire in ["fp32", "bf16"]:

        def reduce(rank):
            y = parts[rank.id].copy()
            rank.tap("y", rank.tp.all_reduce(y, algorithm=algorithm, wire=wire))

        report = shardproof.run(reduce, tp=8, expected={"y": whole}, bound=0.1, schedules=3)
        print(f"{algorithm:18} {wire}  {report.verdict}  worst error {report.taps[0].max_error:.1e}")
