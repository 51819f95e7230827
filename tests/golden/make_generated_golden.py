#!/usr/bin/env python3
"""Makes generated.json in each golden checkpoint's folder: what Transformers' generate() makes of the first of its
sequences, in float32 on the CPU, greedily, without a stop at the end of a sequence.

    ./make_generated_golden.py [FOLDER ...]

generated.json has `prompts`, the sequences cut to at most 9 tokens, and `outputs`, 6 tokens for each. The environment is
that of make_family_golden.py.
"""
import json
import pathlib
import sys

from make_family_golden import FAMILIES, HERE, enter_environment

LONGEST_PROMPT = 9
OUTPUT = 6


def generate(folder, torch, transformers):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    prompts = [ids[:LONGEST_PROMPT] for ids in json.loads((folder / "sequences.json").read_text())]
    # What it was saved with may stop early, or sample.
    model.generation_config = transformers.GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0,
                                                            max_new_tokens=OUTPUT)
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        made = model.generate(ids, attention_mask=torch.ones_like(ids))
        outputs.append(made[0, len(prompt):].tolist())
        assert len(outputs[-1]) == OUTPUT, folder
    return {"prompts": prompts, "outputs": outputs}


def main():
    enter_environment()
    import torch
    import transformers

    torch.set_num_threads(1)
    everywhere = sorted(path.parent for root in (HERE, FAMILIES) for path in root.glob("*/sequences.json"))
    for folder in [pathlib.Path(name) for name in sys.argv[1:]] or everywhere:
        (folder / "generated.json").write_text(json.dumps(generate(folder, torch, transformers)) + "\n")
        print(folder.name)


if __name__ == "__main__":
    main()
