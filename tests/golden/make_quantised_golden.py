#!/usr/bin/env python3
"""Makes the golden checkpoints of this folder's `quantised`: weights as other programs pack them, and as these programs
read them again.

    ./make_quantised_golden.py

Each case is a folder with the config.json and model.safetensors of a tiny random model, and dequantised.safetensors: what
Transformers (MXFP4) or compressed-tensors (INT4, FP8) make of the quantised weights, under the names that these have when
they are not quantised. The environment is make_family_golden.py's.
"""
import json
import re
import shutil

import make_family_golden as golden

FOLDER = golden.HERE / "quantised"
SMALL = dict(golden.GROUPED, hidden_size=64, num_hidden_layers=1, vocab_size=32)

CASES = {
    "gpt_oss_mxfp4": dict(
        kind="GptOss", config=dict(SMALL, intermediate_size=96, num_local_experts=2, num_experts_per_tok=2, sliding_window=6,
                                  rope_parameters=dict(golden.YARN, truncate=False)),
        quantization_config=dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "lm_head"])),
    "qwen3_moe_int4": dict(
        kind="Qwen3Moe", weights=dict(num_bits=4, type="int", strategy="group", group_size=32, symmetric=True),
        format="pack-quantized", ignore=["lm_head", "re:.*self_attn.*", "re:.*mlp.gate$"]),
    "qwen3_moe_int4_zero_points": dict(
        kind="Qwen3Moe", weights=dict(num_bits=4, type="int", strategy="group", group_size=32, symmetric=False),
        format="pack-quantized", ignore=["lm_head", "re:.*mlp.gate$"]),
    "qwen3_moe_int8_rows": dict(
        kind="Qwen3Moe", weights=dict(num_bits=8, type="int", strategy="channel", symmetric=True),
        format="pack-quantized", ignore=["lm_head", "re:.*self_attn.*", "re:.*mlp.gate$"]),
    "qwen3_moe_fp8_rows": dict(
        kind="Qwen3Moe", weights=dict(num_bits=8, type="float", strategy="channel", symmetric=True),
        format="float-quantized", ignore=["lm_head", "re:.*mlp.gate$"]),
}
QWEN = dict(SMALL, intermediate_size=64, moe_intermediate_size=32, num_experts=3, num_experts_per_tok=2)


def is_ignored(name, ignore):
    return any(re.match(rule[3:], name) if rule.startswith("re:") else rule == name for rule in ignore)


def mxfp4(tensors, torch):
    """The experts in blocks of random bits, and what Transformers makes of them."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    stored, expected = {}, {}
    for name, tensor in tensors.items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(121, 126, (experts, outputs, inputs // 32), dtype=torch.uint8)
        stored[name + "_blocks"], stored[name + "_scales"] = blocks, scales
        expected[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16).contiguous()
    return stored, expected


def compressed(tensors, case, torch):
    """Linear weights as compressed-tensors packs them, and unpacks them again."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**case["weights"])
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(case["format"])
    stored, expected = {}, {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if tensor.dim() < 2 or "embed" in name or is_ignored(module, case["ignore"]):
            stored[name] = tensor
            continue
        size = args.group_size or tensor.shape[1]
        grouped = tensor.reshape(tensor.shape[0], -1, size)
        scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
        state = {"weight": tensor, "weight_scale": scale, "weight_zero_point": zero}
        packed = compressor.compress(state, scheme)
        for part, value in packed.items():
            stored[f"{module}.{part}"] = value.contiguous()
        expected[name] = compressor.decompress(dict(packed), scheme)["weight"].to(torch.float32).contiguous()
    return stored, expected


def main():
    golden.enter_environment()
    import safetensors.torch
    import torch
    import transformers

    for seed, (name, case) in enumerate(CASES.items(), start=1):
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made = golden.make_model(dict(case, config=case.get("config", QWEN)), seed, torch, transformers)
        made.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        tensors = {key: value.to(torch.float32) for key, value in tensors.items()}
        quantization = case.get("quantization_config")
        if quantization:
            stored, expected = mxfp4(tensors, torch)
        else:
            stored, expected = compressed(tensors, case, torch)
            quantization = dict(quant_method="compressed-tensors", format=case["format"], ignore=case["ignore"],
                                kv_cache_scheme=None,
                                config_groups=dict(group_0=dict(targets=["Linear"], weights=case["weights"])))
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = quantization
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        safetensors.torch.save_file(stored, folder / "model.safetensors")
        safetensors.torch.save_file(expected, folder / "dequantised.safetensors")
        print(f"{name}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
