#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the golden files of the io room in tests/data/io (needs numpy, torch, safetensors, gguf).

    make_io.py                writes tests/data/io
    make_io.py --check DIR    reads with the safetensors package what tests/unit/test_safetensors wrote into DIR
    make_io.py --gguf FILE    prints name and CRC-32 of every tensor of a GGUF file as gguf-py dequantizes it

Every tensor is stored beside its expected value: <name>.f32 files hold what the reader must give, bit for bit.
"""
import argparse
import json
import os
import struct
import sys
import zipfile
import zlib

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "data", "io")


def numbers(shape, seed, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def expect(name, array):
    np.ascontiguousarray(array, dtype="<f4").tofile(os.path.join(OUT, name + ".f32"))


# ---- safetensors -------------------------------------------------------------------------------------------------

def make_safetensors():
    import torch
    from safetensors.torch import save_file
    x = torch.from_numpy(numbers((5, 7), 1, 4.0))
    tensors = {"f32": x, "f64": x.double() / 3, "f16": x.half(), "bf16": x.bfloat16(),
               "f8_e4m3": x.to(torch.float8_e4m3fn), "f8_e5m2": x.to(torch.float8_e5m2),
               "i64": torch.arange(6).reshape(2, 3), "u8": torch.arange(5, dtype=torch.uint8),
               "bool": torch.tensor([True, False]), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    save_file(tensors, os.path.join(OUT, "types.safetensors"), metadata={"format": "pt", "note": "äöü \"quoted\""})
    for name in ("f32", "f64", "f16", "bf16", "f8_e4m3", "f8_e5m2", "scalar"):
        expect("types." + name, tensors[name].float().numpy())
    # every F8 code
    codes = torch.arange(256, dtype=torch.uint8)
    for name, dtype in (("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
        expect("codes." + name, codes.view(dtype).float().numpy())
    save_file({"e4m3": codes.view(torch.float8_e4m3fn), "e5m2": codes.clone().view(torch.float8_e5m2)},
              os.path.join(OUT, "codes.safetensors"))


def make_sharded():
    import torch
    from safetensors.torch import save_file
    folder = os.path.join(OUT, "sharded")
    os.makedirs(folder, exist_ok=True)
    a, b, c = (torch.from_numpy(numbers((3, 4), s)) for s in (2, 3, 4))
    save_file({"a": a, "c": c}, os.path.join(folder, "model-00001-of-00002.safetensors"), metadata={"format": "pt"})
    save_file({"b": b}, os.path.join(folder, "model-00002-of-00002.safetensors"), metadata={"format": "pt"})
    index = {"metadata": {"total_size": 144},
             "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors",
                            "c": "model-00001-of-00002.safetensors"}}
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
        json.dump(index, f, indent=2)
    for name, t in (("a", a), ("b", b), ("c", c)):
        expect("sharded." + name, t.numpy())


def check(folder):
    """Reads the sets that the unit test leaves in `folder`; values follow a formula known to both sides."""
    from safetensors import safe_open
    failures = 0
    for entry in sorted(os.listdir(folder)):
        if not entry.endswith(".safetensors"):
            continue
        with safe_open(os.path.join(folder, entry), framework="pt") as f:
            assert f.metadata()["format"] == "pt", entry
            for name in f.keys():
                t = f.get_tensor(name)
                want = np.arange(t.numel()) % 100
                good = np.array_equal(t.double().numpy().ravel(), want)
                failures += not good
                print(("ok " if good else "not ok ") + entry + ":" + name, tuple(t.shape), t.dtype)
    for entry in sorted(os.listdir(folder)):
        if entry.endswith(".index.json"):
            index = json.load(open(os.path.join(folder, entry)))
            for name, shard in index["weight_map"].items():
                with safe_open(os.path.join(folder, shard), framework="pt") as f:
                    good = name in f.keys()
                    failures += not good
                    print(("ok " if good else "not ok ") + entry + ":" + name)
    return failures


# ---- GGUF --------------------------------------------------------------------------------------------------------

def random_blocks(qtype, rows, cols, seed):
    """Random bytes with finite, moderate f16 scales: every code and every packed bit pattern occurs."""
    import gguf
    block, size = gguf.GGML_QUANT_SIZES[qtype]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, cols // block, size), dtype=np.uint8)
    halves = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2],
              "Q6_K": [208], "Q2_K": [80, 82]}[qtype.name]
    for at in halves:
        d = (rng.standard_normal(raw.shape[:2]) * 0.01).astype("<f2")
        d[0, 0] = 6e-8  # a subnormal half
        raw[:, :, at:at + 2] = d.view(np.uint8).reshape(*raw.shape[:2], 2)
    return raw.reshape(rows, -1)


def make_gguf():
    import gguf
    w = gguf.GGUFWriter(os.path.join(OUT, "types.gguf"), "llama")
    w.add_uint8("k.u8", 200)
    w.add_int8("k.i8", -5)
    w.add_uint16("k.u16", 60000)
    w.add_int16("k.i16", -300)
    w.add_uint32("k.u32", 4000000000)
    w.add_int32("k.i32", -70000)
    w.add_uint64("k.u64", 1 << 40)
    w.add_int64("k.i64", -(1 << 40))
    w.add_float32("k.f32", 0.5)
    w.add_float64("k.f64", 1e-5)
    w.add_bool("k.bool", True)
    w.add_string("k.string", "wörld")
    w.add_array("k.strings", ["a", "", "çc"])
    w.add_array("k.ints", [1, -2, 3])
    w.add_array("k.floats", [0.25, -1.5])
    Q = gguf.GGMLQuantizationType
    x = numbers((3, 8), 5)
    w.add_tensor("f32", x)
    expect("types.gguf.f32", x)
    w.add_tensor("f16", x.astype(np.float16))
    expect("types.gguf.f16", x.astype(np.float16).astype(np.float32))
    bf16 = gguf.quantize(x, Q.BF16)
    w.add_tensor("bf16", bf16, raw_dtype=Q.BF16)
    expect("types.gguf.bf16", gguf.dequantize(bf16, Q.BF16))
    w.add_tensor("i32", np.arange(4, dtype=np.int32))
    for i, name in enumerate(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")):
        raw = random_blocks(Q[name], 3, 512, 10 + i)
        w.add_tensor(name.lower(), raw, raw_dtype=Q[name])
        expect("types.gguf." + name.lower(), gguf.dequantize(raw, Q[name]))
    w.add_tensor("q2_k", random_blocks(Q.Q2_K, 1, 256, 30), raw_dtype=Q.Q2_K)  # listed, not decoded
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def print_gguf(path):
    import gguf
    for t in gguf.GGUFReader(path).tensors:
        x = gguf.dequantize(t.data, t.tensor_type).astype("<f4")
        print(t.name, "%08x" % (zlib.crc32(np.ascontiguousarray(x).tobytes()) & 0xffffffff))


# ---- PyTorch -----------------------------------------------------------------------------------------------------

def rezip(source, target, method, rename=lambda n: n, edit=lambda n, b: b, keep=lambda n: True):
    with zipfile.ZipFile(source) as zin, zipfile.ZipFile(target, "w", method) as zout:
        for info in zin.infolist():
            if keep(info.filename):
                zout.writestr(rename(info.filename), edit(info.filename, zin.read(info)))


def make_pt():
    import collections
    import torch
    path = lambda name: os.path.join(OUT, name)
    x = torch.from_numpy(numbers((4, 6), 40))
    layer = torch.nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight.copy_(x)
        layer.bias.copy_(x[:, 0])
    state = layer.state_dict()
    torch.save(state, path("state_dict.pt"))
    expect("pt.x", x.numpy())
    expect("pt.bias", x[:, 0].numpy())
    torch.save({"weight": layer.weight, "bias": layer.bias}, path("parameters.pt"))
    torch.save(x, path("bare.pt"))
    base = torch.from_numpy(numbers((6, 5), 41))
    expect("pt.t", base.t().numpy())
    expect("pt.slice", base[1:5, 1:4].numpy())
    expect("pt.row", base[2].numpy())
    expect("pt.step", base.reshape(-1)[::3].numpy())
    expect("pt.expand", base[:1].expand(3, 5).numpy())
    expect("pt.permute", base.reshape(2, 3, 5).permute(2, 0, 1).numpy())
    torch.save({"t": base.t(), "slice": base[1:5, 1:4], "row": base[2], "step": base.reshape(-1)[::3],
                "expand": base[:1].expand(3, 5), "permute": base.reshape(2, 3, 5).permute(2, 0, 1)}, path("views.pt"))
    nested = {"model": {"layers": [{"w": x}, {"w": x.half()}], "step": 7, "lr": 0.5, "name": "text", "none": None},
              "list": [x.bfloat16(), (x.double(), True)], 3: torch.tensor(1.25), "big": 1 << 40,
              "ids": torch.arange(3), "empty": torch.zeros(0, 2)}
    torch.save(nested, path("nested.pt"))
    expect("pt.half", x.half().float().numpy())
    expect("pt.bf16", x.bfloat16().float().numpy())
    torch.save(collections.OrderedDict(a=x), path("protocol4.pt"), pickle_protocol=4)
    # Deflated, and with the location and byte order of other machines.
    rezip(path("views.pt"), path("deflated.pt"), zipfile.ZIP_DEFLATED)
    rezip(path("bare.pt"), path("cuda.pt"), zipfile.ZIP_STORED, rename=lambda n: n.replace("bare/", "R/"),
          edit=lambda n, b: b.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"),
          keep=lambda n: n.split("/", 1)[1] in ("data.pkl", "data/0", "version"))
    rezip(path("bare.pt"), path("big_endian.pt"), zipfile.ZIP_STORED,
          edit=lambda n, b: b"big" if n.endswith("byteorder") else b)
    torch.save(x, path("legacy.pt"), _use_new_zipfile_serialization=False)
    torch.save(layer, path("module.pt"))  # a whole module: refused by name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", metavar="DIR")
    parser.add_argument("--gguf", metavar="FILE")
    args = parser.parse_args()
    if args.check:
        return 1 if check(args.check) else 0
    if args.gguf:
        print_gguf(args.gguf)
        return 0
    os.makedirs(OUT, exist_ok=True)
    make_safetensors()
    make_sharded()
    make_gguf()
    make_pt()
    return 0


if __name__ == "__main__":
    sys.exit(main())
