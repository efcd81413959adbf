#!/usr/bin/env python3
"""Rotation files as other programs write them: tests/data/rotation/.

R.bin          SpinQuant's layout: one dictionary, R1 and one [d, d] R2 per layer.
r1.pt, r2.pt   DartQuant's layout: two dictionaries, R2 [kv_heads, d, d] per layer.
expected.safetensors   the same values.

Needs torch, safetensors. SPDX-License-Identifier: Apache-2.0
"""
import pathlib

import torch
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "data" / "rotation"
HIDDEN, LAYERS, KV_HEADS, HEAD_DIM = 16, 2, 2, 4


def orthogonal(n, generator):
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return q.float().contiguous()


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    g = torch.Generator().manual_seed(5)
    r1 = orthogonal(HIDDEN, g)
    shared = {f"model.layers.{i}.self_attn.R2": orthogonal(HEAD_DIM, g) for i in range(LAYERS)}
    per_head = {name: torch.stack([orthogonal(HEAD_DIM, g) for _ in range(KV_HEADS)]) for name in shared}
    torch.save({"R1": r1, **shared}, OUT / "R.bin")
    torch.save({"R1": r1}, OUT / "r1.pt")
    torch.save(per_head, OUT / "r2.pt")
    save_file({"R1": r1, **{"shared." + k: v for k, v in shared.items()}, **{"heads." + k: v for k, v in per_head.items()}},
              OUT / "expected.safetensors")


if __name__ == "__main__":
    main()
