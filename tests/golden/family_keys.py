#!/usr/bin/env python3
"""Says of every key of every family's config class what becomes of it, and fails where that is not right.

    ./family_keys.py SHARDPROOF [NAME ...]

Starts from the configs of this folder's `families`, and changes one key at a time, in each of a few ways. What the
program makes of it is one of
    computed    some tensor of `verify --format exact` is another
    refused     exit 2, and the message names the key, or the one that does not fit it any more; or exit 4, which says that
                no token shows what the key says
    irrelevant  every tensor has the bits that it had: then so do the logits of the family's own class in Transformers,
                with the weights that it had. If they do not, or do not fit any more, the key was dropped: that is an
                error, as is any other ending.
Runs in the environment of make_family_golden.py.
"""
import copy
import json
import pathlib
import subprocess
import sys
import tempfile

import make_family_golden as golden

LENGTHS = [21, 8]
# What is no mathematics of the forward pass, whatever it says, and stops the class from being made.
NOT_TRIED = {"model_type": "names the family", "architectures": "names the family", "transformers_version": "a note",
             "dtype": "the format of the weights, which `verify --format` says",
             "return_dict": "the form in which the class returns its outputs"}


def candidates(key, value):
    """Other values of the key."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value] if value else [1, 2]
    if isinstance(value, float):
        # The norms' epsilon has to grow by much to show.
        return [value * 1.5 if value > 1e-3 else 0.5]
    if value is None:
        return [True, 2, 0.5] if "token_id" not in key else [2]
    if isinstance(value, str):
        return ["gelu"] if key == "hidden_act" else ["another"]
    if isinstance(value, list) and value and isinstance(value[0], str):
        return [["full_attention"] * len(value), ["sliding_attention"] * len(value)]
    if isinstance(value, list) and value and isinstance(value[0], float):
        return [[2 * item for item in value]]
    return [[0]] if isinstance(value, list) else []


def variants(config):
    """(key, config) for each change of one key; keys of rope_parameters too."""
    for key, value in config.items():
        if key in NOT_TRIED:
            continue
        inner = value if isinstance(value, dict) else {}
        for name, old in inner.items():
            for new in candidates(name, old):
                yield f"{key}.{name}", {**config, key: {**inner, name: new}}
        for new in candidates(key, value):
            yield key, {**config, key: new}


class Ours:
    def __init__(self, program):
        self.program = program
        self.folder = tempfile.TemporaryDirectory()

    def tensors(self, config):
        """Hashes of every tensor, or the message that refuses the plan."""
        plan, record = (pathlib.Path(self.folder.name) / name for name in ("plan.json", "record.json"))
        record.unlink(missing_ok=True)
        plan.write_text(json.dumps({"model": config, "parallel": {}, "workload": {"lengths": LENGTHS}}))
        ran = subprocess.run([self.program, "verify", str(plan), "--format", "exact", "--scale", "full", "--record",
                              str(record)], capture_output=True, text=True)
        if ran.returncode == 2:
            return None, ran.stderr
        if ran.returncode == 4 and "without it every bit" in ran.stdout:
            return None, ran.stdout
        if not record.exists():
            return None, f"exit {ran.returncode}: {ran.stderr}"
        return [(tap["name"], tap["hash"]) for tap in json.loads(record.read_text())["taps"]], ""


class Theirs:
    def __init__(self, kind, torch, transformers):
        self.kind, self.torch, self.transformers = kind, torch, transformers
        self.state = None

    def logits(self, config):
        """Of the first config's weights; None where they do not fit the class any more."""
        given = {key: value for key, value in copy.deepcopy(config).items() if key not in NOT_TRIED}
        try:
            made = getattr(self.transformers, self.kind + "Config")(**given)
            made._attn_implementation = made._experts_implementation = "eager"
            model = getattr(self.transformers, self.kind + "ForCausalLM")(made).eval().to(self.torch.float64)
            if self.state is None:
                self.torch.manual_seed(1)
                self.state = {name: self.torch.randn_like(value) * (1 + (value.dim() < 2)) * 0.3
                              for name, value in model.state_dict().items()}
            model.load_state_dict(self.state)
            generator = self.torch.Generator().manual_seed(1)
            tokens = self.torch.randint(0, 64, (1, max(LENGTHS)), generator=generator)
            with self.torch.no_grad():
                return model(tokens, use_cache=False).logits
        except Exception:  # noqa: BLE001 whatever stops the class: it is not the same model
            return None


def walk(name, case, ours, torch, transformers):
    config = json.loads((golden.FAMILIES / name / "config.json").read_text())
    for key, default in getattr(transformers, case["kind"] + "Config")().to_dict().items():
        config.setdefault(key, default)
    config = {key: value for key, value in config.items() if key not in ("transformers_version", "_name_or_path")}
    theirs = Theirs(case["kind"], torch, transformers)
    base, message = ours.tensors(config)
    logits = theirs.logits(config)
    if base is None or logits is None:
        return {"": ("error", f"the config itself: {message or 'Transformers makes no model of it'}")}
    found = {}
    for key, changed in variants(config):
        tensors, message = ours.tensors(changed)
        if tensors is None:
            named = any(part in message for part in key.split(".")) or ": model." in message
            outcome = ("refused", "") if named else ("error", f"refused without its name: {message.strip()}")
        elif tensors != base:
            outcome = ("computed", "")
        else:
            other = theirs.logits(changed)
            same = other is not None and torch.equal(other, logits)
            value = changed[key.split(".")[0]]
            outcome = ("irrelevant", "") if same else (
                "error", f"dropped: Transformers' logits change with {json.dumps(value)}")
        order = ("irrelevant", "refused", "computed", "error")
        found[key] = max(found.get(key, outcome), outcome, key=lambda said: order.index(said[0]))
    return found


def main():
    golden.enter_environment()
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    ours, wanted, families, failed = Ours(sys.argv[1]), sys.argv[2:], {}, 0
    for name, case in golden.CASES.items():
        if (wanted and name not in wanted) or (not wanted and case["kind"] in families):
            continue
        families[case["kind"]] = name
        found = walk(name, case, ours, torch, transformers)
        for outcome in ("computed", "refused", "irrelevant"):
            print(f"{name}: {outcome}: {', '.join(sorted(key for key, said in found.items() if said[0] == outcome))}")
        for key, said in sorted(found.items()):
            if said[0] == "error":
                failed += 1
                print(f"{name}: ERROR: {key}: {said[1]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
