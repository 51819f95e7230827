import numpy as np

import shardproof

x = np.array([[(3 * i + j) % 5 - 2 for j in range(8)] for i in range(4)], float)
w = np.array([[(i + 2 * j) % 7 - 3 for j in range(8)] for i in range(6)], float)


def row_parallel_linear(rank):
    """y = x w^T, the columns of x and w split over tp: every rank computes a partial sum of y."""
    mine = np.array_split(range(8), rank.tp.size)[rank.tp.rank]
    y = x[:, mine] @ w[:, mine].T
    if rank.dp.rank == 0:
        rank.tp.all_reduce(y)  # replica 1 forgets it
    rank.tap("linear.output", y)


print(shardproof.run(row_parallel_linear, tp=2, dp=2, expected={"linear.output": x @ w.T}))
