#!/usr/bin/env python3
"""Makes tests/data/formats: a tiny LLaMA in the quantized layouts of other tools, and its logits.

Needs torch, transformers, safetensors, gptqmodel, compressed-tensors. Codes, scales and zero points are random (seeded);
the packing is done by gptqmodel and compressed-tensors (Diffulex: by the lines below, after its description); the expected
logits come from transformers run in float64 on scale * (code - zero).
SPDX-License-Identifier: Apache-2.0
"""
import json
import os
import pathlib
import shutil

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from gptqmodel.nn_modules.qlinear.gemv_awq import calculate_zeros_width
from gptqmodel.nn_modules.qlinear.gemv_fast_awq import pack_intweight
from gptqmodel.quantization.awq.utils.packing_utils import pack_awq, pack_awq_columns
from gptqmodel.utils.planar_packing import planar_pack_cols, planar_pack_rows
from safetensors.torch import save_file
from scipy.linalg import hadamard
from transformers import LlamaConfig, LlamaForCausalLM

OUT = pathlib.Path(__file__).resolve().parents[1] / "data" / "formats"
VOCAB, TOKENS, HIDDEN, INTER = 32, 12, 64, 96
CONFIG = dict(hidden_size=HIDDEN, intermediate_size=INTER, num_attention_heads=4, num_key_value_heads=2,
              vocab_size=VOCAB, num_hidden_layers=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)


def random_linear(n, k, bits, group, sym, g, act_order=False):
    group = k if group < 1 else group
    groups = -(-k // group)
    codes = torch.randint(0, 2 ** bits, (n, k), generator=g)
    zero = torch.full((n, groups), 2 ** (bits - 1)) if sym else torch.randint(0, 2 ** bits, (n, groups), generator=g)
    scale = ((torch.rand(n, groups, generator=g) + 0.5) / 2 ** bits / k ** 0.5 * 4).half()
    index = torch.arange(k) // group
    if act_order:
        index = index[torch.randperm(k, generator=g)]
    weight = scale.double()[:, index] * (codes - zero[:, index])
    return codes, scale, zero, index.int(), weight


def dense_rows(codes, bits):
    """The stream of GPTQ: down the columns of [k, n]; compressed-tensors' packer along rows is the same stream."""
    return pack_to_int32((codes - 2 ** (bits - 1)).to(torch.int8), bits)


def gptq(name, c, s, z, index, bits, kind, empty=False):
    if kind == "gptq_p":
        q, qz = planar_pack_rows(c.T.contiguous(), bits), planar_pack_cols(z.T.contiguous(), bits)
    else:
        q = dense_rows(c, bits).T
        stored = (z - 1) % 2 ** bits if kind == "gptq" else z
        qz = dense_rows(stored.T.contiguous(), bits)
    return {f"{name}.qweight": q, f"{name}.qzeros": qz, f"{name}.scales": s.T,
            f"{name}.g_idx": torch.empty(0, dtype=torch.int32) if empty else index}


def awq(name, c, s, z, group, version):
    k = c.shape[1]
    if version == "gemm":
        q, qz = pack_awq(c.T.contiguous(), z.T.contiguous(), 4)
        return {f"{name}.qweight": q, f"{name}.qzeros": qz, f"{name}.scales": s.T}
    width = 8 * calculate_zeros_width(k, group)
    pad = lambda t: torch.nn.functional.pad(t, (0, width - t.shape[1]))
    if version == "gemv":
        return {f"{name}.qweight": pack_awq_columns(c.int(), 4), f"{name}.qzeros": pack_awq_columns(pad(z).int(), 4),
                f"{name}.scales": pad(s)}
    return {f"{name}.qweight": pack_intweight(c.int(), 4, 64), f"{name}.scales": pad(s).T,
            f"{name}.qzeros": pad(-(z * s.float())).half().T}


def padded(codes, bits):
    """Before 0.17: floor(32 / bits) values per word."""
    per = 32 // bits
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % per)).reshape(codes.shape[0], -1, per)
    words = (codes << (torch.arange(per) * bits)).sum(-1)
    return torch.where(words >= 2 ** 31, words - 2 ** 32, words).to(torch.int32)


def compressed(name, c, s, z, index, bits, sym, kind, act_order=False):
    half = 2 ** (bits - 1)
    if kind == "int-quantized":
        t = {f"{name}.weight": (c - half).to(torch.int8), f"{name}.weight_scale": s}
        if not sym:
            t[f"{name}.weight_zero_point"] = (z - half).to(torch.int8)
        return t
    old = kind == "old"
    t = {f"{name}.weight_packed": padded(c, bits) if old else dense_rows(c, bits), f"{name}.weight_scale": s,
         f"{name}.weight_shape": torch.tensor(c.shape)}
    if not sym:
        t[f"{name}.weight_zero_point"] = (padded(z.T.contiguous(), bits).T if old else
                                          pack_to_int32((z - half).to(torch.int8), bits, packed_dim=0))
    if act_order:
        t[f"{name}.weight_g_idx"] = index
    return t


def ct_config(bits, group, sym, fmt, kind="int", **extra):
    weights = {"num_bits": bits, "type": kind, "symmetric": sym, "strategy": "group" if group > 0 else "channel",
               "group_size": group if group > 0 else None, "dynamic": False, "actorder": None}
    g = {"targets": ["Linear"], "weights": weights, "input_activations": extra.pop("inputs", None),
         "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": fmt, "version": "0.20.0",
            "quantization_status": "compressed", "ignore": ["lm_head"], "kv_cache_scheme": None, "sparsity_config": {},
            "config_groups": {"group_0": g}, **extra}


R4 = {"config_groups": {"R4": {
    "type": "hadamard", "head_dim": 32, "precision": "torch.float32", "randomize": False, "requires_grad": False,
    "apply": [{"targets": ["re:.*down_proj$"], "location": "input", "inverse": False, "ignore": []},
              {"targets": ["re:.*down_proj$"], "location": "weight_input", "inverse": True, "ignore": []}]}}}


def case(name, index, pack, quantization, bits, group, sym=True, act_order=False, rotate=0, beside=None, weigh=None,
         head=False):
    g = torch.Generator().manual_seed(index)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).half()
    tensors = {}
    for key, p in model.named_parameters():
        p.data = (torch.randn(p.shape, generator=g) if p.dim() > 1 else
                  1 + 0.3 * torch.randn(p.shape, generator=g)).half()
        tensors[key] = p.data
    exact = {k: v.double() for k, v in tensors.items()}
    for key in [k for k in tensors if "_proj.weight" in k or (head and k == "lm_head.weight")]:
        module = key[: -len(".weight")]
        n, k = tensors.pop(key).shape
        b, gs = bits(module) if callable(bits) else (bits, group)
        if weigh:
            parts, weight = weigh(module, n, k, g)
        else:
            c, s, z, gi, weight = random_linear(n, k, b, gs, sym, g, act_order)
            parts = pack(module, c, s, z, gi, b)
        if rotate and "down_proj" in module:
            h = torch.block_diag(*[torch.tensor(hadamard(rotate)).double() / rotate ** 0.5] * (k // rotate))
            weight = weight @ h  # the checkpoint holds W M; x M (W M)^T = x W^T
        tensors.update(parts)
        exact[key] = weight
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).double()
    model.load_state_dict(exact)
    config = model.config.to_dict()
    for k in ("dtype", "transformers_version", "_name_or_path"):
        config.pop(k, None)
    config["torch_dtype"] = "float16"
    if beside:
        (folder / beside).write_text(json.dumps(quantization, indent=1) + "\n")
    else:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    quantized = {k: v for k, v in tensors.items() if k.endswith((".qweight", ".qzeros", ".scales", ".g_idx"))}
    rest = tensors
    if name.startswith("diffulex"):
        rest = {k: v for k, v in tensors.items() if k not in quantized}
        save_file({k: v.contiguous() for k, v in quantized.items()}, folder / "model_quantized_gptq.safetensors")
    save_file({k: v.contiguous() for k, v in rest.items()}, folder / "model.safetensors", {"format": "pt"})
    ids = torch.randint(0, VOCAB, (1, TOKENS), generator=g)
    with torch.no_grad():
        logits = model.eval()(ids).logits[0]
    save_file({"ids": ids[0].int(), "logits": logits.float(), "nll": torch.zeros(1, dtype=torch.float64)},
              folder / "expected.bin")


def fp8(module, n, k, g):
    w = torch.randn(n, k, generator=g).to(torch.float8_e4m3fn)
    s = (torch.rand(n, 1, generator=g) + 0.5).bfloat16() / 8
    return {f"{module}.weight": w, f"{module}.weight_scale": s}, w.double() * s.double()


def diffulex(group):
    def make(module, n, k, g):
        groups = -(-n // group)
        pack = lambda q: (q[:, 0::2] | q[:, 1::2] << 4).to(torch.uint8).view(torch.int8)
        q, z = (torch.randint(0, 16, (r, k), generator=g) for r in (n, groups))
        s = (torch.rand(groups, k, generator=g) + 0.5) / 40
        index = (torch.arange(n) // group).int()
        weight = (q - 8 + (z - 8)[index]) * s.double()[index]
        return {f"{module}.qweight": pack(q), f"{module}.qzeros": pack(z), f"{module}.scales": s,
                f"{module}.g_idx": index}, weight
    return make


def main():
    gq = lambda kind, **k: (lambda m, c, s, z, i, b: gptq(m, c, s, z, i, b, kind, **k))
    conf = lambda kind, b, g, sym, act=False: {"quant_method": "gptq", "bits": b, "group_size": g, "desc_act": act,
                                               "sym": sym, "checkpoint_format": kind, "pack_dtype": "int32"}
    case("gptq_w4", 1, gq("gptq"), conf("gptq", 4, 32, True), 4, 32)
    case("gptq_w3_act_order", 2, gq("gptq_v2"), conf("gptq_v2", 3, 32, False, True), 3, 32, False, True)
    case("gptq_w2_empty_g_idx", 3, gq("gptq", empty=True),
         {"w_bit": 2, "q_group_size": 32, "desc_act": False, "sym": False}, 2, 32, False, beside="quantize_config.json")
    case("gptq_w8_row", 4, gq("gptq_v2"), conf("gptq_v2", 8, -1, False), 8, -1, False)
    case("gptq_mislabelled", 5, gq("gptq_v2"), conf("gptq", 4, 32, True), 4, 32)
    case("gptq_planar_w5", 6, gq("gptq_p"), conf("gptq_p", 5, 32, False), 5, 32, False)
    dynamic = conf("gptq", 4, 32, True)
    dynamic["dynamic"] = {r"+:.*\.mlp\..*": {"bits": 8, "group_size": 16}}
    case("gptq_dynamic", 7, gq("gptq"), dynamic, lambda m: (8, 16) if ".mlp." in m else (4, 32), 0)
    for i, version in enumerate(["gemm", "gemv", "gemv_fast"]):
        inter, g = CONFIG["intermediate_size"], 32
        CONFIG["intermediate_size"] = 128
        case(f"awq_{version}", 10 + i, lambda m, c, s, z, _, b: awq(m, c, s, z, g, version),
             {"quant_method": "awq", "bits": 4, "group_size": g, "zero_point": True, "version": version}, 4, g, False)
        CONFIG["intermediate_size"] = inter
    ct = lambda sym, kind, **k: (lambda m, c, s, z, i, b: compressed(m, c, s, z, i, b, sym, kind, **k))
    case("ct_w4_r4", 20, ct(True, "new"), ct_config(4, 32, True, "pack-quantized", transform_config=R4), 4, 32,
         rotate=32)
    case("ct_w3_act_order", 21, ct(False, "new", act_order=True), ct_config(3, 32, False, "pack-quantized"), 3, 32,
         False, True)
    case("ct_w5_old", 22, ct(False, "old"), ct_config(5, 32, False, "pack-quantized"), 5, 32, False)
    case("ct_int8", 23, ct(True, "int-quantized"), ct_config(8, -1, True, "int-quantized"), 8, -1)
    case("ct_fp8", 24, None, ct_config(8, -1, True, "float-quantized", "float"), 8, -1, weigh=fp8)
    names = [f"model.layers.0.self_attn.{p}_proj" for p in "qkvo"] + \
            [f"model.layers.0.mlp.{p}_proj" for p in ("gate", "up", "down")]
    sizes = lambda m: {"q": (64, 64), "k": (32, 64), "v": (32, 64), "o": (64, 64), "g": (96, 64), "u": (96, 64),
                       "d": (64, 96)}[m.split(".")[-1][0]]
    modules = [{"name": m, "out_features": sizes(m)[0], "in_features": sizes(m)[1], "group_size": 20, "bits": 4}
               for m in names]
    case("gptq_head", 8, gq("gptq_v2"), {**conf("gptq_v2", 4, 16, False, True), "lm_head": True}, 4, 16, False, True,
         head=True)
    whole = ct_config(8, -1, True, "pack-quantized")
    whole["ignore"] = []
    case("ct_head", 25, ct(True, "new"), whole, 8, -1, head=True)
    case("diffulex", 30, None, {"quant_format": "gptq", "group_size": 20, "bits": 4, "quantized_modules": modules}, 4,
         20, weigh=diffulex(20), beside="quantization_metadata_gptq.json")


if __name__ == "__main__":
    main()
