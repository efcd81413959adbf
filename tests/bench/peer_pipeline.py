#!/usr/bin/env python3
"""Peer: the whole rotate - GPTQ - measure job in PyTorch, following the published order of steps. Prints one JSON line.

Written from the description of the method (docs/numerics.md), for LLaMA-architecture models, fp32 on the CPU:
fuse norms; random Hadamard R1 and R2 folded in double; online R4 (and R3 when keys are quantized); GPTQ layer by layer,
where each of the four groups of linears re-runs all calibration windows through the partly quantized layer (the
upstream habit: five passes a layer), one full-product fp32 Hessian per linear, Cholesky - inverse - Cholesky, column
loop in blocks of 128, MSE clip search; then perplexity with per-token fake quantization.

usage: peer_pipeline.py --model FILE.gguf|DIR --cal-ids F --test-ids F [--nsamples 8] [--seqlen 2048] [--limit 4]
                        [--w_bits 4 --a_bits 4 --k_bits 4 --v_bits 4] [--layers N: stop after N layers, time only]
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import math
import os
import random
import time

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

p = argparse.ArgumentParser(description=__doc__)
p.add_argument("--model", required=True)
p.add_argument("--cal-ids", required=True)
p.add_argument("--test-ids", required=True)
p.add_argument("--nsamples", type=int, default=8)
p.add_argument("--seqlen", type=int, default=2048)
p.add_argument("--limit", type=int, default=4)
for name in ("w", "a", "k", "v"):
    p.add_argument(f"--{name}_bits", type=int, default=4)
p.add_argument("--a_clip_ratio", type=float, default=0.9)
p.add_argument("--kv_clip_ratio", type=float, default=0.95)
p.add_argument("--percdamp", type=float, default=0.01)
p.add_argument("--threads", type=int, default=2)
p.add_argument("--layers", type=int, default=0)
args = p.parse_args()
torch.set_num_threads(args.threads)
torch.manual_seed(0)
torch.set_grad_enabled(False)

stages = {}


def timed(name, start):
    stages[name] = stages.get(name, 0.0) + time.perf_counter() - start


# ---- Hadamard: K * 2^m with K from Paley I or II -----------------------------------------------------------------
def legendre(a, q):
    a %= q
    return 0 if a == 0 else (1 if pow(a, (q - 1) // 2, q) == 1 else -1)


def prime(q):
    return q > 1 and all(q % d for d in range(2, int(q ** 0.5) + 1))


def paley(k):
    if k == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    q = k - 1
    if prime(q) and q % 4 == 3:
        h = torch.ones(k, k, dtype=torch.float64)
        h[0, 1:] = -1
        for i in range(q):
            for j in range(q):
                h[i + 1, j + 1] = 1 if i == j else legendre(i - j, q)
        return h
    q = k // 2 - 1
    if prime(q) and q % 4 == 1:
        s = torch.zeros(q + 1, q + 1, dtype=torch.float64)
        s[0, 1:] = s[1:, 0] = 1
        for i in range(q):
            for j in range(q):
                s[i + 1, j + 1] = legendre(i - j, q)
        eye = torch.eye(q + 1, dtype=torch.float64)
        return torch.cat([torch.cat([s + eye, s - eye], 1), torch.cat([s - eye, -s - eye], 1)], 0)
    raise SystemExit(f"no Hadamard factor {k}")


def hadamard(n):
    for k in (60, 52, 36, 28, 40, 20, 12, 1):
        if n % k == 0 and (n // k) & (n // k - 1) == 0:
            h = paley(k) if k != 40 else torch.kron(torch.tensor([[1., 1.], [1., -1.]]).double(), paley(20))
            while h.shape[0] < n:
                h = torch.kron(h, torch.tensor([[1., 1.], [1., -1.]], dtype=torch.float64))
            return h / math.sqrt(n)
    raise SystemExit(f"no Hadamard of order {n}")


# ---- quantizers --------------------------------------------------------------------------------------------------
def fake_quant(x, bits, clip):
    """Asymmetric per row with zero in the range."""
    if bits >= 16:
        return x
    top = 2 ** bits - 1
    low = torch.clamp(x.amin(-1, keepdim=True), max=0) * clip
    high = torch.clamp(x.amax(-1, keepdim=True), min=0) * clip
    flat = (low == 0) & (high == 0)
    low[flat], high[flat] = -1, 1
    scale = (high - low) / top
    zero = torch.round(-low / scale)
    return scale * (torch.clamp(torch.round(x / scale) + zero, 0, top) - zero)


def weight_scale(w, bits):
    """Symmetric scale per row with the 80-step clip search."""
    top = 2 ** (bits - 1) - 1
    amax = torch.clamp(w.abs().amax(1), min=1e-5)
    best, scale = torch.full_like(amax, math.inf), amax / top
    for i in range(80):
        s = (1 - i / 100) * amax / top
        q = s[:, None] * torch.clamp(torch.round(w / s[:, None]), -top - 1, top)
        error = ((q - w).abs() ** 2.4).sum(1)
        better = error < best
        best[better], scale[better] = error[better], s[better]
    return scale[:, None]


def gptq(linear, hessian, bits):
    w, h = linear.weight.data.clone(), hessian
    n, top = w.shape[1], 2 ** (bits - 1) - 1
    scale = weight_scale(w, bits)
    dead = torch.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h[range(n), range(n)] += args.percdamp * torch.diag(h).mean()
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    result = torch.zeros_like(w)
    for i in range(0, n, 128):
        j = min(i + 128, n)
        block, factor = w[:, i:j].clone(), u[i:j, i:j]
        errors = torch.zeros_like(block)
        for c in range(j - i):
            column = block[:, c]
            q = scale[:, 0] * torch.clamp(torch.round(column / scale[:, 0]), -top - 1, top)
            result[:, i + c] = q
            e = (column - q) / factor[c, c]
            block[:, c:] -= e[:, None] @ factor[c:c + 1, c:]
            errors[:, c] = e
        w[:, j:] -= errors @ u[i:j, j:]
    linear.weight.data = result


# ---- the model ---------------------------------------------------------------------------------------------------
start = time.perf_counter()
gguf = {} if os.path.isdir(args.model) else {"gguf_file": os.path.basename(args.model)}
model = AutoModelForCausalLM.from_pretrained(args.model if not gguf else os.path.dirname(os.path.abspath(args.model)),
                                             dtype=torch.float32, attn_implementation="sdpa", **gguf).eval()
timed("load", start)
whole = time.perf_counter()
config, layers = model.config, model.model.layers
if args.layers:
    layers = layers[:args.layers]
hidden, heads, kv = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
d = getattr(config, "head_dim", None) or hidden // heads

start = time.perf_counter()
model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.data.clone())
sign = torch.randint(0, 2, (hidden,)).double() * 2 - 1
r1 = torch.diag(sign) @ hadamard(hidden)
r4 = hadamard(config.intermediate_size)
r3 = hadamard(d).float()


def right(linear, matrix):
    linear.weight.data = (linear.weight.data.double() @ matrix).float()


def left(linear, matrix):
    linear.weight.data = (matrix.T @ linear.weight.data.double()).float()


def fuse(norm, linears):
    for linear in linears:
        linear.weight.data = (linear.weight.data.double() * norm.weight.data.double()).float()
    norm.weight.data.fill_(1)


right(model.model.embed_tokens, r1)
fuse(model.model.norm, [model.lm_head])
right(model.lm_head, r1)
for layer in layers:
    attn, mlp = layer.self_attn, layer.mlp
    fuse(layer.input_layernorm, [attn.q_proj, attn.k_proj, attn.v_proj])
    fuse(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj])
    for linear in (attn.q_proj, attn.k_proj, attn.v_proj, mlp.gate_proj, mlp.up_proj):
        right(linear, r1)
    left(attn.o_proj, r1)
    left(mlp.down_proj, r1)
    right(mlp.down_proj, r4.T)
    r2 = torch.diag(torch.randint(0, 2, (d,)).double() * 2 - 1) @ hadamard(d)
    v, o = attn.v_proj.weight.data, attn.o_proj.weight.data
    attn.v_proj.weight.data = torch.einsum("ij,gik->gjk", r2, v.double().view(kv, d, -1)).reshape(v.shape).float()
    attn.o_proj.weight.data = (o.double().view(o.shape[0], heads, d) @ r2).reshape(o.shape).float()
timed("rotate", start)

r4f = r4.float()
quantizing = {"on": False}
collect = {}


def wrap(name, linear, online=None):
    inner = linear.forward

    def forward(x):
        if online is not None:
            x = x @ online.T
        if name in collect:
            flat = x.reshape(-1, x.shape[-1])
            collect[name][1] += 1
            count = collect[name][1]
            collect[name][0] *= (count - 1) / count
            collect[name][0] += (2 / count) * (flat.T @ flat)
        if quantizing["on"]:
            x = fake_quant(x, args.a_bits, args.a_clip_ratio)
        y = inner(x)
        if quantizing["on"] and name.endswith("v_proj"):
            y = fake_quant(y, args.v_bits, args.kv_clip_ratio)
        return y

    linear.forward = forward


for index, layer in enumerate(layers):
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        wrap(f"{index}.{name}", getattr(layer.self_attn, name))
    for name in ("gate_proj", "up_proj", "down_proj"):
        wrap(f"{index}.{name}", getattr(layer.mlp, name), r4f if name == "down_proj" else None)

plain_rope = modeling_llama.apply_rotary_pos_emb


def rope_with_r3(q, k, *rest, **named):
    q, k = plain_rope(q, k, *rest, **named)
    if quantizing["on"] and args.k_bits < 16:
        q, k = q @ r3.T, k @ r3.T
        b, g, t, width = k.shape
        k = fake_quant(k.transpose(1, 2).reshape(b, t, g * width), args.k_bits, args.kv_clip_ratio)
        k = k.view(b, t, g, width).transpose(1, 2)
    return q, k


modeling_llama.apply_rotary_pos_emb = rope_with_r3

# ---- GPTQ --------------------------------------------------------------------------------------------------------
calibration = json.load(open(args.cal_ids))
random.seed(0)
starts = [random.randint(0, len(calibration) - args.seqlen - 1) for _ in range(args.nsamples)]
x = torch.stack([torch.tensor(calibration[s:s + args.seqlen]) for s in starts])
inputs = model.model.embed_tokens(x)
positions = torch.arange(args.seqlen)[None]
cos_sin = model.model.rotary_emb(inputs[:1], positions)


def run_layer(layer, h):
    y = layer(h[None], position_embeddings=cos_sin, position_ids=positions, attention_mask=None)
    return (y[0] if isinstance(y, tuple) else y)[0]


groups = [("k_proj", "v_proj", "q_proj"), ("o_proj",), ("up_proj", "gate_proj"), ("down_proj",)]
if args.w_bits < 16:
    for index, layer in enumerate(layers):
        for group in groups:
            start = time.perf_counter()
            linears = {f"{index}.{n}": getattr(layer.self_attn, n, None) or getattr(layer.mlp, n) for n in group}
            for name, linear in linears.items():
                collect[name] = [torch.zeros(linear.in_features, linear.in_features), 0]
            for s in range(args.nsamples):
                run_layer(layer, inputs[s])
            timed("forward and hessian", start)
            start = time.perf_counter()
            for name, linear in linears.items():
                gptq(linear, collect.pop(name)[0], args.w_bits)
            timed("solve", start)
        start = time.perf_counter()
        for s in range(args.nsamples):
            inputs[s] = run_layer(layer, inputs[s])
        timed("forward and hessian", start)

# ---- perplexity --------------------------------------------------------------------------------------------------
start = time.perf_counter()
quantizing["on"] = True
test = torch.tensor(json.load(open(args.test_ids)))
losses = []
if not args.layers:
    for w in range(min(args.limit, len(test) // args.seqlen)):
        ids = test[w * args.seqlen:(w + 1) * args.seqlen]
        logits = model(ids[None], use_cache=False).logits[0, :-1]
        losses.append(F.cross_entropy(logits, ids[1:]).item())
timed("perplexity", start)
print(json.dumps({"peer": "PyTorch pipeline", "torch": torch.__version__, "windows": len(losses),
                  "ppl": math.exp(sum(losses) / len(losses)) if losses else None,
                  "seconds": time.perf_counter() - whole,
                  "stages": {k: round(v, 2) for k, v in stages.items()}}))
