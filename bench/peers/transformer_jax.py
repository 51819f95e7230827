#!/usr/bin/env python3
"""A sharded forward by JAX on virtual CPU devices and by this project's transformer_bench, in turns.

  transformer_jax.py TRANSFORMER_BENCH OUT.json [--repetitions 9]

Needs JAX; ./tools/bench peers --jax installs it. The model is the embedded plan's at --scale auto, in float32: 4 stages of
2 layers, in each stage 4 ranks that share heads by tensor parallelism and have one expert each, 8 microbatches of one
sequence. In JAX it is one compiled shard_map over 16 devices: stages take microbatches in turn and hand them on by
ppermute, and each runs in every turn, whether it has a microbatch or not, the embedding and the head included; ours runs
what there is. A layer sums attention over the stage by psum, then each device routes its quarter of the tokens, sends them
to the experts by all_to_all, in buffers that hold the most that may come, and gathers what comes back. Its logits are held
to the same forward without sharding once. The file has the names steady_state/jax/16_ranks and
steady_state/shardproof/16_ranks, which compare.py --peers shardproof tabulates.
"""

import argparse
import json
import os
import pathlib
import sys
import time

STAGES, RANKS, MICROBATCHES = 4, 4, 8
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={STAGES * RANKS}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax import lax  # noqa: E402
from jax.sharding import Mesh, PartitionSpec as P  # noqa: E402

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import gate  # noqa: E402

LAYERS, HIDDEN, HEADS, HEAD, EXPERTS, WIDTH, TOP, VOCABULARY, TOKENS = 8, 48, 64, 4, 4, 16, 2, 96, 16
EPSILON, THETA = 1e-5, 1e6


def weights_of(key):
    """Layers first. Of each product a weight [out, in], of unit gain."""
    shapes = {"q": (HEADS * HEAD, HIDDEN), "k": (HEADS * HEAD, HIDDEN), "v": (HEADS * HEAD, HIDDEN),
              "o": (HIDDEN, HEADS * HEAD), "router": (EXPERTS, HIDDEN), "gate": (EXPERTS, WIDTH, HIDDEN),
              "up": (EXPERTS, WIDTH, HIDDEN), "down": (EXPERTS, HIDDEN, WIDTH)}
    keys = iter(jax.random.split(key, len(shapes) + 2))
    weights = {name: jax.random.normal(next(keys), (LAYERS, *shape)) * shape[-1] ** -0.5 for name, shape in shapes.items()}
    weights |= {name: jnp.ones((LAYERS, HIDDEN)) for name in ("attention_norm", "moe_norm")}
    ends = {"embedding": jax.random.normal(next(keys), (VOCABULARY, HIDDEN)), "final_norm": jnp.ones(HIDDEN),
            "head": jax.random.normal(next(keys), (VOCABULARY, HIDDEN)) * HIDDEN ** -0.5}
    return weights, ends


# Which dims the stages and the ranks of one share.
SHARED = {"q": P("pp", "tp"), "k": P("pp", "tp"), "v": P("pp", "tp"), "o": P("pp", None, "tp"), "gate": P("pp", "tp"),
          "up": P("pp", "tp"), "down": P("pp", "tp")}
SHARED_ENDS = {"embedding": P("tp"), "final_norm": P(), "head": P("tp")}


def rms_norm(x, weight):
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPSILON) * weight


def rotated(heads):
    angles = jnp.arange(TOKENS)[:, None] * THETA ** (-jnp.arange(0, HEAD, 2) / HEAD)
    cosine, sine = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    low, high = jnp.split(heads, 2, -1)
    return jnp.concatenate((low * cosine - high * sine, high * cosine + low * sine), -1)


def attention(n, w):
    q, k, v = ((n @ w[name].T).reshape(TOKENS, -1, HEAD) for name in ("q", "k", "v"))
    scores = jnp.einsum("ihd,jhd->hij", rotated(q), rotated(k)) * HEAD ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones((TOKENS, TOKENS), bool)), scores, -jnp.inf)
    return jnp.einsum("hij,jhd->ihd", jax.nn.softmax(scores, -1), v).reshape(TOKENS, -1) @ w["o"].T


def routed(n, router):
    """The weight of each expert, zero where a token does not choose it: [tokens, experts]."""
    chosen, experts = lax.top_k(jax.nn.softmax(n @ router.T, -1), TOP)
    return jnp.einsum("tc,tce->te", chosen / chosen.sum(-1, keepdims=True), jax.nn.one_hot(experts, EXPERTS))


def expert(x, w, e):
    return (jax.nn.silu(x @ w["gate"][e].T) * (x @ w["up"][e].T)) @ w["down"][e].T


def whole(weights, ends, ids):
    """Logits of one sequence, without sharding."""
    x = ends["embedding"][ids]
    for layer in range(LAYERS):
        w = {name: weight[layer] for name, weight in weights.items()}
        x = x + attention(rms_norm(x, w["attention_norm"]), w)
        n = rms_norm(x, w["moe_norm"])
        of_experts = routed(n, w["router"])
        x = x + sum(of_experts[:, e:e + 1] * expert(n, w, e) for e in range(EXPERTS))
    return rms_norm(x, ends["final_norm"]) @ ends["head"].T


def sharded_layer(x, w):
    """Of one device, which has some heads and one expert."""
    x = x + lax.psum(attention(rms_norm(x, w["attention_norm"]), w), "tp")
    own = TOKENS // RANKS
    n = lax.dynamic_slice_in_dim(rms_norm(x, w["moe_norm"]), lax.axis_index("tp") * own, own)
    of_experts = routed(n, w["router"])
    sent = jnp.where((of_experts > 0).T[..., None], n, 0)  # [experts, own, hidden]
    arrived = lax.all_to_all(sent, "tp", 0, 0, tiled=True)
    made = expert(arrived.reshape(-1, HIDDEN), w, 0).reshape(RANKS, own, HIDDEN)
    back = lax.all_to_all(made, "tp", 0, 0, tiled=True)
    return x + lax.all_gather(jnp.einsum("te,eth->th", of_experts, back), "tp", axis=0, tiled=True)


def sharded(weights, ends, ids):
    """Of one device: the logits of its part of the vocabulary, [1, microbatches, tokens, part]; the last stage's count."""
    stage, part = lax.axis_index("pp"), VOCABULARY // RANKS

    def looked_up(tokens):
        at = tokens - lax.axis_index("tp") * part
        held = (at >= 0) & (at < part)
        return lax.psum(jnp.where(held[:, None], ends["embedding"][jnp.where(held, at, 0)], 0), "tp")

    def tick(handed_on, tokens):
        x = jnp.where(stage == 0, looked_up(tokens), handed_on)
        for layer in range(LAYERS // STAGES):
            x = sharded_layer(x, {name: weight[layer] for name, weight in weights.items()})
        logits = rms_norm(x, ends["final_norm"]) @ ends["head"].T
        return lax.ppermute(x, "pp", [(i, i + 1) for i in range(STAGES - 1)]), logits

    # The stages behind the first have nothing to do at the beginning, the first ones at the end.
    ticks = jnp.concatenate((ids, jnp.zeros((STAGES - 1, TOKENS), ids.dtype)))
    _, logits = lax.scan(tick, jnp.zeros((TOKENS, HIDDEN)), ticks)
    return logits[None, STAGES - 1:]


def compiled():
    """A function without arguments that runs the forward, and its logits, [microbatches, tokens, vocabulary]."""
    mesh = Mesh([[jax.devices()[s * RANKS + r] for r in range(RANKS)] for s in range(STAGES)], ("pp", "tp"))
    weights, ends = weights_of(jax.random.key(1))
    ids = jax.random.randint(jax.random.key(2), (MICROBATCHES, TOKENS), 0, VOCABULARY)
    places = {name: SHARED.get(name, P("pp")) for name in weights}
    forward = jax.jit(jax.shard_map(sharded, mesh=mesh, in_specs=(places, SHARED_ENDS, P()),
                                    out_specs=P("pp", None, None, "tp"), check_vma=False))
    put = lambda value, place: jax.device_put(value, jax.sharding.NamedSharding(mesh, place))  # noqa: E731
    on_devices = ({name: put(value, places[name]) for name, value in weights.items()},
                  {name: put(value, SHARED_ENDS[name]) for name, value in ends.items()}, put(ids, P()))
    expected = jnp.stack([whole(weights, ends, sequence) for sequence in ids])
    got = forward(*on_devices)[-1]
    if not jnp.allclose(got, expected, rtol=1e-4, atol=1e-4):
        raise SystemExit(f"the sharded forward is off by {jnp.abs(got - expected).max()}")
    return lambda: forward(*on_devices).block_until_ready()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("transformer_bench")
    parser.add_argument("out")
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    forward = compiled()
    print(f"jax {jax.__version__}, {len(jax.devices())} devices", file=sys.stderr)
    benchmark, = gate.names_of(options.transformer_bench, "^steady_state_16")
    entries = []
    for index in range(options.repetitions):
        times = {"jax": gate.seconds_of(forward, 0.5, time.perf_counter),
                 "shardproof": gate.measure(options.transformer_bench, benchmark, "real_time", 0.5)[1] / 1e3}
        for name, seconds in times.items():
            case = f"steady_state/{name}/16_ranks"
            entries.append({"name": case, "run_name": case, "run_type": "iteration", "repetition_index": index,
                            "real_time": 1e3 * seconds, "cpu_time": 1e3 * seconds, "time_unit": "ms"})
    with open(options.out, "w", encoding="utf-8") as file:
        json.dump({"context": {"library": "shardproof"}, "benchmarks": entries}, file)


if __name__ == "__main__":
    main()
