#!/usr/bin/env python3
"""Expected results of the fit of rotations, made independently of the library with PyTorch (autograd, fp32 training).

Writes tests/data/ops/calib_*.bin in the format of make_ops.py. SPDX-License-Identifier: Apache-2.0
"""
import math
import random

import torch

from make_ops import OUT, fake_quant_row, normal, rng_of, save


def quantiles(kind, count):
    k = torch.arange(count, dtype=torch.float64)
    if kind == "gauss":
        p = ((k + 0.5) / count).clamp(1e-6, 1 - 1e-6)
        return torch.distributions.Normal(0.0, 1.0).icdf(p)
    return torch.linspace(-1, 1, count, dtype=torch.float64) * math.sqrt(3)


def swd(x, kind="uniform", per_channel=False):
    """Sorted values against quantiles scaled by the RMS, through which no gradient flows."""
    columns = x if per_channel else x.reshape(-1, 1)
    rms = columns.detach().square().mean(0, keepdim=True).sqrt()
    target = rms * quantiles(kind, columns.shape[0])[:, None].to(x.dtype)
    return (columns.sort(dim=0).values - target).square().mean()


def whip(o):
    return torch.exp(-o.abs()).sum(-1).mean()


def losses():
    rng = rng_of("calib_losses")
    x = torch.from_numpy(normal(rng, 37, 12) * (1 + 3 * (rng.random((37, 12)) > 0.9).astype("float32"))).double()
    out = {"o": x.float()}
    for name, fn in [("swd", lambda o: swd(o)), ("swd_channel", lambda o: swd(o, per_channel=True)),
                     ("swd_gauss", lambda o: swd(o, "gauss", True))]:
        o = x.float().double().requires_grad_()
        value = fn(o)
        value.backward()
        out[name] = value.detach().reshape(1, 1)
        out[name + "_grad"] = o.grad
    save("calib_losses", **out)


def centred_moment(o, k):
    return (o - o.mean(-1, keepdim=True)).pow(k).sum(-1)


def grid_of(o, bits, symmetric, clip):
    """Step, top and bottom of the grid that a quantizer lays over each row."""
    if symmetric:
        levels = 2 ** (bits - 1) - 1
        d = clip * o.abs().amax(-1, keepdim=True) / levels
        return d, levels * d, -(levels + 1) * d
    top, bottom = clip * o.amax(-1, keepdim=True), clip * o.amin(-1, keepdim=True)
    return (top - bottom) / (2**bits - 1), top, bottom


def expected_error(o, bits, symmetric, clip):
    d, top, bottom = grid_of(o, bits, symmetric, clip)
    return (o.shape[-1] * d.square() / 12).squeeze(-1) + ((o - top).clamp(min=0).square() + (o - bottom).clamp(max=0).square()).sum(-1)


def rounding_error(o, bits, symmetric, clip, snap=False):
    """Levels are held fixed; with `snap` the elements that give the range are left alone."""
    q = torch.stack([torch.as_tensor(fake_quant_row(row, bits, symmetric, clip, False)) for row in o.detach().numpy()])
    if snap:
        ends = o == (torch.where(o.abs() == o.abs().amax(-1, keepdim=True), o, torch.inf) if symmetric else o.amax(-1, keepdim=True))
        ends |= False if symmetric else o == o.amin(-1, keepdim=True)
        q = torch.where(ends, o.detach(), q)
    return (o - q).square().sum(-1)


ROW_LOSSES = {
    "whip": lambda o: torch.exp(-o.abs()).sum(-1),
    "kurtosis": lambda o: o.shape[-1] * centred_moment(o, 4) / centred_moment(o, 2).square(),
    "variance": lambda o: centred_moment(o, 2) / o.shape[-1],
    "quant": lambda o: rounding_error(o, 4, False, 0.9),
    "quant_sym": lambda o: rounding_error(o, 4, True, 0.9),
    "range": lambda o: expected_error(o, 4, False, 0.9),
    "range_sym": lambda o: expected_error(o, 4, True, 0.9),
    "snap": lambda o: rounding_error(o, 4, False, 0.9, True),
    "snap_sym": lambda o: rounding_error(o, 4, True, 0.9, True),
}


def gradients():
    """Losses that one row decides alone, through the rotation of heads in groups, and the derivative of Q by the matrix it is of."""
    rng = rng_of("calib_grads")
    n, heads, groups, rows = 6, 4, 2, 31
    x = torch.from_numpy(normal(rng, rows, heads * n) * (1 + 2 * (rng.random((rows, heads * n)) > 0.9).astype("float32")))
    r = torch.from_numpy(normal(rng, groups * n, n) * 0.5)
    out = {"x": x, "r": r}
    for name, fn in ROW_LOSSES.items():
        for relative in (False, True):
            turn = r.double().requires_grad_()
            each = turn.reshape(groups, n, n).repeat_interleave(heads // groups, dim=0)
            o = torch.einsum("thi,hij->thj", x.double().reshape(rows, heads, n), each).reshape(rows, heads * n)
            value = fn(o)
            value = (value / x.double().square().sum(-1) if relative else value).mean()
            value.backward()
            key = name + ("_rel" if relative else "")
            out[key], out[key + "_grad"] = value.detach().reshape(1, 1), turn.grad
    save("calib_grads", **out)
    z = torch.from_numpy(normal(rng, 2, 9, 9)).double().requires_grad_()
    c = torch.from_numpy(normal(rng, 2, 9, 9)).double()
    (torch.linalg.qr(z).Q * c).sum().backward()
    save("calib_qr", z=z.reshape(18, 9), c=c.reshape(18, 9), grad=z.grad.reshape(18, 9))


def heavy_rows(rng, rows, width):
    """A few heavy-tailed sources, mixed, RMS about 1: rows that a rotation can improve."""
    a = rng.standard_t(3, (rows, width)) * (0.3 + 3 * rng.random(width) ** 4)
    mix = rng.standard_normal((width, width)) * 0.15 + torch.eye(width).numpy()
    x = a @ mix
    x *= rng.uniform(0.7, 1.4, (rows, 1)) / ((x**2).mean(1, keepdims=True) ** 0.5)
    return torch.from_numpy(x.astype("float32"))


def orthogonal(rng, n):
    q, r = torch.linalg.qr(torch.from_numpy(normal(rng, n, n)).double())
    return q * r.diagonal().sign()


def train(x, start, heads, groups, optim, lr, cosine, loss, steps=20):
    """QR-Orth as upstream trains it: a free matrix, the Q factor in the forward pass, full batches."""
    n = x.shape[1] // heads
    z = start.float().clone().requires_grad_()
    opt = torch.optim.SGD([z], lr=lr, momentum=0.9) if optim == "sgd" else torch.optim.Adam([z], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps) if cosine else None
    history = []
    for _ in range(steps):
        q = torch.linalg.qr(z).Q.repeat_interleave(heads // groups, dim=0)
        o = torch.einsum("thi,hij->thj", x.reshape(-1, heads, n), q).reshape(x.shape)
        value = loss(o)
        opt.zero_grad()
        value.backward()
        opt.step()
        if schedule:
            schedule.step()
        history.append(value.item())
    q = torch.linalg.qr(z).Q.detach()
    return torch.tensor(history, dtype=torch.float64), q


def training():
    torch.set_num_threads(1)
    rng = rng_of("calib_train")
    x1, r1 = heavy_rows(rng, 192, 24), orthogonal(rng, 24)[None]
    x2, r2 = heavy_rows(rng, 160, 32), torch.stack([orthogonal(rng, 8)] * 2)
    out = {"r1_x": x1, "r1_start": r1.reshape(24, 24), "r2_x": x2, "r2_start": r2.reshape(16, 8)}
    for name, x, start, heads, groups in [("r1", x1, r1, 1, 1), ("r2", x2, r2, 4, 2)]:
        for optim, lr, cosine in [("sgd", 0.02, True), ("adam", 0.01, False)]:
            history, q = train(x, start, heads, groups, optim, lr, cosine, whip)
            print(name, optim, history[0].item(), history[-1].item())
            out[f"{name}_{optim}_loss"] = history
            out[f"{name}_{optim}_q"] = q.reshape(-1, q.shape[-1])
    history, _ = train(x1, r1, 1, 1, "sgd", 0.5, False, swd)
    print("r1 swd", history[0].item(), history[-1].item())
    out["r1_swd_loss"] = history
    save("calib_train", **out)


# ---- the tiny model ----

SAMPLES, SEQLEN = 4, 32


def windows():
    """host_ids of tests/support/host_model.c, drawn as the calibration loaders draw."""
    ids = [(i * i * 7 + i * 13 + 5) % 500 for i in range(400)]
    random.seed(0)
    starts = [random.randint(0, len(ids) - SEQLEN - 1) for _ in range(SAMPLES)]
    return torch.tensor([ids[i : i + SEQLEN] for i in starts])


def inputs_of_linears():
    """Inputs of q_proj and up_proj of every layer without the norm's weight, and of o_proj, by transformers in fp32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(OUT.parent / "tiny", dtype=torch.float32, attn_implementation="eager")
    r1, r2 = [], []
    eps = model.config.rms_norm_eps

    def normed(module, args):
        x = args[0]
        r1.append((x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)).reshape(-1, x.shape[-1]).detach())

    for layer in model.model.layers:
        layer.input_layernorm.register_forward_pre_hook(normed)
        layer.post_attention_layernorm.register_forward_pre_hook(normed)
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda module, args: r2.append(args[0].reshape(-1, args[0].shape[-1]).detach()))
    with torch.no_grad():
        model(windows())
    return torch.cat(r1), r2


def random_hadamard(n, seed):
    """diag(s) H^T / sqrt(n), signs from PyTorch's generator; n a power of two."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    signs = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return signs[:, None] * h.T / math.sqrt(n)


def tiny_model():
    """Whip and QR-Orth on a real model's activations: R1 from all of them, R2 of each layer from rows scaled to RMS 1."""
    torch.set_num_threads(1)
    x1, x2 = inputs_of_linears()
    out = {}
    for optim, lr in [("sgd", 0.02), ("adam", 0.005)]:
        history, _ = train(x1, random_hadamard(64, 0)[None], 1, 1, optim, lr, False, whip)
        out[f"r1_{optim}"] = history
        print("tiny r1", optim, history[0].item(), history[-1].item())
        for layer, x in enumerate(x2):
            unit = x / x.square().mean(-1, keepdim=True).sqrt()
            start = random_hadamard(16, 1 + layer)
            history, _ = train(unit, torch.stack([start] * 2), 4, 2, optim, lr, False, whip)
            out[f"r2_{layer}_{optim}"] = history
            print("tiny r2", layer, optim, history[0].item(), history[-1].item())
    save("calib_tiny", **out)


if __name__ == "__main__":
    losses()
    gradients()
    training()
    tiny_model()
