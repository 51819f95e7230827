"""Ranks without tokens skip the all-to-all of their experts: on hardware a hang that names nobody."""

import numpy as np

import shardproof


def expert_layer(rank):
    tokens = np.ones((rank.ep.rank % 3, 4))  # [tokens, hidden]: every third rank has none
    if len(tokens) == 0:
        return
    counts = rank.ep.all_to_all(np.full(rank.ep.size, len(tokens)))
    rank.ep.all_to_all(np.repeat(tokens, rank.ep.size, axis=0), [len(tokens)] * rank.ep.size, counts)


report = shardproof.run(expert_layer, dp=4, ep=4)

print(report.word)
for meeting in report.wait_graph["meetings"]:
    arrived = ", ".join(f"rank {call['rank']} in line {call['line']}" for call in meeting["arrived"])
    absent = ", ".join(f"rank {rank['rank']} ({rank['why']})" for rank in meeting["absent"])
    print(f"{meeting['operation']} in {meeting['group']}: {arrived} wait for {absent}")
