#!/usr/bin/env python3
"""Golden values for AWQ: tests/data/quant/awq.safetensors.

PyTorch in fp64, written after the paper (Lin et al., arXiv 2306.00978, section 3.2) and the description in docs/numerics.md: a
linear is run on its inputs once for every candidate, as the published search does it; no Gram matrix is formed. Clipping runs
every group on its own inputs. Cases: bits, symmetric, group, clip, share (query heads that share a KV head; 1 = none).

Needs numpy, torch, safetensors. SPDX-License-Identifier: Apache-2.0
"""
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "data" / "quant"
GRID, HEAD_DIM = 20, 8
CASES = [(4, 0, 16, 0, 1), (3, 0, 32, 1, 1), (3, 1, 16, 1, 1), (4, 1, -1, 1, 1), (2, 0, 24, 0, 3), (4, 0, 48, 1, 3)]


def ranges(w):
    return w.amin(-1, keepdim=True).clamp(max=0), w.amax(-1, keepdim=True).clamp(min=0)


def encode(w, bits, symmetric, p):
    """Groups [..., n] rounded on the range shrunk by p: codes, values."""
    lo, hi = ranges(w)
    top = 2 ** bits - 1
    if symmetric:
        scale = p * torch.maximum(-lo, hi).clamp(min=1e-5) / (2 ** (bits - 1) - 1)
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        scale = (p * hi - p * lo).clamp(min=1e-5) / top
        zero = torch.round(-p * lo / scale)
    code = (torch.round(w / scale) + zero).clamp(0, top)
    return code, scale * (code - zero)


def rounded(w, bits, symmetric, group):
    group = w.shape[1] if group < 0 else group
    return encode(w.reshape(w.shape[0], -1, group), bits, symmetric, 1.0)[1].reshape(w.shape)


def candidates(x, w):
    for duo in (False, True):
        for i in range(GRID):
            alpha = i / GRID
            s = x ** alpha
            if duo:
                s = s / (w ** (1 - alpha) + 1e-4)
            s = s.clamp(min=1e-4)
            alive = x > 0
            s = s / (s[alive].max() * s[alive].min()).sqrt()
            yield torch.where(alive, s, torch.ones_like(s))


def spread(v, share):
    """KV-head channels to the columns of all query heads."""
    return v.reshape(-1, 1, HEAD_DIM).expand(-1, share, HEAD_DIM).reshape(-1)


def folded(v, share):
    return v.reshape(-1, share, HEAD_DIM).mean(1).reshape(-1)


def search(linears, x, bits, symmetric, group, share):
    n = x.shape[1]
    g = n if group < 0 else group
    every = torch.cat(linears)
    shares = every.abs().reshape(every.shape[0], -1, g)
    w_mean = (shares / (shares.amax(-1, keepdim=True) + 1e-6)).reshape(every.shape).mean(0)
    errors, scales = [], []
    for s in candidates(folded(x.abs().mean(0), share), folded(w_mean, share)):
        wide = spread(s, share)
        error = 0.0
        for w in linears:
            change = rounded(w * wide, bits, symmetric, group) / wide - w
            error += (x @ change.T).square().sum().item()
        errors.append(error)
        scales.append(s)
    return errors, scales[int(np.argmin(errors))]


def clipped(w, x, scale, bits, symmetric, group, clip):
    """Codes of w diag(scale); each group's range by the error of its own part of the output."""
    rows, n = w.shape
    group = n if group < 0 else group
    codes = torch.zeros_like(w)
    for c in range(0, n, group):
        part, inputs = (w * scale)[:, c:c + group], x[:, c:c + group] / scale[c:c + group]
        best = torch.full((rows,), float("inf"), dtype=torch.float64)
        for i in range(GRID // 2 if clip else 1):
            code, value = encode(part, bits, symmetric, 1 - i / GRID)
            error = (inputs @ (value - part).T).square().sum(0)
            better = error < best
            best = torch.where(better, error, best)
            codes[:, c:c + group] = torch.where(better[:, None], code, codes[:, c:c + group])
    return codes


def main():
    rng = np.random.default_rng(5)
    n, tokens = 96, 160
    mix = rng.standard_normal((12, n)) * np.exp(1.2 * rng.standard_normal(n))
    x = (rng.standard_normal((tokens, 12)) @ mix + 0.3 * rng.standard_normal((tokens, n))).astype(np.float32)
    x[:, 40] = 0
    first = (rng.standard_normal((24, n)) * 0.05).astype(np.float32)
    second = (rng.standard_normal((10, n)) * 0.02 * np.exp(0.5 * rng.standard_normal(n))).astype(np.float32)
    tensors = {"x": x, "w0": first, "w1": second}
    xd = torch.from_numpy(x.astype(np.float64))
    linears = [torch.from_numpy(w.astype(np.float64)) for w in (first, second)]
    for bits, symmetric, group, clip, share in CASES:
        errors, scale = search(linears, xd, bits, symmetric, group, share)
        name = f"b{bits}.s{symmetric}.g{group}.c{clip}.h{share}"
        tensors[name + ".errors"] = np.array(errors)
        tensors[name + ".scale"] = scale.numpy()
        codes = clipped(linears[0], xd, spread(scale, share), bits, symmetric, group, clip)
        tensors[name + ".codes"] = codes.numpy().astype(np.uint8)
        print(name, int(np.argmin(errors)), min(errors) / errors[0])
    save_file(tensors, OUT / "awq.safetensors")


if __name__ == "__main__":
    main()
