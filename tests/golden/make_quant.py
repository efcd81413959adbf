#!/usr/bin/env python3
"""Golden values for weight quantization: tests/data/quant/{rtn,gptq}.safetensors.

rtn.safetensors   NumPy, fp32 as the library defines it (powers of the clip search in fp64); codes must agree exactly.
gptq.safetensors  PyTorch, everything in fp64, written after the description of GPTQ (arXiv 2210.17323; options as in
                  docs/numerics.md). The inputs are small integers, so that their Hessian is exact in fp32. The problem is
                  chosen among seeds so that no value comes closer than MARGIN to a rounding boundary: codes must agree.

Needs numpy, torch, safetensors. SPDX-License-Identifier: Apache-2.0
"""
import itertools
import pathlib
import sys

import numpy as np
import torch
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "data" / "quant"
MARGIN = 1e-5
F = np.float32


# ---------------------------------------------------------------- RTN, fp32

def rtn_group(w, bits, symmetric, clip):
    """One row's group [n] -> codes, scale, zero."""
    lo, hi = min(F(0), w.min()), max(F(0), w.max())

    def grid(p):
        if symmetric:
            absmax = max(abs(lo), abs(hi), F(1e-5))
            return F(F(p) * absmax) / F(2 ** (bits - 1) - 1), F(2 ** (bits - 1))
        a, b = F(p) * lo, F(p) * hi
        scale = max(b - a, F(1e-5)) / F(2 ** bits - 1)
        return scale, np.rint(-a / scale) + F(0)

    def encode(scale, zero):
        return np.clip(np.rint(w / scale) + zero, F(0), F(2 ** bits - 1))

    best = None
    for i in range(80 if clip else 1):
        scale, zero = grid(1.0 - i / 100)
        difference = scale * (encode(scale, zero) - zero) - w
        assert difference.dtype == F
        error = np.sum(np.abs(difference).astype(np.float64) ** float(F(2.4)))
        if best is None or error < best[0]:
            best = (error, scale, zero)
    _, scale, zero = best
    return encode(scale, zero).astype(np.uint8), scale, zero


def rtn(w, bits, symmetric, group, clip):
    rows, cols = w.shape
    group = cols if group < 0 else group
    groups = -(-cols // group)
    codes = np.zeros(w.shape, np.uint8)
    scale, zero = np.zeros((rows, groups), F), np.zeros((rows, groups), F)
    for r in range(rows):
        for g in range(groups):
            s = slice(g * group, min((g + 1) * group, cols))
            codes[r, s], scale[r, g], zero[r, g] = rtn_group(w[r, s], bits, symmetric, clip)
    return codes, scale, zero


def make_rtn():
    rng = np.random.default_rng(7)
    w = (rng.standard_normal((16, 100)) * 0.05).astype(F)
    w[1] = 0
    w[2] = np.abs(w[2])            # one sign only
    w[3] = -np.abs(w[3])
    w[4] *= F(1e-6)                # below the smallest range
    w[5, 40] = 9.0                 # outlier
    w[6] = F(0.25)                 # constant
    w[7, :] = np.linspace(-0.7, 0.7, 100).astype(F)
    w[8] = np.rint(w[8] * 40) / F(16)  # ties
    w[8, 0] = F(7 / 8)
    tensors = {"w": w}
    for bits, symmetric, group, clip in itertools.product((2, 3, 4, 8), (0, 1), (-1, 32), (0, 1)):
        name = f"b{bits}.s{symmetric}.g{group}.c{clip}"
        tensors[name + ".codes"], tensors[name + ".scale"], tensors[name + ".zero"] = rtn(w, bits, symmetric, group, clip)
    save_file(tensors, OUT / "rtn.safetensors")


# ---------------------------------------------------------------- GPTQ, fp64

class Grid:
    """Parameters of one group of columns [rows, n]."""

    def __init__(self, w, bits, symmetric, clip):
        self.top = 2 ** bits - 1
        lo, hi = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
        best = torch.full((w.shape[0],), float("inf"), dtype=torch.float64)
        self.scale, self.zero = torch.zeros_like(best), torch.zeros_like(best)
        for i in range(80 if clip else 1):
            p = 1 - i / 100
            if symmetric:
                scale = p * torch.maximum(-lo, hi).clamp(min=1e-5) / (2 ** (bits - 1) - 1)
                zero = torch.full_like(scale, 2 ** (bits - 1))
            else:
                scale = (p * hi - p * lo).clamp(min=1e-5) / self.top
                zero = torch.round(-p * lo / scale)
            error = ((self.value(self.code(w, scale, zero), scale, zero) - w).abs() ** 2.4).sum(1)
            better = error < best
            best = torch.where(better, error, best)
            self.scale = torch.where(better, scale, self.scale)
            self.zero = torch.where(better, zero, self.zero)

    def code(self, w, scale, zero):
        return (torch.round(w / scale[:, None]) + zero[:, None]).clamp(0, self.top)

    @staticmethod
    def value(code, scale, zero):
        return scale[:, None] * (code - zero[:, None])


def gptq(w, h, bits, symmetric, group, clip, act_order, static_groups, percdamp):
    """Returns codes, scale, zero, group_index or None, relative error, distance to the nearest rounding boundary."""
    w, h, original = w.clone(), h.clone(), h
    rows, n = w.shape
    whole = group < 0
    group = n if whole else group
    dead = torch.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    start = w.clone()
    upfront = static_groups or whole
    grids = [Grid(w[:, c:c + group], bits, symmetric, clip) for c in range(0, n, group)] if upfront else []
    perm = torch.argsort(torch.diag(h), descending=True, stable=True) if act_order else torch.arange(n)
    w, h = w[:, perm], h[perm][:, perm]
    h += percdamp * torch.diag(h).mean() * torch.eye(n, dtype=torch.float64)
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    codes = torch.zeros_like(w)
    index = torch.zeros(n, dtype=torch.int64)
    margin = 1.0
    for c0 in range(0, n, 128):
        c1 = min(c0 + 128, n)
        block = w[:, c0:c1].clone()
        errors = torch.zeros_like(block)
        for j in range(c0, c1):
            if not upfront and j % group == 0:
                grids.append(Grid(w[:, j:j + group], bits, symmetric, clip))
            g = int(perm[j]) // group if upfront else j // group
            grid = grids[g]
            column = block[:, j - c0:j - c0 + 1]
            x = column[:, 0] / grid.scale
            inside = (torch.round(x) + grid.zero > -1) & (torch.round(x) + grid.zero < grid.top + 1)
            margin = min(margin, ((x - torch.floor(x) - 0.5).abs() + (~inside) + 1.0 * (column[:, 0] == 0)).min().item())
            code = grid.code(column, grid.scale, grid.zero)
            e = (column - grid.value(code, grid.scale, grid.zero)) / u[j, j]
            block[:, j - c0:] -= e * u[j, j:c1]
            errors[:, j - c0] = e[:, 0]
            codes[:, j] = code[:, 0]
            index[j] = g
        w[:, c1:] -= errors @ u[c0:c1, c1:]
    inverse = torch.argsort(perm)
    codes, index = codes[:, inverse], index[inverse]
    scale = torch.stack([g.scale for g in grids], 1)
    zero = torch.stack([g.zero for g in grids], 1)
    change = scale[:, index] * (codes - zero[:, index]) - start
    error = torch.trace(change @ original @ change.T) / torch.trace(start @ original @ start.T)
    stored = index if act_order and not upfront else None
    return codes, scale, zero, stored, error.item(), margin


def cases():
    for symmetric, clip, group in itertools.product((0, 1), (0, 1), (-1, 16, 48)):
        for act_order, static_groups in itertools.product((0, 1), (0,) if group < 0 else (0, 1)):
            yield 4, symmetric, group, clip, act_order, static_groups, 0.01
    yield 2, 0, 32, 1, 1, 0, 0.1
    yield 3, 1, 160, 0, 0, 0, 0.01  # a group across the border of two blocks
    yield 8, 1, -1, 0, 1, 0, 0.001


def problem(seed):
    rng = np.random.default_rng(seed)
    n, rows, tokens = 200, 8, 256
    mix = rng.standard_normal((24, n)) * np.exp(0.7 * rng.standard_normal(n))
    x = rng.standard_normal((tokens, 24)) @ mix * 2 + rng.standard_normal((tokens, n)) * 6
    x = np.clip(np.rint(x), -127, 127).astype(np.int8)
    x[:, [17, 150]] = 0
    w = (rng.standard_normal((rows, n)) * 0.04).astype(F)
    w[0, 150] = 1.5  # a dead column must not widen the range
    w[3, 60] = 0.4
    return w, x


def make_gptq():
    for seed in range(400):
        w, x = problem(seed)
        xd = torch.from_numpy(x.astype(np.float64))
        h = 0.5 * xd.T @ xd  # 2 / N with N = 4 sequences
        wd = torch.from_numpy(w.astype(np.float64))
        tensors = {"w": w, "x": x}
        smallest = 1.0
        for case in cases():
            bits, symmetric, group, clip, act_order, static_groups, percdamp = case
            codes, scale, zero, index, error, margin = gptq(wd, h, *case)
            smallest = min(smallest, margin)
            if margin < MARGIN:
                break
            name = f"b{bits}.s{symmetric}.g{group}.c{clip}.a{act_order}.t{static_groups}.d{percdamp:g}"
            tensors[name + ".codes"] = codes.numpy().astype(np.uint8)
            tensors[name + ".scale"] = scale.numpy().astype(F)
            tensors[name + ".zero"] = zero.numpy().astype(F)
            tensors[name + ".error"] = np.array([error], F)
            if index is not None:
                tensors[name + ".index"] = index.numpy().astype(np.int32)
        print(f"seed {seed}: smallest distance to a rounding boundary {smallest:.2g}", file=sys.stderr)
        if smallest >= MARGIN:
            save_file(tensors, OUT / "gptq.safetensors", metadata={"seed": str(seed), "margin": f"{smallest:.3g}"})
            return
    sys.exit("no seed found")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    make_rtn()
    make_gptq()
