#!/usr/bin/env python3
"""Peer: steps of QR-Orth in PyTorch as DartQuant (arXiv 2511.04063) takes them, our own writing: Q factor of the latent
matrix, rows times Q in fp32, Whip, backward, SGD with momentum. Rows are fp32 before the clock starts, which the
original is not. "bf16" rounds rows and Q for the products. Prints one JSON object a line, with the same "case" and "shape"
as bench_calib.

usage: peer_calib.py [--threads 2] [--reps 3] [CASE-PREFIX ...]
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import time

import torch

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--threads", type=int, default=2)
p.add_argument("--reps", type=int, default=3)
p.add_argument("cases", nargs="*")
a = p.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(0)


def report(case, shape, f):
    if a.cases and not any(case.startswith(c) for c in a.cases):
        return
    f()
    t = []
    for _ in range(a.reps):
        start = time.perf_counter()
        f()
        t.append(time.perf_counter() - start)
    t.sort()
    print(json.dumps({"peer": "torch", "torch": torch.__version__, "case": case, "shape": shape,
                      "seconds": t[len(t) // 2], "seconds_min": t[0]}), flush=True)


def step(rows, n, heads, groups, low):
    """One R1 step (heads == groups == 1) or one R2 step of a layer."""
    x = (torch.rand(rows, heads, n) * 2 - 1) * 1.7
    if heads == 1:
        x = x[:, 0]
    else:
        x = x.transpose(0, 1).contiguous()  # [heads, rows, n]: the layout batched products like best
    if low:
        x = x.bfloat16()
    z = torch.nn.Parameter(torch.linalg.qr(torch.randn(groups, n, n))[0].squeeze(0) if heads == 1 else
                           torch.linalg.qr(torch.randn(groups, n, n))[0])
    sgd = torch.optim.SGD([z], lr=1e-3, momentum=0.9)

    def run():
        sgd.zero_grad()
        q = torch.linalg.qr(z)[0]
        if heads > 1:
            q = q.repeat_interleave(heads // groups, dim=0)
        o = x @ (q.bfloat16() if low else q)
        loss = (torch.exp(-o.float().abs()) if low else torch.exp(-o.abs())).sum() / rows
        loss.backward()
        sgd.step()

    return run


for name, rows, n, heads, groups in (("r1 576", 65536, 576, 1, 1), ("r1 2048", 16384, 2048, 1, 1),
                                     ("r2 64", 16384, 64, 9, 3), ("r2 128", 16384, 128, 8, 8)):
    if a.cases and not any(name.startswith(c) or c.startswith(name) for c in a.cases):
        continue
    shape = f"{rows}x{heads}x{n}, {groups}"
    report(f"{name} step f32", shape, step(rows, n, heads, groups, False))
    report(f"{name} step bf16", shape, step(rows, n, heads, groups, True))


def factor(groups, n):
    z = torch.randn(groups, n, n)
    z = z[0] if groups == 1 else z
    dq = torch.randn_like(z)

    def both():
        zz = z.clone().requires_grad_(True)
        torch.linalg.qr(zz)[0].backward(dq)

    def polar():
        u, _, vt = torch.linalg.svd(z)
        return u @ vt

    shape = f"{groups}x{n}x{n}"
    report("qr", shape, lambda: torch.linalg.qr(z))
    report("qr both", shape, both)
    report("polar f32", shape, polar)


for groups, n in ((1, 576), (90, 64), (8, 128)):
    factor(groups, n)
