#!/usr/bin/env python3
"""Peer: the quantization ops in PyTorch, our own writing of the published algorithms as they are usually run: GPTQ's column
loop in blocks of 128 (arXiv 2210.17323), Cholesky + inverse + Cholesky, the 80-step clip search, the butterfly Hadamard,
Hessian accumulation as a full product, QR, per-token fake quantization. Prints one JSON object a line, with the same "case"
and "shape" as bench_quant.

With --clock cpu, processor time of the process is counted: of use with --threads 1 on a busy machine. --largest skips the
linear algebra of higher order.

usage: peer_quant.py [--threads 2] [--reps 3] [--clock wall|cpu] [--largest 4096] [CASE-PREFIX ...]
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import time

import torch

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--threads", type=int, default=2)
p.add_argument("--reps", type=int, default=3)
p.add_argument("--clock", choices=["wall", "cpu"], default="wall")
p.add_argument("--largest", type=int, default=4096)
p.add_argument("cases", nargs="*")
a = p.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(0)
torch.set_grad_enabled(False)
clock = time.process_time if a.clock == "cpu" else time.perf_counter
orders = [n for n in (576, 1536, 2048, 4096) if n <= a.largest]


def want(name):
    return not a.cases or any(name.startswith(c) for c in a.cases)


def report(case, shape, f):
    f()
    t = []
    for _ in range(a.reps):
        start = clock()
        f()
        t.append(clock() - start)
    t.sort()
    print(json.dumps({"peer": "torch", "torch": torch.__version__, "case": case, "shape": shape,
                      "seconds": t[len(t) // 2], "seconds_min": t[0]}), flush=True)


def butterfly(x, scale):
    n = x.shape[-1]
    h = 1
    while h < n:
        y = x.view(*x.shape[:-1], n // (2 * h), 2, h)
        x = torch.stack((y[..., 0, :] + y[..., 1, :], y[..., 0, :] - y[..., 1, :]), dim=-2).reshape(x.shape)
        h *= 2
    return x * scale


def quantize(w, scale, zero, maxq):
    return scale * (torch.clamp(torch.round(w / scale) + zero, 0, maxq) - zero)


def find_grid(w, bits, symmetric, steps=80, grid=100, norm=2.4):
    """Scale and zero of each row."""
    maxq = 2 ** bits - 1
    lo = torch.clamp(w.amin(1), max=0)
    hi = torch.clamp(w.amax(1), min=0)

    def of(p):
        if symmetric:
            s = p * torch.clamp(torch.maximum(-lo, hi), min=1e-5) / (2 ** (bits - 1) - 1)
            return s, torch.full_like(s, 2 ** (bits - 1))
        s = torch.clamp(p * (hi - lo), min=1e-5) / maxq
        return s, torch.round(-p * lo / s)

    scale, zero = of(1.0)
    best = torch.full_like(lo, float("inf"))
    for i in range(steps):
        s, z = of(1 - i / grid)
        error = (quantize(w, s[:, None], z[:, None], maxq) - w).abs_().pow_(norm).sum(1)
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, s, scale)
        zero = torch.where(better, z, zero)
    return scale, zero


def inverse_chain(h, damp):
    h = h.clone()
    h.diagonal().add_(damp)
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)


def columns(w, u, scale, zero, maxq, block=128):
    """The column loop: codes of every weight, errors pushed to the columns not yet done."""
    w = w.clone()
    q = torch.zeros_like(w)
    for i in range(0, w.shape[1], block):
        e = min(i + block, w.shape[1])
        wb, ub = w[:, i:e].clone(), u[i:e, i:e]
        errors = torch.zeros_like(wb)
        for j in range(e - i):
            c = wb[:, j]
            v = quantize(c, scale, zero, maxq)
            q[:, i + j] = v
            error = (c - v) / ub[j, j]
            wb[:, j:] -= error[:, None] * ub[j, j:][None]
            errors[:, j] = error
        w[:, e:] -= errors @ u[i:e, e:]
    return q


def fake(x, bits, symmetric, group, clip):
    y = x.view(-1, group)
    lo = torch.clamp(y.amin(1, keepdim=True), max=0) * clip
    hi = torch.clamp(y.amax(1, keepdim=True), min=0) * clip
    if symmetric:
        maxq = 2 ** (bits - 1) - 1
        s = torch.maximum(-lo, hi) / maxq
        return (s * torch.clamp(torch.round(y / s), -maxq - 1, maxq)).view(x.shape)
    maxq = 2 ** bits - 1
    s = (hi - lo) / maxq
    return quantize(y, s, torch.round(-lo / s), maxq).view(x.shape)


if want("hadamard"):
    for n in (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384):
        x = torch.randn((16 << 20) // n, n)
        report("hadamard", f"1x{n} inner 1", lambda: butterfly(x, n ** -0.5))
    for k, m in ((28, 512), (172, 64)):
        hk = torch.randint(0, 2, (k, k)).float() * 2 - 1
        x = torch.randn((16 << 20) // (k * m), k, m)
        report("hadamard", f"{k}x{m} inner 1", lambda: hk @ butterfly(x, (k * m) ** -0.5))

if want("fake_quant"):
    for rows, cols, group in ((4096, 4096, 4096), (4096, 4096, 128), (29127, 576, 576), (32768, 512, 64)):
        x = torch.randn(rows, cols)
        for symmetric in (False, True):
            report("fake_quant", f"{rows}x{cols} group {group} {'sym' if symmetric else 'asym'}",
                   lambda: fake(x, 4, symmetric, group, 0.9))

if want("syrk"):
    for n in orders:
        x, h = torch.randn(2048, n), torch.zeros(n, n)
        report("syrk", f"2048x{n} f32", lambda: h.addmm_(x.T, x))

for n in orders:
    if want("factor"):
        x = torch.randn(2 * n, n)
        h = x.T @ x / n
        report("factor", f"{n}", lambda: inverse_chain(h, 0.02))

if want("qr"):
    for n, dtype, name in ((576, torch.float32, "f32"), (576, torch.float64, "f64"), (2048, torch.float32, "f32"),
                           (2048, torch.float64, "f64"), (4096, torch.float32, "f32")):
        x = torch.randn(n, n, dtype=dtype)
        if n > a.largest:
            continue
        report("qr", f"{n} {name}", lambda: torch.linalg.qr(x))

if want("grid"):
    for out, cols, group in ((2048, 2048, 2048), (2048, 2048, 128), (576, 1536, 1536)):
        w = torch.randn(out, cols).mul_(0.02).view(-1, group)
        for symmetric in (False, True):
            report("grid", f"{out}x{cols} group {group} {'sym' if symmetric else 'asym'}",
                   lambda: find_grid(w, 4, symmetric))

for n in orders:
    if want("gptq"):
        x = torch.randn(2 * n, n)
        h, w = x.T @ x / n, torch.randn(n, n) * 0.02
        scale, zero = find_grid(w, 4, True, steps=1)
        u = inverse_chain(h, 0.02)
        report("gptq_columns", f"{n}x{n}", lambda: columns(w, u, scale, zero, 15))
        report("gptq", f"{n}x{n}", lambda: columns(w, inverse_chain(h, 0.02), scale, zero, 15))
