#!/usr/bin/env python3
"""Files written by `dartquant export` read by the programs they are meant for: every dequantized weight compared.

    python3 -m venv V && V/bin/pip install gptqmodel compressed-tensors gguf
    V/bin/python tests/bench/peer_formats.py [--model DIR] [--dartquant build/bin/dartquant] [--only WORD...]

Each case quantizes the model to nearest, exports it, and has the same folder written once more as plain fp32 weights
(`--format hf:f32`): these are what a peer has to find. Prints one line per case; programs that are not installed are
skipped by name. SPDX-License-Identifier: Apache-2.0
"""
import argparse
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # GPTQModel compiles its kernels, which only costs time here
HERE = pathlib.Path(__file__).resolve().parent.parent.parent


def dartquant(args, *words):
    done = subprocess.run([args.dartquant, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)


def plain(args, opened, work):
    """{name: fp32 weight} of what dartquant reads there."""
    from safetensors.numpy import load_file
    folder = work / "plain"
    dartquant(args, "export", opened, "--format", "hf:f32", "--out", folder)
    tensors = {}
    for f in folder.glob("*.safetensors"):
        tensors.update(load_file(f))
    return tensors


def linears(tensors):
    return {k: v for k, v in tensors.items() if k.endswith("_proj.weight")}


def compressed_tensors(folder, wanted):
    """compressed-tensors' own unpacker, its products in fp64 so that only codes, scales and zero points count."""
    import json

    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file
    config = QuantizationConfig.model_validate(json.loads((folder / "config.json").read_text())["quantization_config"])
    scheme = next(iter(config.config_groups.values()))
    compressor = BaseCompressor.get_value_from_registry(scheme.format or config.format)
    state = load_file(folder / "model.safetensors")
    for name, w in wanted.items():
        stem = name[: -len("weight")]
        part = {k[len(stem):]: v for k, v in state.items() if k.startswith(stem)}
        part["weight_scale"] = part["weight_scale"].double()
        got = compressor.decompress(part, scheme)["weight"]
        same(name, got.to(torch.float32).numpy(), w)


def gptqmodel(folder, wanted):
    """GPTQModel's loader and its plain torch kernels on the CPU, which dequantize in fp16."""
    import torch
    from gptqmodel import BACKEND, GPTQModel
    awq = '"awq"' in (folder / "config.json").read_text()
    model = GPTQModel.load(str(folder), backend=BACKEND.AWQ_TORCH if awq else BACKEND.GPTQ_TORCH, device="cpu",
                           dtype=torch.float16)
    modules = dict(model.model.named_modules())
    for name, w in wanted.items():
        m = modules[name[: -len(".weight")]]
        if awq:
            from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
            got = dequantize_gemm(m.qweight, m.qzeros, m.scales.half(), m.bits, m.group_size)
        else:
            got = m.dequantize_weight()
        same(name, got.T.float().numpy(), w.astype(np.float16).astype(np.float32))


def gguf(folder, wanted):
    """gguf-py's reader and dequantizer; q and k have their rows interleaved."""
    from gguf import GGUFReader
    from gguf.quants import dequantize
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down"}
    reader = GGUFReader(folder / "model.gguf")
    heads = {k: int(reader.fields[f"llama.attention.{f}"].parts[-1][0])
             for k, f in (("attn_q", "head_count"), ("attn_k", "head_count_kv"))}
    tensors = {t.name: t for t in reader.tensors}
    for name, w in wanted.items():
        layer, module = name[len("model.layers."): -len(".weight")].split(".", 1)
        t = tensors[f"blk.{layer}.{names[module]}.weight"]
        got = dequantize(t.data, t.tensor_type).reshape(w.shape)
        if names[module] in heads:
            h = heads[names[module]]
            got = got.reshape(h, w.shape[0] // h // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)
        same(name, got, w)


def packed_by_compressed_tensors(args):
    """Files whose words compressed-tensors packed (any version: before 0.17 words of 3, 5, 6, 7 bits had gaps), read here."""
    import json

    import torch
    from safetensors.torch import load_file, save_file
    try:
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    except ImportError:
        try:
            from compressed_tensors.compressors.pack_quantized import pack_to_int32
        except ImportError:  # up to 0.15 or so
            from compressed_tensors.compressors.quantized_compressors.pack_quantized import pack_to_int32
    source = HERE / "tests/data/formats/ct_w5_old"
    base = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    plain_tensors = {k: v for k, v in base.items() if "_proj." not in k}
    g = torch.Generator().manual_seed(1)
    for bits in range(2, 9):
        for symmetric in (True, False):
            tensors, wanted, low, high = dict(plain_tensors), {}, -2 ** (bits - 1), 2 ** (bits - 1)
            for name in (k[: -len(".weight_shape")] for k in base if k.endswith(".weight_shape")):
                rows, cols = base[name + ".weight_shape"].tolist()
                q = torch.randint(low, high, (rows, cols), generator=g).to(torch.int8)
                zero = torch.randint(low, high, (rows, cols // 32), generator=g).to(torch.int8)
                scale = (torch.rand(rows, cols // 32, generator=g) * 0.02 + 0.01).half()
                if symmetric:
                    zero.zero_()
                else:
                    tensors[name + ".weight_zero_point"] = pack_to_int32(zero, bits, packed_dim=0).contiguous()
                tensors[name + ".weight_packed"] = pack_to_int32(q, bits)
                tensors[name + ".weight_scale"] = scale
                tensors[name + ".weight_shape"] = torch.tensor([rows, cols])
                steps = q.view(rows, -1, 32).float() - zero.float()[..., None]
                wanted[name + ".weight"] = (steps * scale.float()[..., None]).view(rows, cols).numpy()
            weights.update(num_bits=bits, symmetric=symmetric)
            with tempfile.TemporaryDirectory() as temporary:
                work = pathlib.Path(temporary)
                (work / "in").mkdir()
                (work / "in/config.json").write_text(json.dumps(config))
                save_file(tensors, work / "in/model.safetensors", metadata={"format": "pt"})
                got = linears(plain(args, work / "in", work))
                for name, w in wanted.items():
                    same(name, got[name], w)


def same(name, got, wanted):
    if got.shape != wanted.shape or not np.array_equal(got, wanted):
        most = np.abs(got - wanted).max() if got.shape == wanted.shape else (got.shape, wanted.shape)
        raise AssertionError(f"{name} differs by {most}")


W4 = ["--w_bits", "4", "--w_groupsize", "32", "--w_rtn"]
CASES = [
    ("compressed_tensors", compressed_tensors, "compressed-tensors", W4),
    ("compressed_tensors", compressed_tensors, "compressed-tensors", W4 + ["--w_asym"]),
    ("compressed_tensors", compressed_tensors, "compressed-tensors", ["--w_bits", "3", "--w_rtn", "--w_asym"]),
    ("compressed_tensors", compressed_tensors, "compressed-tensors:int-quantized", ["--w_bits", "8", "--w_rtn"]),
    ("gguf", gguf, "gguf:q4_0", W4),
    ("gguf", gguf, "gguf:q4_1", W4 + ["--w_asym"]),
    ("gguf", gguf, "gguf:q8_0", ["--w_bits", "8", "--w_groupsize", "32", "--w_rtn"]),
    ("gguf", gguf, "gguf:q4_k", []),
    ("gguf", gguf, "gguf:q6_k", []),
    ("gguf", gguf, "gguf:bf16", []),
    ("gptqmodel", gptqmodel, "gptq", W4),
    ("gptqmodel", gptqmodel, "gptq_v2", W4 + ["--w_asym"]),
    ("gptqmodel", gptqmodel, "gptq_v2", ["--w_bits", "3", "--w_groupsize", "32", "--w_rtn", "--w_asym"]),
    ("gptqmodel", gptqmodel, "awq", W4 + ["--w_asym"]),
]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", default=HERE / "tests/data/tiny")
    p.add_argument("--dartquant", default=HERE / "build/bin/dartquant")
    p.add_argument("--only", nargs="*", help="programs or formats; packed: files packed by compressed-tensors")
    args = p.parse_args()
    failed = 0
    if not args.only or "packed" in args.only:
        if importlib.util.find_spec("compressed_tensors"):
            import compressed_tensors
            packed_by_compressed_tensors(args)
            print(f"ok 14 files packed by compressed-tensors {compressed_tensors.__version__} are read", flush=True)
        else:
            print("skip files packed by compressed-tensors: not installed")
    for package, check, name, options in CASES:
        label = f"{package} reads {name} {' '.join(o for o in options if o != '--w_rtn')}".rstrip()
        if args.only and not {package, name} & set(args.only):
            continue
        if not importlib.util.find_spec(package):
            print(f"skip {label}: not installed")
            continue
        with tempfile.TemporaryDirectory() as temporary:
            work = pathlib.Path(temporary)
            out = work / "out"
            try:
                dartquant(args, "quantize", args.model, "--no_rotation", *options, "--export", name, "--out", out)
                opened = out / "model.gguf" if check is gguf else out
                check(out, linears(plain(args, opened, work)))
                print(f"ok {label}", flush=True)
            except Exception as e:  # a peer's own failure is a result too
                failed += 1
                print(f"not ok {label}: {type(e).__name__}: {e}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
