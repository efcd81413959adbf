#!/usr/bin/env python3
"""Peer: a whole calibration of R1 and R2 in PyTorch as DartQuant (arXiv 2511.04063) does it, our own writing from the
description of its steps: the model in bf16 with its norms folded, layer by layer over all windows; the inputs of q_proj and
up_proj of every window and layer in a file each, those of o_proj in one file a layer; R1 by QR-Orth with SGD on a tenth of
the files, 64 of them a batch, 10 epochs; R2 of every layer on all its windows, 64 a batch, 10 epochs, two batches a step.
fp32 as soon as rows are read.

With --capture_windows, --r1_batches, --r2_batches a part of each stage is measured (the fits after one batch unmeasured)
and multiplied up to the whole. The time to load the model does not count. Prints one JSON line.

usage: peer_calibrate.py --model FILE.gguf|DIR --ids F.json [--nsamples 128] [--seqlen 2048] [--bsz 64] [--ep 10]
           [--capture_windows N] [--r1_batches N] [--r2_batches N] [--dtype bf16|f32] [--threads 2] [--work DIR]
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import math
import os
import random
import shutil
import tempfile
import time

import torch
from transformers import AutoModelForCausalLM

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--model", required=True)
p.add_argument("--ids", required=True)
p.add_argument("--nsamples", type=int, default=128)
p.add_argument("--seqlen", type=int, default=2048)
p.add_argument("--bsz", type=int, default=64)
p.add_argument("--ep", type=int, default=10)
p.add_argument("--accumulation", type=int, default=2, help="of R2; R1 takes a step each batch")
p.add_argument("--lr", type=float, default=1e-3)
p.add_argument("--capture_windows", type=int, default=0, help="0 = all")
p.add_argument("--r1_batches", type=int, default=0)
p.add_argument("--r2_batches", type=int, default=0)
p.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
p.add_argument("--threads", type=int, default=2)
p.add_argument("--work", help="folder for the captured inputs (18 GB and 9 GB for SmolLM2 whole)")
a = p.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(0)
random.seed(0)
dtype = torch.bfloat16 if a.dtype == "bf16" else torch.float32

gguf = {} if os.path.isdir(a.model) else {"gguf_file": os.path.basename(a.model)}
model = AutoModelForCausalLM.from_pretrained(a.model if not gguf else os.path.dirname(os.path.abspath(a.model)), dtype=dtype,
                                             attn_implementation="sdpa", **gguf).eval()
config, layers = model.config, model.model.layers
hidden, heads, kv = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
dim = getattr(config, "head_dim", None) or hidden // heads
folder = tempfile.mkdtemp(prefix="peer_calibrate.", dir=a.work)
seconds, parts = {}, {}


def orthogonal(*shape):
    """A start like the original's random Hadamard as far as cost goes."""
    return torch.linalg.qr(torch.randn(*shape))[0]


def fuse():
    for layer in layers:
        for norm, linears in ((layer.input_layernorm, ("q_proj", "k_proj", "v_proj")),
                              (layer.post_attention_layernorm, ("gate_proj", "up_proj"))):
            for name in linears:
                linear = getattr(layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp, name)
                linear.weight.data = (linear.weight.data.double() * norm.weight.data.double()).to(dtype)
            norm.weight.data.fill_(1)


def window_file(window, index, module):
    return os.path.join(folder, f"sample_{window}_layer_{index}_{module}.pt")


@torch.no_grad()
def capture(count):
    ids = json.load(open(a.ids, encoding="utf-8"))
    starts = [random.randint(0, len(ids) - a.seqlen - 1) for _ in range(count)]
    fuse()
    x = model.model.embed_tokens(torch.stack([torch.tensor(ids[s:s + a.seqlen]) for s in starts]))
    positions = torch.arange(a.seqlen)[None]
    rope = model.model.rotary_emb(x[:1], positions)
    seen = {}

    def hook(name):
        return lambda module, inputs: seen.__setitem__(name, inputs[0].detach())

    for index, layer in enumerate(layers):
        handles = [layer.self_attn.q_proj.register_forward_pre_hook(hook("self_attn_q_proj")),
                   layer.mlp.up_proj.register_forward_pre_hook(hook("mlp_up_proj")),
                   layer.self_attn.o_proj.register_forward_pre_hook(hook("o_proj"))]
        outputs = []
        for s in range(count):
            y = layer(x[s:s + 1], position_embeddings=rope, position_ids=positions, attention_mask=None)
            x[s] = (y[0] if isinstance(y, tuple) else y).view(a.seqlen, hidden)
            for module in ("self_attn_q_proj", "mlp_up_proj"):
                torch.save(seen[module].view(a.seqlen, hidden).clone(), window_file(s, index, module))
            outputs.append(seen["o_proj"].view(a.seqlen, heads * dim).clone())
        torch.save(torch.stack(outputs), os.path.join(folder, f"layer_{index}_self_attn_o_proj.pt"))
        for handle in handles:
            handle.remove()


def whip(o):
    return torch.exp(-o.abs()).sum(-1).mean()


def fit_r1(files, batches):
    """files: those of an epoch. Returns batches measured, their seconds."""
    z = torch.nn.Parameter(orthogonal(hidden, hidden))
    sgd = torch.optim.SGD([z], lr=a.lr, momentum=0.9)
    start, taken = time.perf_counter(), 0
    for epoch in range(a.ep):
        order = random.sample(files, len(files))
        for at in range(0, len(order), a.bsz):
            x = torch.stack([torch.load(f) for f in order[at:at + a.bsz]]).float()
            sgd.zero_grad()
            whip(x @ torch.linalg.qr(z)[0]).backward()
            sgd.step()
            taken += 1
            if batches and taken == 1:
                start = time.perf_counter()
            if batches and taken == 1 + batches:
                return batches, time.perf_counter() - start
    return taken, time.perf_counter() - start


def fit_r2(index, windows, batches):
    start = time.perf_counter()
    data = torch.load(os.path.join(folder, f"layer_{index}_self_attn_o_proj.pt"))
    loading = time.perf_counter() - start
    z = torch.nn.Parameter(orthogonal(1, dim, dim).repeat(kv, 1, 1))
    sgd = torch.optim.SGD([z], lr=a.lr, momentum=0.9)
    start, taken = time.perf_counter(), 0
    for epoch in range(a.ep):
        order = torch.randperm(windows)
        for at in range(0, windows, a.bsz):
            pick = order[at:at + a.bsz] % len(data)  # a part of the windows stands for all when not all were captured
            x = data[pick].float().view(-1, heads, dim).transpose(0, 1).contiguous()
            q = torch.linalg.qr(z)[0].repeat_interleave(heads // kv, dim=0)
            o = x @ q
            (torch.exp(-o.abs()).sum(dim=(0, 2)).mean() / a.accumulation).backward()
            taken += 1
            if taken % a.accumulation == 0:
                sgd.step()
                sgd.zero_grad()
            if batches and taken == 1:
                start = time.perf_counter()
            if batches and taken == 1 + batches:
                return batches, time.perf_counter() - start, loading
    return taken, time.perf_counter() - start, loading


try:
    count = min(a.capture_windows or a.nsamples, a.nsamples)
    start = time.perf_counter()
    capture(count)
    seconds["capture"] = (time.perf_counter() - start) * a.nsamples / count
    parts["capture"] = f"{count} of {a.nsamples} windows"

    # The original reads the files of windows with one or two digits, a tenth of them.
    files = [window_file(s, i, m) for s in range(count) for i in range(len(layers)) for m in ("self_attn_q_proj", "mlp_up_proj")]
    share = int(0.1 * min(a.nsamples, 100) * len(layers) * 2)
    used = [files[i % len(files)] for i in range(share)]
    whole = a.ep * math.ceil(share / a.bsz)
    taken, spent = fit_r1(used, a.r1_batches)
    rows = a.ep * share / (taken * a.bsz) if a.r1_batches else 1  # by rows: the last batch of an epoch is smaller
    seconds["r1"] = spent * rows
    parts["r1"] = f"{taken} of {whole} batches"

    whole = a.ep * math.ceil(a.nsamples / a.bsz)
    total = 0.0
    for index in range(1 if a.r2_batches else len(layers)):
        taken, spent, loading = fit_r2(index, a.nsamples, a.r2_batches)
        total += spent * whole / taken + loading * (a.nsamples / count if a.r2_batches else 1)
    seconds["r2"] = total * (len(layers) if a.r2_batches else 1)
    parts["r2"] = f"{taken} of {whole} batches of 1 of {len(layers)} layers" if a.r2_batches else "all"
finally:
    shutil.rmtree(folder)
print(json.dumps({"peer": f"PyTorch calibration, capture in {a.dtype}", "torch": torch.__version__, "nsamples": a.nsamples,
                  "seqlen": a.seqlen, "parts": parts, "stages": {k: round(v, 2) for k, v in seconds.items()},
                  "seconds": round(sum(seconds.values()), 2)}))
