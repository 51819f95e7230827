import torch
import torch.distributed as dist
import torch.nn as nn

import shardproof.torch


class MLP(nn.Module):
    """Column parallel, then row parallel: the ranks share the inner width, and what they make adds up to y."""

    def __init__(self, ranks=1):
        super().__init__()
        self.ranks = ranks
        self.up = nn.Linear(8, 32 // ranks, bias=False)
        self.down = nn.Linear(32 // ranks, 8, bias=False)

    def forward(self, x):
        y = self.down(torch.relu(self.up(x)))
        if self.ranks > 1:
            dist.all_reduce(y, op=dist.ReduceOp.AVG)  # should be SUM
        return y


torch.manual_seed(0)
x = torch.randn(6, 8)


def main():
    dist.init_process_group("nccl")  # on a cluster; here it is ours
    torch.manual_seed(dist.get_rank())
    mlp = shardproof.torch.watch(MLP(dist.get_world_size()), "model")
    mlp(x)


print(shardproof.torch.run(main, world_size=4, reference=MLP, step=lambda mlp: mlp(x), max_amplification=16))
