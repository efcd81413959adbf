"""Weights in memory, operations on arrays. SPDX-License-Identifier: Apache-2.0"""
import gc
import json
import sys
import weakref

import numpy as np
import pytest

import dartquant
from conftest import ROOT, TINY
from dartquant import ops

IDS = [1, 20, 300, 4]
DATA = ROOT / "tests" / "data" / "io"


def weights(dtype):
    tensors = dartquant.Tensors.open(TINY / "model.safetensors")
    return {name: tensors[name].astype(dtype) for name in tensors}


CONFIG = json.loads((TINY / "config.json").read_text())


def test_fp32_arrays_in_place(model):
    arrays = weights(np.float32)
    lent = dartquant.Model.from_tensors(CONFIG, arrays, tokenizer=TINY)
    assert np.array_equal(lent.logits(IDS), model.logits(IDS))
    assert lent.tokenize("Once").tolist() == model.tokenize("Once").tolist()
    before = lent.logits(IDS)
    arrays["model.norm.weight"] *= 2
    assert not np.array_equal(lent.logits(IDS), before)  # it is the array itself that is read


def test_views_of_files(tmp_path):
    tensors = dartquant.Tensors.open(TINY / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    view, decoded = tensors.view(name), tensors[name]
    assert view.dtype == np.uint16 and view.shape == decoded.shape and not view.flags.writeable
    assert not view.flags.owndata
    assert np.array_equal((view.astype(np.uint32) << 16).view(np.float32), decoded)  # BF16 bits
    tensors.close()
    assert view[0, 0] == view.copy()[0, 0]  # outlives the object
    # and may be lent on, without a copy either
    mapped = dartquant.Tensors.open(TINY / "model.safetensors")
    views = {n: mapped.view(n) for n in mapped}
    lent = dartquant.Model.from_tensors(CONFIG, views, dtypes={n: "BF16" for n in views})
    assert np.array_equal(lent.logits(IDS), dartquant.Model.open(TINY).logits(IDS))
    for path, name in ((DATA / "types.gguf", "q4_0"), (DATA / "state_dict.pt", None)):
        tensors = dartquant.Tensors.open(path)
        with pytest.raises(dartquant.UnsupportedError, match="read.. decodes it"):
            tensors.view(name or 0)


def test_layouts_that_need_a_copy(model):
    arrays = weights(np.float32)
    for name, a in arrays.items():
        arrays[name] = np.asfortranarray(a) if a.ndim == 2 else a.astype(">f4")
    assert np.array_equal(dartquant.Model.from_tensors(CONFIG, arrays).logits(IDS), model.logits(IDS))


def test_bf16_bits(model):
    bits = {n: (a.view(np.uint32) >> 16).astype(np.uint16) for n, a in weights(np.float32).items()}
    lent = dartquant.Model.from_tensors(CONFIG, bits, dtypes={n: "BF16" for n in bits})
    assert np.array_equal(lent.logits(IDS), model.logits(IDS)) and lent.info["dtype"] == "BF16"


def test_arrays_live_as_long_as_derived_models():
    arrays = weights(np.float32)
    probe = weakref.ref(arrays["model.norm.weight"])
    lent = dartquant.Model.from_tensors(CONFIG, arrays)
    fused = lent.fuse()
    wanted = fused.logits(IDS)
    del arrays, lent
    gc.collect()
    assert probe() is not None and np.array_equal(fused.logits(IDS), wanted)
    del fused
    gc.collect()
    assert probe() is None


def test_failed_opening_gives_arrays_back():
    arrays = weights(np.float32)
    del arrays["model.norm.weight"]
    probe = weakref.ref(arrays["model.embed_tokens.weight"])
    with pytest.raises(dartquant.MismatchError, match="model.norm"):
        dartquant.Model.from_tensors(CONFIG, arrays)
    del arrays
    gc.collect()
    assert probe() is None


def test_bad_tensors():
    with pytest.raises(TypeError, match="complex"):
        dartquant.Model.from_tensors(CONFIG, {"x": np.zeros(3, complex)})
    with pytest.raises(TypeError, match="dimensions"):
        dartquant.Model.from_tensors(CONFIG, {"x": np.zeros((1,) * 9)})
    with pytest.raises(dartquant.FormatError):
        dartquant.Model.from_tensors({}, weights(np.float32))
    bad = weights(np.float32)
    bad["model.norm.weight"][3] = np.nan
    with pytest.raises(dartquant.NonFiniteError) as error:
        dartquant.Model.from_tensors(CONFIG, bad).logits(IDS)
    assert "norm" in str(error.value)


class Elsewhere:
    """A tensor on another device, as torch has them: it is read in pieces."""

    def __init__(self, array, fail=False):
        self.array, self.fail = array, fail
        self.shape, self.dtype = array.shape, "torch.float32"
        self.device = type("D", (), {"type": "cuda"})

    def detach(self):
        return self

    contiguous = detach

    def data_ptr(self):
        return 1

    def numel(self):
        return self.array.size

    def element_size(self):
        return 4


def test_exceptions_in_source_callbacks(monkeypatch):
    arrays = weights(np.float32)
    arrays["model.norm.weight"] = Elsewhere(arrays["model.norm.weight"])
    from dartquant.memory import Lent

    def read(self, offset, count):
        raise ZeroDivisionError("no such device")

    monkeypatch.setattr(Lent, "read", read)
    lent = dartquant.Model.from_tensors(CONFIG, arrays)
    with pytest.raises(ZeroDivisionError, match="no such device"):
        lent.logits(IDS)
    monkeypatch.setattr(Lent, "read", lambda self, offset, count: self.value.array.tobytes()[offset:offset + count])
    assert np.array_equal(lent.logits(IDS), dartquant.Model.open(TINY).logits(IDS))


def test_export(model, small, texts):
    e = small.export_tensors()
    assert set(e.metadata) >= {"config.json", "dartquant.json"} and len(e.tensors) == len(e.dtypes)
    again = dartquant.Model.from_tensors(e.config, e.tensors, dtypes=e.dtypes)
    assert np.array_equal(again.logits(IDS), small.logits(IDS))
    job = model.quantize_job(preset="w4a4kv4", cal_file=texts[0], nsamples=8, seqlen=64)
    with pytest.raises(dartquant.StateError):
        job.exported()
    job.collect()
    collected = job.run(progress=False)
    assert np.array_equal(collected.logits(IDS), small.logits(IDS))
    assert job.exported().tensors.keys() == e.tensors.keys()
    assert collected.report["bits_per_weight"] is None or collected.report["layers"]


def test_quantize_without_files(texts):
    lent = dartquant.Model.from_tensors(CONFIG, weights(np.float32), tokenizer=TINY)
    q = lent.quantize(w_bits=4, cal_text=texts[0].read_text(), nsamples=8, seqlen=64)
    del lent
    gc.collect()
    assert q.perplexity(file=texts[1], seqlen=64, limit=4).ppl < 10


# ---- ops ----

rng = np.random.default_rng(5)
X, W = rng.standard_normal((128, 48)).astype(np.float32), rng.standard_normal((24, 48)).astype(np.float32)


def test_gptq_of_one_weight():
    h = ops.Hessian(48)
    for part in np.split(X, 4):
        h.add(part.reshape(2, 16, 48))
    assert h.rows == 128 and np.allclose(h.matrix, 2 * X.T @ X, rtol=1e-4, atol=1e-3)
    other = ops.Hessian(48)
    other.set(h.matrix, h.rows)
    gptq = ops.quantize_weight(W, h, w_bits=3, w_groupsize=16)
    assert np.array_equal(gptq.codes, ops.quantize_weight(W, other, w_bits=3, w_groupsize=16).codes)
    rtn = ops.quantize_weight(W, w_bits=3, w_groupsize=16, w_rtn=True)
    assert gptq.scale.shape == (24, 3) and gptq.codes.max() <= 7 and gptq.damping > 0

    def loss(q):
        d = (q.dequantize() - W).astype(np.float64)
        return np.sum((X @ d.T) ** 2) / np.sum((X.astype(np.float64) @ W.T) ** 2)

    assert loss(gptq) < loss(rtn) and abs(loss(gptq) / gptq.error - 1) < 1e-2
    by_hand = rtn.scale[:, rtn.g_idx] * (rtn.codes - rtn.zero[:, rtn.g_idx])
    assert np.allclose(rtn.dequantize(), by_hand, atol=1e-6)
    ordered = ops.quantize_weight(W, h, w_bits=3, w_groupsize=16, act_order=True)
    by_hand = ordered.scale[:, ordered.g_idx] * (ordered.codes - ordered.zero[:, ordered.g_idx])
    assert np.allclose(ordered.dequantize(), by_hand, atol=1e-6)


def test_fake_quantize_and_cache():
    codes, scale, zero = ops.kv_quantize(X, 4, group=16)
    assert codes.max() < 16
    assert np.array_equal(ops.kv_dequantize(codes, scale, zero, group=16),
                          ops.fake_quantize(X, 4, group=16, symmetric=False))
    s = np.abs(X).max(axis=1, keepdims=True) / 7
    assert np.allclose(ops.fake_quantize(X, 4), s * np.clip(np.rint(X / s), -8, 7), atol=1e-5)
    before = X.copy()
    ops.fake_quantize(X, 4)
    assert np.array_equal(before, X)


def by_levels(x, lo, hi, levels):
    z, r = (hi + lo) / 2, (hi - lo) / 2
    return levels[np.abs(((x - z) / r)[..., None] - levels).argmin(-1)] * r + z


def test_fake_quantize_levels():
    levels = ops.make_levels("normal", 3)
    assert levels[0] == -1 and levels[3] == 0 and levels[7] == 1
    assert np.allclose(ops.make_levels("uniform", 4), np.linspace(-1, 1, 16), atol=1e-7)
    ranges = ops.column_ranges(X, outliers=0.2, sink=2)
    assert np.allclose(ranges, np.quantile(X[2:].astype(np.float64), [0.1, 0.9], axis=0), atol=1e-6)
    y = ops.fake_quantize_levels(X, levels, ranges=ranges, sink=2)
    out = (X < ranges[0]) | (X > ranges[1])
    out[:2] = True
    assert np.array_equal(y[out], X[out])
    assert np.allclose(y[~out], by_levels(X, *ranges, levels)[~out], atol=1e-6)
    rows = ops.fake_quantize_levels(X, levels)
    assert np.allclose(rows, by_levels(X, X.min(1, keepdims=True), X.max(1, keepdims=True), levels), atol=1e-6)
    held = ops.fake_quantize_levels(X, levels, outliers=0.1, keep_outliers=False)
    kept = ops.fake_quantize_levels(X, levels, outliers=0.1)
    low, high = np.quantile(X.astype(np.float64), [0.05, 0.95], axis=1, keepdims=True)
    out = (X <= low) | (X >= high)
    assert np.array_equal(kept[out], X[out]) and np.array_equal(kept[~out], held[~out]) and (held[out] != X[out]).any()
    with pytest.raises(dartquant.InvalidError, match="must ascend"):
        ops.fake_quantize_levels(X, levels[::-1])
    with pytest.raises(dartquant.InvalidError, match="ranges have shape"):
        ops.fake_quantize_levels(X, levels, ranges=ranges[:, 1:])


def test_hadamard_and_rotation():
    h = ops.hadamard(np.eye(48, dtype=np.float32))
    assert np.allclose(h @ h.T, np.eye(48), atol=1e-5) and np.allclose(np.abs(h), 48**-0.5)
    assert np.allclose(ops.hadamard(ops.hadamard(X), transpose=True), X, atol=1e-5)
    r = np.linalg.qr(rng.standard_normal((48, 48)))[0]
    turned, _ = ops.fold_rotation(W, r, "input")
    assert np.allclose((X @ r) @ turned.T, X @ W.T, atol=1e-4)
    q = np.linalg.qr(rng.standard_normal((24, 24)))[0]
    b = rng.standard_normal(24).astype(np.float32)
    turned, bias = ops.fold_rotation(W, q, "output", bias=b)
    assert np.allclose(X @ turned.T + bias, (X @ W.T + b) @ q, atol=1e-4)


def test_learn_rotation():
    mixed = rng.laplace(size=(2048, 32)) ** 3 @ rng.standard_normal((32, 32))  # few features are large at a time
    x = mixed.astype(np.float32)
    x /= np.sqrt(np.square(x).mean(axis=1, keepdims=True))
    learnt = ops.learn_rotation(x, ep=2, quant_steps=4)
    r = learnt.matrices[0]
    assert np.abs(r.T @ r - np.eye(32)).max() < 1e-12
    error = [np.square(ops.fake_quantize(y, 4) - y).mean() for y in (ops.hadamard(x), (x @ r).astype(np.float32))]
    entry = learnt.report["rotations"][0]
    assert error[1] < error[0] and entry["loss_after"] < entry["loss_before"]
    heads = ops.learn_rotation({"activation": x, "weight": x[:64]}, heads=4, groups=2, ep=1, quant_steps=0)
    assert heads.matrices.shape == (2, 8, 8) and [k["kind"] for k in heads.report["rotations"][0]["kinds"]] == ["activation", "weight"]
    same = ops.learn_rotation(x, initial=np.eye(32)[None], ep=0, quant_steps=0)
    assert np.allclose(same.matrices[0], np.eye(32), atol=1e-6)
    for bad, said in ((x[:0], "0 activation rows"), (x * np.nan, "NaN or Inf"), ({"odd": x}, "kind"), (x[:, :30], "heads"),
                      (np.zeros_like(x), "zero")):
        with pytest.raises(dartquant.DartQuantError, match=said):
            ops.learn_rotation(bad, heads=4, groups=2)
    with pytest.raises(dartquant.NumericError, match="not orthogonal"):
        ops.learn_rotation(x, initial=np.ones((1, 32, 32)))


def test_score_logits(model):
    logits = model.logits(IDS)
    nll, best = ops.score_logits(logits, IDS[1:] + [-1])
    x = logits.astype(np.float64)
    wanted = np.log(np.exp(x).sum(axis=1))[:3] - x[range(3), IDS[1:]]
    assert np.allclose(nll[:3], wanted, atol=1e-9) and nll[3] == 0 and best.tolist() == logits.argmax(axis=1).tolist()
    with pytest.raises(dartquant.MismatchError):
        ops.score_logits(logits, [1, 2, 3, 512])


@pytest.mark.parametrize("call", [
    lambda: ops.fake_quantize(X, 1), lambda: ops.fake_quantize(X, 4, group=7), lambda: ops.fake_quantize(X, 4, clip=2),
    lambda: ops.quantize_weight(W, w_bits=4), lambda: ops.quantize_weight(W, ops.Hessian(24), w_bits=4),
    lambda: ops.Hessian(48).add(W[:, :24]), lambda: ops.Hessian(48).set(np.eye(3), 1), lambda: ops.hadamard(X, 7),
    lambda: ops.fold_rotation(W, np.eye(48), "top"), lambda: ops.fold_rotation(W, np.eye(5), "input"),
    lambda: ops.score_logits(X, [1]), lambda: ops.kv_dequantize(X.astype(np.uint8), X, X, group=16),
    lambda: ops.fold_rotation(W, np.eye(24), "output", bias=np.zeros(3)), lambda: ops.Hessian(-1),
])
def test_bad_operations(call):
    with pytest.raises(dartquant.DartQuantError) as error:
        call()
    assert error.value.status < 0 and str(error.value)


assert sys.byteorder == "little"
