"""Faults that others found in their parallel programs and reported, replayed at the size of a module."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from blocks import TOKENS, WIDTH, Copy, GatherTokens, Reduce, X, judged
from torch.distributed.device_mesh import init_device_mesh
from shardproof.torch._pieces import Partial, Replicate, Shard

import shardproof.torch

VOCABULARY = 16
LABELS = torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(5))


def vocab_parallel_cross_entropy(logits, labels):
    """Of logits [tokens, vocabulary / ranks]: the largest, the sum of exponentials and the label's logit are reduced."""
    largest = logits.detach().max(-1).values
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    logits = logits - largest[:, None]
    mine = labels - dist.get_rank() * logits.shape[-1]
    inside = (mine >= 0) & (mine < logits.shape[-1])
    of_label = logits.gather(-1, mine.clamp(0, logits.shape[-1] - 1)[:, None])[:, 0] * inside
    return (Reduce.apply(logits.exp().sum(-1)).log() - Reduce.apply(of_label)).mean()


class Head(nn.Module):
    def __init__(self, tp=1):
        super().__init__()
        self.output = nn.Linear(WIDTH, VOCABULARY // tp, bias=False)

    def forward(self, x):
        return self.output(x)


torch.manual_seed(9)
HEAD = Head().state_dict()


def whole_head(head):
    loss = F.cross_entropy(head(X), LABELS)
    shardproof.torch.tap("loss", loss)
    loss.backward()


def sharded_head(gathers):
    """Megatron-LM 7452: with gather_output the loss takes the gathered vocabulary for a shard of it."""
    dist.init_process_group()
    head, tp = Head(4), dist.get_world_size()
    head.output.weight.data.copy_(HEAD["output.weight"].chunk(tp, 0)[dist.get_rank()])
    shardproof.torch.watch(head)
    logits = head(Copy.apply(X))
    if gathers:
        logits = GatherTokens.apply(logits.T).T
    loss = vocab_parallel_cross_entropy(logits, LABELS)
    shardproof.torch.tap("loss", loss)
    loss.backward()


def test_a_loss_of_vocabulary_shards_that_gets_the_gathered_logits_is_named():
    right = judged(sharded_head, False, reference=Head, step=whole_head)
    assert right.verdict == "pass", str(right)

    wrong = judged(sharded_head, True, reference=Head, step=whole_head)

    assert (wrong.verdict, wrong.first_divergence.tap) == ("mismatch", "loss")


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)

    def forward(self, ids):
        return self.embedding(ids)


torch.manual_seed(10)
EMBEDDED = Embedded().state_dict()
SAMPLES = torch.randint(VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(6))


def whole_embedding(module):
    shardproof.torch.tap("sequence", module(SAMPLES))


def scattered(wrong):
    """Megatron-LM 7452: two samples on two tp groups, whose embeddings are scattered over the default groups, which are
    others, and gathered over the samples' own."""
    dist.init_process_group()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    own, other = mesh.get_group("tp"), mesh.get_group("dp")
    module = Embedded()
    module.load_state_dict(EMBEDDED)
    shardproof.torch.watch(module, mesh=mesh, placements={name: [Shard(0), Replicate()] for name in ("embedding", "model")})
    x = module(SAMPLES.chunk(2)[mesh.get_local_rank("dp")])
    part = x.chunk(2, 1)[dist.get_rank(other if wrong else own)]
    parts = [torch.empty_like(part) for _ in range(2)]
    dist.all_gather(parts, part.contiguous(), group=own)
    shardproof.torch.tap("sequence", torch.cat(parts, 1), Shard(0), Replicate(), mesh=mesh)


def test_a_sequence_that_is_scattered_over_another_group_is_named():
    right = judged(scattered, False, reference=Embedded, step=whole_embedding)
    assert right.verdict == "pass", str(right)

    wrong = judged(scattered, True, reference=Embedded, step=whole_embedding)

    assert (wrong.verdict, wrong.first_divergence.tap) == ("mismatch", "sequence")


CHOSEN = torch.rand(TOKENS, 4, generator=torch.Generator().manual_seed(7)) < 0.5


class Counted(nn.Module):
    """The balance of a router whose loss is weighed by the tokens that each rank has."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(WIDTH, 4, bias=False)

    def forward(self, x, chosen, counts, tokens, all_tokens):
        share = self.router(x).softmax(-1).sum(0) / all_tokens
        return (share * counts).sum() * tokens


torch.manual_seed(11)
COUNTED = Counted().state_dict()


def whole_balance(module):
    counts = CHOSEN.sum(0)
    balance = module(X, CHOSEN, counts, 1.0, float(counts.sum()))
    shardproof.torch.tap("tokens", counts.sum().float())
    balance.backward()


def counted(in_place):
    """Megatron-LM 7452, 7481: the all-reduce of the counts works in place, and what is read of the rank's own counts
    after it is everybody's."""
    dist.init_process_group()
    module, rank = Counted(), dist.get_rank()
    module.load_state_dict(COUNTED)
    mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("dp",))
    shardproof.torch.watch(module, ["router"], mesh=mesh)
    x, chosen = X.chunk(4)[rank], CHOSEN.chunk(4)[rank]
    own = chosen.sum(0)
    counts = own if in_place else own.clone()
    dist.all_reduce(counts)
    tokens = own.sum().float()
    shardproof.torch.tap("tokens", tokens, Partial(), mesh=mesh)
    module(x, chosen, counts, 1.0, float(counts.sum())).backward()
    dist.all_reduce(module.router.weight.grad)


def test_counts_that_are_reduced_in_place_are_named_where_they_are_read_as_the_ranks_own():
    right = judged(counted, False, reference=Counted, step=whole_balance)
    assert right.verdict == "pass", str(right)

    wrong = judged(counted, True, reference=Counted, step=whole_balance)

    assert (wrong.verdict, wrong.first_divergence.tap) == ("mismatch", "tokens")
    assert wrong.first_divergence.cause.name == "counted_n_times", str(wrong)
