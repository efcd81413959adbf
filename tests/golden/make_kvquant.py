#!/usr/bin/env python3
"""Golden values for quantization to levels: tests/data/ops/levels_quant.safetensors.

Written from section 3 of KVQuant (arXiv 2401.18079) and its published program's order of steps, with PyTorch's own quantile,
kthvalue, median and argmin, not from this library: u = (x - z) / r in fp32, the level with the smallest distance (the first of
equals), times r plus z. Outliers of keys are strictly outside given ranges; of a token's values those at or outside its
percentiles, which the row's median replaces before smallest and largest are taken. A constant range gives its constant.

Needs torch, numpy, safetensors. SPDX-License-Identifier: Apache-2.0
"""
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "data" / "ops" / "levels_quant.safetensors"


def nearest(x, lo, hi, levels, norm):
    """x on its nearest level, lo and hi broadcast over x."""
    z, r = (hi + lo) / 2, (hi - lo) / 2
    u = (x - z) / r
    index = (u.double()[..., None] - levels.double()).abs().argmin(-1)
    y = (levels[index] * norm[0] + norm[1]) * r + z
    return torch.where(r == 0, z.expand_as(x), y)


def keys(x, lo, hi, levels, keep, norm):
    y = nearest(x, lo, hi, levels, norm)
    return torch.where((x < lo) | (x > hi), x, y) if keep else y


def values(x, levels, outliers, keep, norm):
    if outliers == 0:
        return nearest(x, x.min(1, True).values, x.max(1, True).values, levels, norm)
    n = x.shape[1]
    low = torch.quantile(x.double(), outliers / 2, 1, True).float()
    high = torch.quantile(x.double(), 1 - outliers / 2, 1, True).float()
    out = (x <= low) | (x >= high)
    median = torch.kthvalue(x, (n - 1) // 2 + 1, 1, True).values
    assert torch.equal(median, x.median(1, True).values)
    inner = torch.where(out, median, x)
    y = nearest(x, inner.min(1, True).values, inner.max(1, True).values, levels, norm)
    return torch.where(out, x, y) if keep else y


def main():
    rng = np.random.default_rng(20240131)
    tensors, cases = {}, []
    tables = {4: [-1, -0.37, 0.3379, 1], 16: np.linspace(-1, 1, 16), 8: np.sort(rng.uniform(-1, 1, 8))}
    shapes = [(8, 40), (7, 65), (3, 201), (9, 1), (6, 7)]
    for number in range(20):
        rows, cols = shapes[number % 5]
        per_row, keep = number % 2, number // 2 % 2
        outliers = [0, 0.01, 0.1, 0.3][number % 4] if per_row else 0
        seqlen, sink = (rows + 1) // 2, number % 3
        norm = torch.tensor([1.0625, -0.03125] if number % 7 == 3 else [1, 0], dtype=torch.float32)
        levels = torch.tensor(np.asarray(tables[[4, 8, 16][number % 3]], np.float32))
        x = rng.standard_t(4, (rows, cols)).astype(np.float32)
        if number % 5 == 2:
            x = np.round(x)  # many equal ones
        x[:, cols // 2] = 0.75  # a constant column
        if rows > 6:
            x[4] = -1.25  # a constant row
        lo, hi = (np.quantile(x, q, 0).astype(np.float32) for q in (0.1, 0.9))
        x = torch.tensor(x)
        if per_row:
            y = values(x, levels, outliers, keep, norm)
        else:
            y = keys(x, torch.tensor(lo), torch.tensor(hi), levels, keep, norm)
        exact = torch.arange(rows) % seqlen < sink
        y = torch.where(exact[:, None], x, y)
        cases.append([rows, cols, per_row, keep, outliers, seqlen, sink, len(levels)])
        tensors.update({"%d.%s" % (number, k): np.ascontiguousarray(v) for k, v in (
            ("x", x.numpy()), ("y", y.numpy()), ("levels", levels.numpy()), ("norm", norm.numpy()),
            ("range", np.stack([lo, hi])))})
    tensors["cases"] = np.array(cases, np.float64)
    OUT.parent.mkdir(exist_ok=True)
    save_file(tensors, OUT)
    print(OUT, OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
