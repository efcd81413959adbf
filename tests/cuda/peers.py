#!/usr/bin/env python3
"""The peers of `make cuda-bench`: the same sizes in PyTorch and transformers, as their users write them. One JSON object a
line. Usage: peers.py [--tiny] [--device cuda|cpu] [--layers N] [--windows N] [ID ...]
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import math
import statistics
import time

import torch

p = argparse.ArgumentParser(description=__doc__)
p.add_argument("--tiny", action="store_true")
p.add_argument("--device", default="cuda")
p.add_argument("--layers", type=int, default=32)
p.add_argument("--windows", type=int, default=16)
p.add_argument("ids", nargs="*")
args = p.parse_args()
dev = args.device
torch.backends.cuda.matmul.allow_tf32 = False  # the setting of the original program
torch.manual_seed(0)


def wait():
    if dev == "cuda":
        torch.cuda.synchronize()


def seconds_of(fn, budget=0.4):
    fn()
    wait()
    start = time.perf_counter()
    fn()
    wait()
    once = time.perf_counter() - start
    runs = max(1, min(200, int(budget / 5 / once)))
    batches = []
    for _ in range(5 if once < 2 else 1):
        start = time.perf_counter()
        for _ in range(runs):
            fn()
        wait()
        batches.append((time.perf_counter() - start) / runs)
    return statistics.median(batches)


def report(ident, what, seconds, **more):
    print(json.dumps(dict({"id": ident, "what": what, "seconds": seconds}, **more)), flush=True)


def wanted(ident):
    return not args.ids or ident in args.ids


def hessian(n, tokens, dtype):
    x = torch.randn(tokens, n, device=dev, dtype=dtype)
    report("G1", "Hessian of %d, %d %s tokens" % (n, tokens, "BF16" if dtype == torch.bfloat16 else "F32"),
           seconds_of(lambda: x.t() @ x))


def hessians():
    n, tokens = (48, 64) if args.tiny else (4096, 262144)
    hessian(n, tokens, torch.bfloat16)
    hessian(n, 64 if args.tiny else 65536, torch.float32)
    if not args.tiny:
        hessian(14336, 65536, torch.bfloat16)
        hessian(14336, 16384, torch.float32)


def orthogonal():
    n = 32 if args.tiny else 4096
    a, d = torch.randn(n, n, device=dev, requires_grad=True), torch.randn(n, n, device=dev)

    def both():
        a.grad = None
        torch.linalg.qr(a)[0].backward(d)
    report("G2", "QR and its derivative, order %d" % n, seconds_of(both))


def quantize(x, scale, maxq):
    return scale * torch.clamp(torch.round(x / scale), -maxq - 1, maxq)


def gptq_loop(w, h, blocksize=128, percdamp=0.1):
    """GPTQ as published (fasterquant), one range a row."""
    w, h = w.clone(), h.clone()
    columns = w.shape[1]
    scale = (w.abs().amax(1) / 7).clamp(min=1e-5)
    h += percdamp * h.diagonal().mean() * torch.eye(columns, device=w.device)
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for first in range(0, columns, blocksize):
        last = min(first + blocksize, columns)
        block, err = w[:, first:last].clone(), torch.zeros_like(w[:, first:last])
        corner = u[first:last, first:last]
        for i in range(last - first):
            q = quantize(block[:, i], scale, 7)
            e = (block[:, i] - q) / corner[i, i]
            block[:, i:] -= e.unsqueeze(1) @ corner[i, i:].unsqueeze(0)
            err[:, i] = e
        w[:, last:] -= err @ u[first:last, last:]


def gptq(out, columns):
    w = torch.randn(out, columns, device=dev)
    x = torch.randn(2 * columns, columns, device=dev)
    h = 2 * x.t() @ x
    del x
    report("G3", "GPTQ of %d x %d, one range a row" % (out, columns), seconds_of(lambda: gptq_loop(w, h)))


def fwht(x):
    n, shape = x.shape[-1], x.shape
    h = 1
    while h < n:
        x = x.view(-1, n // (2 * h), 2, h)
        x = torch.stack((x[:, :, 0] + x[:, :, 1], x[:, :, 0] - x[:, :, 1]), 2)
        h *= 2
    return x.view(shape) / math.sqrt(n)


def fake_quant(x):
    lo, hi = x.amin(-1, keepdim=True).clamp(max=0) * 0.9, x.amax(-1, keepdim=True).clamp(min=0) * 0.9
    scale = (hi - lo) / 15
    zero = torch.round(-lo / scale)
    return scale * (torch.clamp(torch.round(x / scale) + zero, 0, 15) - zero)


def rows():
    elements = 4096 if args.tiny else 1 << 28
    for n in (128, 1024) if args.tiny else (128, 1024, 4096, 8192, 16384):
        x = torch.randn(elements // n, n, device=dev)
        y = torch.empty_like(x)
        report("G4", "copy of rows of %d" % n, seconds_of(lambda: y.copy_(x)))
        report("G4", "4-bit rounding of rows of %d" % n, seconds_of(lambda: fake_quant(x)))
        report("G4", "RMS norm of rows of %d, then 4-bit rounding" % n,
               seconds_of(lambda: fake_quant(torch.nn.functional.rms_norm(x, (n,), eps=1e-5))))
        if elements <= 1 << 26 or n == 4096:
            report("G4", "Hadamard of order %d, then 4-bit rounding" % n, seconds_of(lambda: fake_quant(fwht(x))))


def rotation_step():
    n, tokens = (32, 64) if args.tiny else (4096, 131072)
    x = torch.randn(tokens, n, device=dev)
    z = torch.linalg.qr(torch.randn(n, n, device=dev))[0].requires_grad_(True)
    optimizer = torch.optim.SGD([z], lr=1e-3, momentum=0.9)

    def step():
        optimizer.zero_grad()
        torch.exp(-(x @ torch.linalg.qr(z)[0]).abs()).sum(-1).mean().backward()
        optimizer.step()
    report("G5", "R1 step of width %d, %d rows, fp32" % (n, tokens), seconds_of(step))


def attention():
    seqlen, heads, kv, dim = (32, 2, 1, 16) if args.tiny else (2048, 32, 8, 128)
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        q = torch.randn(2, heads, seqlen, dim, device=dev, dtype=dtype)
        k, v = (torch.randn(2, kv, seqlen, dim, device=dev, dtype=dtype).repeat_interleave(heads // kv, 1)
                for _ in range(2))
        fn = torch.nn.functional.scaled_dot_product_attention
        report("F", "attention %s, 2 x %d tokens, %d heads of %d" % (name, seqlen, heads, dim),
               seconds_of(lambda: fn(q, k, v, is_causal=True)))


def perplexity():
    from transformers import LlamaConfig, LlamaForCausalLM
    h, m, layers, heads, kv, d, vocab, seqlen = (64, 128, 2, 4, 2, 16, 256, 32) if args.tiny else (
        4096, 14336, args.layers, 32, 8, 128, 128256, 2048)
    config = LlamaConfig(hidden_size=h, intermediate_size=m, num_hidden_layers=layers, num_attention_heads=heads,
                         num_key_value_heads=kv, head_dim=d, vocab_size=vocab, max_position_embeddings=8192,
                         rope_theta=500000.0, tie_word_embeddings=False)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(dev):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    windows = 2 if args.tiny else args.windows
    ids = torch.randint(vocab, (windows, seqlen), device=dev)

    def run():
        total = 0.0
        for i in range(windows):
            logits = model(ids[i:i + 1]).logits[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, ids[i, 1:]).item()
        return total
    with torch.inference_mode():
        seconds = seconds_of(run)
    report("G7", "perplexity, bf16", seconds, tokens=windows * seqlen, tokens_s=windows * seqlen / seconds, layers=layers)


jobs = [("G1", hessians), ("F", attention), ("G4", rows), ("G5", rotation_step), ("G2", orthogonal),
        ("G3", lambda: [gptq(*s) for s in ([(48, 64)] if args.tiny else [(4096, 4096), (4096, 14336)])]),
        ("G7", perplexity)]
for ident, job in jobs:
    if wanted(ident):
        try:
            job()
        except Exception as e:  # a peer that fails is a peer that is missing
            report(ident, "failed", None, error="%s: %s" % (type(e).__name__, str(e)[:300]))
        if dev == "cuda":
            torch.cuda.empty_cache()
report("versions", "torch %s" % torch.__version__, 0)
