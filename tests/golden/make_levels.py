#!/usr/bin/env python3
"""Golden values for quantization levels: tests/data/quant/levels.safetensors.

Exact weighted k-means in one dimension (dynamic programming over all sorted numbers, O(k n^2), fp64), NumPy's linear
percentiles, the NormalFloat tables after arXiv 2305.14314 with the standard library's quantile function, and the mean and
standard deviation that Q-Norm matches (arXiv 2401.18079, section 3.6).

Needs numpy, safetensors. SPDX-License-Identifier: Apache-2.0
"""
import pathlib
import statistics

import numpy as np
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "data" / "quant" / "levels.safetensors"
N = 500


def kmeans(u, w, k):
    """The centres with the least sum of w (u - centre)^2, and that sum."""
    order = np.argsort(u, kind="stable")
    u, w = u[order].astype(np.float64), w[order].astype(np.float64)
    n = len(u)
    cw, cs, cq = (np.concatenate([[0], np.cumsum(x)]) for x in (w, w * u, w * u * u))

    def cost(a, b):  # numbers a .. b - 1 in one cluster; a may be an array
        ww, s = cw[b] - cw[a], cs[b] - cs[a]
        return np.maximum(cq[b] - cq[a] - s * s / ww, 0)

    best = np.array([np.inf] + [cost(0, c) for c in range(1, n + 1)])
    begins = []
    for j in range(2, k + 1):
        new, begin = np.full(n + 1, np.inf), np.zeros(n + 1, dtype=int)
        for c in range(j, n + 1):
            a = np.arange(j - 1, c)
            e = best[a] + cost(a, c)
            begin[c] = a[e.argmin()]
            new[c] = e.min()
        best = new
        begins.append(begin)
    end, centres = n, []
    for begin in reversed(begins):
        first = begin[end]
        centres.append((cs[end] - cs[first]) / (cw[end] - cw[first]))
        end = first
    centres.append(cs[end] / cw[end])
    centres = np.array(centres[::-1])
    nearest = np.abs(u[:, None] - centres[None]).argmin(1)
    return centres, (w * (u - centres[nearest]) ** 2).sum()


def moments(u, w):
    mean = (w * u).sum() / w.sum()
    return mean, np.sqrt((w * (u - mean) ** 2).sum() / w.sum())


def qnorm(u, w, centres):
    u, w = u.astype(np.float64), w.astype(np.float64)
    (m1, s1), (m2, s2) = moments(u, w), moments(centres[np.abs(u[:, None] - centres[None]).argmin(1)], w)
    return np.array([s1 / s2, m1 - m2 * s1 / s2])


def normal_levels(bits):
    p, inv = 1 - 0.5 * (1 / 32 + 1 / 30), statistics.NormalDist().inv_cdf
    positive = [inv(x) for x in np.linspace(p, 0.5, 2 ** (bits - 1) + 1)[:-1]]
    negative = [-inv(x) for x in np.linspace(p, 0.5, 2 ** (bits - 1))[:-1]]
    return np.sort(np.array(positive + [0.0] + negative)) / max(positive)


def main():
    rng = np.random.default_rng(7)
    out = {}
    shapes = {
        "normal": rng.normal(0, 0.3, N),
        "two": np.where(rng.random(N) < 0.7, rng.normal(-0.6, 0.05, N), rng.normal(0.5, 0.2, N)),
        "skew": rng.gamma(2.0, 0.12, N) - 0.9,
    }
    for name, u in shapes.items():
        u = np.clip(u, -1, 1).astype(np.float32)
        w = (rng.lognormal(0, 1.0, N) ** 2).astype(np.float32)
        out[f"{name}.u"], out[f"{name}.w"] = u, w
        for k in (4, 8, 16):
            centres, error = kmeans(u, w, k)
            out[f"{name}.{k}"] = centres
            out[f"{name}.{k}.error"] = np.array([error])
            out[f"{name}.{k}.norm"] = qnorm(u, w, centres)
        for share in (0.0, 0.01, 0.1):
            lo, hi = 100 * share / 2, 100 * (1 - share / 2)
            out[f"{name}.percentiles.{share}"] = np.percentile(u.astype(np.float64), [lo, hi])
    for bits in (2, 3, 4, 5):
        out[f"normalfloat.{bits}"] = normal_levels(bits)
    save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, str(OUT))


if __name__ == "__main__":
    main()
