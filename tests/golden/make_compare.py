#!/usr/bin/env python3
"""Expected comparison of tests/data/tiny with its 4-bit self: PyTorch and transformers in float64.

The second model has every linear of the decoder blocks rounded to nearest on a symmetric 4-bit grid per row (scale =
largest magnitude / 7, in fp32). Writes tests/data/ops/compare_models.bin: the ids of 4 windows of 32 tokens, and for each
window and position the divergence, whether the two agree on the most probable token, and both losses of the next token
(0 at the last position).
SPDX-License-Identifier: Apache-2.0
"""
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from make_ops import save
from transformers import AutoModelForCausalLM

TINY = pathlib.Path(__file__).resolve().parents[1] / "data" / "tiny"
WINDOWS, SEQLEN = 4, 32


def load():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, attn_implementation="eager").eval()


def logits(model, ids):
    with torch.no_grad():
        return model.double()(ids).logits


def quantized():
    model = load()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            w = module.weight.data
            scale = w.abs().amax(1, keepdim=True).clamp(min=1e-5) / 7
            module.weight.data = scale * torch.clamp(torch.round(w / scale), -8, 7)
    return model


def losses(values, ids):
    out = torch.zeros(ids.shape, dtype=torch.float64)
    out[:, :-1] = F.cross_entropy(values[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return out


def main():
    model = load()
    rng = np.random.default_rng(5)
    ids = torch.from_numpy(rng.integers(0, model.config.vocab_size, (WINDOWS, SEQLEN)))
    a, b = logits(model, ids), logits(quantized(), ids)
    p, q = F.log_softmax(a, -1), F.log_softmax(b, -1)
    kl = (p.exp() * (p - q)).sum(-1)
    same = (a.argmax(-1) == b.argmax(-1)).int()
    save("compare_models", ids=ids.int().numpy().reshape(1, -1), kl=kl, same=same, nll=losses(a, ids), nll4=losses(b, ids))
    print("mean divergence", kl[:, :-1].mean().item(), "agreement", same[:, :-1].double().mean().item())


if __name__ == "__main__":
    main()
