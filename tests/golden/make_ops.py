#!/usr/bin/env python3
"""Expected results of the backend ops, made independently of the library with NumPy, PyTorch and transformers.

Writes tests/data/ops/*.bin. A file is a text header, one line "name dtype rows cols" per array, an empty line, then the
arrays one after the other, row-major, little-endian. Inputs are fp32 (or what an op takes), expected values fp64.
SPDX-License-Identifier: Apache-2.0
"""
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

OUT = pathlib.Path(__file__).resolve().parent.parent / "data" / "ops"
DTYPES = {"float32": "F32", "float64": "F64", "int32": "I32", "uint8": "U8", "uint16": "U16"}
f32 = np.float32


def save(name, **arrays):
    header, body = "", b""
    for key, value in arrays.items():
        a = np.ascontiguousarray(value.detach().numpy() if isinstance(value, torch.Tensor) else value)
        a = a.reshape(1, -1) if a.ndim < 2 else a.reshape(a.shape[0], -1)
        header += f"{key} {DTYPES[a.dtype.name]} {a.shape[0]} {a.shape[1]}\n"
        body += a.tobytes()
    (OUT / f"{name}.bin").write_bytes(header.encode() + b"\n" + body)


def rng_of(name):
    return np.random.default_rng(sum(name.encode()) * 1000003)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(f32)


def t64(a):
    return torch.from_numpy(np.asarray(a)).double()


def half_bits():
    """fp64 to fp16 by NumPy (rounds once), fp32 to bf16 by PyTorch, around ties, subnormals and overflow."""
    rng = rng_of("half")
    x = np.concatenate([rng.standard_normal(300) * 2.0 ** rng.integers(-28, 18, 300),
                        1 + np.arange(-8, 9) * 2.0**-12, 1 + np.arange(-8, 9) * 2.0**-12 + 2.0**-45,
                        np.arange(0, 12) * 2.0**-26, np.arange(0, 12) * 2.0**-26 + 2.0**-60,
                        [65504, 65519.999999, 65520, 1e300, -1e300, 1e-300, 0.0]])
    with np.errstate(over="ignore"):
        y = x.astype(np.float16).view(np.uint16)
    z = normal(rng, 400) * f32(3)
    z[:20] = (1 + np.arange(20) * 2.0**-9).astype(f32)
    b = torch.from_numpy(z).bfloat16().view(torch.int16).numpy().view(np.uint16)
    save("half", f64=x, f16=y, f32=z, bf16=b)


def gemm():
    rng = rng_of("gemm")
    a, b, c = normal(rng, 9, 21), normal(rng, 21, 13), normal(rng, 9, 13)
    want = 0.5 * a.astype(np.float64) @ b.astype(np.float64) - 0.25 * c
    rounded = lambda x: torch.from_numpy(x).bfloat16().double().numpy()
    x = normal(rng, 30, 9)
    save("gemm", a=a, b=b, c=c, want=want, want_bf16=0.5 * rounded(a) @ rounded(b) - 0.25 * c, x=x,
         gram=x.astype(np.float64).T @ x.astype(np.float64))


def attention():
    rng = rng_of("attention")
    batch, seq, heads, kv, dim = 2, 13, 6, 2, 16
    q, k, v = normal(rng, batch * seq, heads * dim), normal(rng, batch * seq, kv * dim), normal(rng, batch * seq, kv * dim)
    split = lambda x, h: t64(x).reshape(batch, seq, h, dim).transpose(1, 2)
    i = torch.arange(seq)
    out = {}
    for window in (0, 5):
        mask = i[None, :] <= i[:, None]
        if window:
            mask = mask & (i[:, None] - i[None, :] < window)
        o = F.scaled_dot_product_attention(split(q, heads), split(k, kv), split(v, kv), attn_mask=mask, scale=0.25,
                                           enable_gqa=True)
        out[f"window{window}"] = o.transpose(1, 2).reshape(batch * seq, heads * dim)
    save("attention", q=q, k=k, v=v, **out)


def rope():
    rng = rng_of("rope")
    batch, seq, heads, dim = 2, 11, 3, 16
    rotary = LlamaRotaryEmbedding(LlamaConfig(hidden_size=heads * dim, num_attention_heads=heads, head_dim=dim))
    x = normal(rng, batch * seq, heads * dim)
    cos, sin = rotary(torch.zeros(1, seq, dim), torch.arange(seq)[None])
    q = t64(x).reshape(batch, seq, heads, dim).transpose(1, 2)
    y, _ = apply_rotary_pos_emb(q, q, cos.double(), sin.double())
    save("rope", x=x, cos=cos[0, :, : dim // 2].contiguous(), sin=sin[0, :, : dim // 2].contiguous(),
         want=y.transpose(1, 2).reshape(batch * seq, heads * dim))


def rmsnorm():
    rng = rng_of("rmsnorm")
    x, w = normal(rng, 7, 33) * f32(3), normal(rng, 33)
    x[3] *= f32(1e-4)
    save("rmsnorm", x=x, weight=w, want=F.rms_norm(t64(x), (33,), t64(w), 1e-5), plain=F.rms_norm(t64(x), (33,), None, 1e-5))


def layernorm():
    rng = rng_of("layernorm")
    x, w, b = normal(rng, 7, 33) * f32(3), normal(rng, 33), normal(rng, 33)
    x[3] *= f32(1e-4)
    x[4] += f32(500)
    save("layernorm", x=x, weight=w, bias=b, want=F.layer_norm(t64(x), (33,), t64(w), t64(b), 1e-5),
         plain=F.layer_norm(t64(x), (33,), None, None, 1e-5))


def activation():
    rng = rng_of("activation")
    gate, up = normal(rng, 5, 40) * f32(4), normal(rng, 5, 40)
    g = t64(gate)
    save("activation", gate=gate, up=up, act0=F.silu(g) * t64(up), act1=F.gelu(g) * t64(up),
         act2=F.gelu(g, approximate="tanh") * t64(up), act3=F.relu(g) * t64(up), plain0=F.silu(g))


def paley(q):
    """Hadamard matrix of order q + 1 for a prime q = 3 mod 4."""
    squares = {i * i % q for i in range(1, q)}
    chi = lambda i: 0 if i % q == 0 else 1 if i % q in squares else -1
    h = np.ones((q + 1, q + 1), dtype=np.int64)
    h[0, 1:] = -1
    for i in range(q):
        for j in range(q):
            h[i + 1, j + 1] = 1 if i == j else chi(i - j)
    assert (h @ h.T == (q + 1) * np.eye(q + 1)).all()
    return h


def hadamard():
    rng = rng_of("hadamard")
    sylvester = np.array([[(-1) ** bin(i & j).count("1") for j in range(8)] for i in range(8)])
    hk = paley(11)
    full = np.kron(hk, sylvester).astype(np.float64) / np.sqrt(96)
    x = normal(rng, 3, 2 * 96)  # two blocks
    blocks = x.reshape(3, 2, 96).astype(np.float64)
    across = normal(rng, 3, 2 * 8 * 5)  # order 8 over the middle index of [outer][8][inner]
    mixed = np.einsum("ab,robi->roai", sylvester / np.sqrt(8), across.reshape(3, 2, 8, 5).astype(np.float64))
    save("hadamard", hk=hk.astype(np.int32), x=x, want=(blocks @ full.T).reshape(3, -1),
         transposed=(blocks @ full).reshape(3, -1), across=across, mixed=mixed.reshape(3, -1))


def fake_quant_row(x, bits, symmetric, clip, zero_in_range):
    """One group in fp32, from the formulas: a range, a scale, rounding half to even."""
    lo, hi = x.min(), x.max()
    if zero_in_range:
        lo, hi = min(lo, f32(0)), max(hi, f32(0))
    lo, hi = f32(lo * f32(clip)), f32(hi * f32(clip))
    if symmetric:
        maxq = f32(2 ** (bits - 1) - 1)
        s = f32(max(abs(lo), abs(hi)) / maxq)
        s = f32(1) if s == 0 else s
        return s * np.clip(np.rint(x / s), -maxq - f32(1), maxq)
    maxq = f32(2**bits - 1)
    if lo == 0 and hi == 0:
        lo, hi = f32(-1), f32(1)
    s = f32((hi - lo) / maxq)
    if s == 0:
        return x.copy()
    z = np.rint(-lo / s)
    return s * (np.clip(np.rint(x / s) + z, f32(0), maxq) - z)


FAKE_QUANT = [(4, 1, 48, 1.0, 1), (4, 0, 48, 1.0, 1), (4, 0, 48, 0.9, 1), (8, 1, 48, 0.95, 1), (8, 0, 16, 1.0, 0),
              (4, 1, 16, 0.9, 0), (4, 0, 16, 0.9, 0), (2, 0, 12, 1.0, 0), (3, 1, 12, 1.0, 0), (15, 0, 48, 1.0, 1)]


def fake_quant():
    rng = rng_of("fake_quant")
    x = normal(rng, 9, 48)
    x[0] = 0
    x[1] = f32(0.3)
    x[2] = -np.abs(x[2]) - 1
    x[3] = np.abs(x[3]) + 1
    x[4] = (np.arange(48) % 15 - 7) / f32(2) * 2
    x[4, ::3] += f32(0.5)  # ties: the scale is 1
    x[4, 1] = 7
    x[5, 7] = 80
    x[6] *= f32(1e-20)
    out = {}
    for i, (bits, symmetric, group, clip, zero) in enumerate(FAKE_QUANT):
        y = np.empty_like(x)
        for r in range(x.shape[0]):
            for c in range(0, 48, group):
                y[r, c:c + group] = fake_quant_row(x[r, c:c + group], bits, symmetric, clip, zero)
        assert y.dtype == f32
        out[f"y{i}"] = y
    table = np.array([[b, s, g, int(round(c * 100)), z] for b, s, g, c, z in FAKE_QUANT], dtype=np.int32)
    save("fake_quant", cases=table, x=x, **out)


def grid(w, bits, symmetric, p):
    lo, hi = min(w.min(), f32(0)), max(w.max(), f32(0))
    if symmetric:
        maxq = f32(2 ** (bits - 1) - 1)
        return f32(f32(f32(p) * max(-lo, hi, f32(1e-5))) / maxq), f32(2 ** (bits - 1))
    s = f32(max(f32(f32(p) * hi) - f32(f32(p) * lo), f32(1e-5)) / f32(2**bits - 1))
    return s, np.rint(f32(-f32(f32(p) * lo)) / s) + f32(0)


def quantize(w, s, z, bits):
    return np.clip(np.rint(w / s) + z, f32(0), f32(2**bits - 1))


def search(w, bits, symmetric, norm, steps=80):
    best, kept = np.inf, grid(w, bits, symmetric, 1.0)
    for i in range(steps):
        s, z = grid(w, bits, symmetric, 1 - i / 100)
        difference = s * (quantize(w, s, z, bits) - z) - w
        error = (np.abs(difference).astype(np.float64) ** float(f32(norm))).sum()
        if error < best:
            best, kept = error, (s, z)
    return kept


WEIGHTS = [(4, 1, 40, 0), (4, 0, 40, 0), (4, 1, 16, 80), (4, 0, 16, 80), (3, 0, 40, 80), (8, 1, 40, 80), (2, 1, 13, 0)]


def weight_grid():
    rng = rng_of("weight_grid")
    w = (normal(rng, 8, 40) ** 3 * f32(0.05)).astype(f32)
    w[1] = 0
    w[2] = np.abs(w[2])
    w[3] *= f32(1e-6)
    out = {}
    for i, (bits, symmetric, group, steps) in enumerate(WEIGHTS):
        starts = range(0, 40, group)
        s, z = np.empty((8, len(starts)), f32), np.empty((8, len(starts)), f32)
        codes, back = np.empty(w.shape, np.uint8), np.empty_like(w)
        for r in range(8):
            for g, c in enumerate(starts):
                part = w[r, c:c + group]
                s[r, g], z[r, g] = search(part, bits, symmetric, 2.4, steps) if steps else grid(part, bits, symmetric, 1.0)
                code = quantize(part, s[r, g], z[r, g], bits)
                codes[r, c:c + group] = code
                back[r, c:c + group] = s[r, g] * (code - z[r, g])
        out |= {f"scale{i}": s, f"zero{i}": z, f"codes{i}": codes, f"back{i}": back}
    save("weight_grid", cases=np.array(WEIGHTS, dtype=np.int32), w=w, **out)


def gptq():
    """The factor as GPTQ computes it (Cholesky, inverse, Cholesky) and one block of columns, in fp64."""
    rng = rng_of("gptq")
    n, out = 24, 10
    x = normal(rng, 60, n)
    x[:, 5] = 0
    h = torch.tril(t64(x).T @ t64(x) / 30).float()
    perm = torch.argsort(torch.diag(h), descending=True, stable=True)
    arrays = {"h": h, "perm": perm.int(), "damp": np.array([[0.05]])}

    def factor(order):
        a = h.double() + torch.tril(h.double(), -1).T
        a = a[order][:, order].clone()
        d = torch.diag(a).clone()
        d[d == 0] = 1
        a[range(n), range(n)] = d + 0.05
        return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(a)), upper=True)

    arrays["u"], arrays["u_perm"] = factor(torch.arange(n)), factor(perm)
    u = arrays["u"].float()
    w = normal(rng, out, n) * f32(0.1)
    index = np.arange(n) // 8
    scale, zero = np.empty((out, 3), f32), np.empty((out, 3), f32)
    for r in range(out):
        for g in range(3):
            scale[r, g], zero[r, g] = grid(w[r, g * 8:g * 8 + 8], 4, r % 2, 1.0)
    work, codes, errors = t64(w).clone(), torch.zeros(out, n, dtype=torch.uint8), torch.zeros(out, n).double()
    for j in range(n):
        s, z = t64(scale[:, index[j]]), t64(zero[:, index[j]])
        code = torch.clamp(torch.round(work[:, j] / s) + z, 0, 15)
        e = (work[:, j] - s * (code - z)) / u[j, j].double()
        work[:, j:] -= e[:, None] * u[j, j:].double()[None]
        codes[:, j], errors[:, j] = code.to(torch.uint8), e
    save("gptq", **arrays, w=w, u32=u, scale=scale, zero=zero, index=index.astype(np.int32), codes=codes, err=errors,
         w_after=work)


def head_nll():
    rng = rng_of("head_nll")
    x, w = normal(rng, 9, 24), normal(rng, 50, 24)
    targets = rng.integers(0, 50, 9).astype(np.int32)
    nll = F.cross_entropy(t64(x) @ t64(w).T, torch.from_numpy(targets).long(), reduction="none")
    save("head_nll", x=x, w=w, targets=targets, nll=nll)


def compare_logits():
    rng = rng_of("compare_logits")
    a = 4 * normal(rng, 7, 75)
    b = a + normal(rng, 7, 75)
    b[6] = a[6]
    p, q = F.log_softmax(t64(a), -1), F.log_softmax(t64(b), -1)
    kl = F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    save("compare_logits", a=a, b=b, kl=kl, best_a=a.argmax(-1).astype(np.int32), best_b=b.argmax(-1).astype(np.int32))


def qr():
    rng = rng_of("qr")
    a = rng.standard_normal((20, 20))
    a[:, 0] = 0
    a[0, 0] = -3  # nothing below the first entry: no reflection
    q, r = np.linalg.qr(a)
    save("qr", a=a, q=q, r=r)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for make in (half_bits, gemm, attention, rope, rmsnorm, layernorm, activation, hadamard, fake_quant, weight_grid, gptq, head_nll,
                 compare_logits, qr):
        make()
    print(sum(f.stat().st_size for f in OUT.iterdir()), "bytes in", OUT)
