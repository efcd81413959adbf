"""Models against the C program and the goldens. SPDX-License-Identifier: Apache-2.0"""
import json
import pathlib

import numpy as np
import pytest

import dartquant
from conftest import ROOT, TINY

GOLDENS = ["mha", "gqa", "tied", "bias", "window"]


@pytest.mark.parametrize("name", GOLDENS)
def test_logits_golden(name, tmp_path):
    folder = ROOT / "tests" / "data" / "models" / name
    golden = tmp_path / "expected.safetensors"
    golden.write_bytes((folder / "expected.bin").read_bytes())
    tensors = dartquant.Tensors.open(golden)
    wanted, ids = tensors["logits"], tensors.view("ids")
    assert ids.dtype == np.int32
    found = dartquant.Model.open(folder).logits(ids)
    assert found.shape == wanted.shape and found.dtype == np.float32
    assert np.abs(found - wanted).max() < 2e-4 * np.abs(wanted).max()


def test_export_and_open(tmp_path):
    quantized = ROOT / "tests" / "data" / "formats" / "gptq_w4"
    ids = np.arange(12, dtype=np.int32)
    model = dartquant.Model.open(quantized)
    wanted = model.logits(ids)
    for name in ("compressed-tensors", "awq", "gptq_v2", "gguf:q4_0"):
        folder = tmp_path / name.replace(":", "_")
        model.export(folder, name)
        path = folder / "model.gguf" if name.startswith("gguf") else folder
        assert np.array_equal(dartquant.Model.open(path).logits(ids), wanted)
    with pytest.raises(dartquant.DartQuantError, match="gguf:q4_0 holds the codes"):
        model.export(tmp_path / "refused", "gguf:q8_0")
    assert not (tmp_path / "refused").exists()


def test_info(model):
    assert model.info["hidden_size"] == 64 and model.vocab_size == 512 and "llama" in repr(model)
    names = [t.name for t in model.tensors]
    assert "model.norm.weight" in names and len(names) == 38
    t = model.tensors[names.index("model.norm.weight")]
    assert t.dtype == "BF16" and t.shape == (64,) and pathlib.Path(t.file).name == "model.safetensors"


def test_perplexity_equals_program(model, texts, dartquant_program):
    r = dartquant_program("ppl", TINY, "--text_file", texts[1], "--seqlen", 64, "--limit", 8)["results"][0]
    p = model.perplexity(file=texts[1], seqlen=64, limit=8)
    assert (p.ppl, p.nll, p.windows, p.tokens, p.seqlen) == tuple(r[k] for k in
                                                                  ("ppl", "nll", "windows", "tokens", "seqlen"))
    assert p.dataset == r["dataset"] and p.protocol == r["protocol"]
    assert float(p) == p.ppl and len(p.losses) == 8 and abs(p.losses.mean() - p.nll) < 1e-12
    assert set(p.as_dict()) == set(r)


def test_perplexity_of_every_kind_of_data(model, texts, tmp_path):
    text = texts[1].read_text()
    ids = model.tokenize(text)
    (tmp_path / "ids.json").write_text(json.dumps(ids.tolist()))
    wanted = model.perplexity(file=texts[1], seqlen=64, limit=4).ppl
    for data in (text, texts[1], ids, ids.tolist(), ids.astype(np.int64)[None], dartquant.Dataset.from_ids(ids)):
        assert model.perplexity(data, seqlen=64, limit=4).ppl == wanted
    assert model.perplexity(ids=tmp_path / "ids.json", seqlen=64, limit=4).ppl == wanted
    folder = tmp_path / "wikitext2"
    folder.mkdir()
    (folder / "wiki.test.raw").write_text(text)
    assert model.perplexity(dataset="wikitext2", data_dir=tmp_path, seqlen=64, limit=2).dataset == "wikitext2"


def test_quantize_equals_program(model, texts, dartquant_program, tmp_path):
    r = dartquant_program("quantize", TINY, "--preset", "w4a4kv4", "--cal_file", texts[0], "--nsamples", 8, "--seqlen",
                          64, "--limit", 8, "--ppl_eval", "--text_file", texts[1], "--save_qmodel_path", tmp_path / "c")
    q = model.quantize(preset="w4a4kv4", cal_file=texts[0], nsamples=8, seqlen=64, save_qmodel_path=tmp_path / "p")
    assert q.report["layers"] == r["layers"] and q.report["bits_per_weight"] == r["bits_per_weight"]
    ppl = q.perplexity(file=texts[1], seqlen=64, limit=8).ppl
    assert ppl == r["results"][0]["ppl"]
    for folder in (tmp_path / "c", tmp_path / "p"):
        assert dartquant.Model.open(folder).perplexity(file=texts[1], seqlen=64, limit=8).ppl == ppl


def test_save_and_open(small, tmp_path):
    ids = [1, 20, 300, 4]
    small.save(tmp_path / "saved")
    again = dartquant.Model.open(tmp_path / "saved")
    assert np.array_equal(again.logits(ids), small.logits(ids))
    assert again.info["quantization"] and again.tokenize("Once").tolist() == small.tokenize("Once").tolist()


def test_job_in_a_loop(model, small, texts):
    job = model.quantize_job(preset="w4a4kv4", cal_file=texts[0], nsamples=8, seqlen=64)
    assert job.needs_data and not job.done
    with pytest.raises(dartquant.StateError):
        job.result()
    steps = list(job)
    assert [(s.index, s.total, len(s.layers)) for s in steps] == [(i, 4, 7) for i in (1, 2, 3, 4)]
    assert job.done and job.result() is job.result()
    assert np.array_equal(job.result().logits([1, 2]), small.logits([1, 2]))
    assert job.number("layers_done") == 4 and job.report["layers"] == [x for s in steps for x in s.layers]


def test_fuse_rotate_by_hand(model, small, texts, tmp_path):
    fused = model.fuse()
    ids = [1, 20, 300, 4]
    assert fused.info["fused"] and np.abs(fused.logits(ids) - model.logits(ids)).max() < 1e-3
    rotation = dartquant.Rotation.make(fused)
    assert rotation.error < 1e-10 and rotation.info
    rotation.save(tmp_path / "r.safetensors")
    rotated = fused.rotate(rotation)
    assert np.abs(rotated.logits(ids) - model.logits(ids)).max() < 1e-3
    loaded = fused.rotate(r1_path=tmp_path / "r.safetensors", r2_path=tmp_path / "r.safetensors")
    assert np.allclose(loaded.logits(ids), rotated.logits(ids), atol=1e-5)
    q = rotated.quantize(preset="w4a4kv4", cal_file=texts[0], nsamples=8, seqlen=64)
    assert np.array_equal(q.logits(ids), small.logits(ids))  # what is done is not done again
    plain = model.quantize(w_bits=8, w_rtn=True, no_rotation=True)
    assert not plain.info["rotations"] and plain.report["scheme"]["w"]["bits"] == 8


def test_calibrate_rotation(model, texts, tmp_path):
    options = {"nsamples": 4, "seqlen": 64}
    rotation = dartquant.Rotation.calibrate(model, cal_file=texts[0], **options)
    assert rotation.info["learnt"] and rotation.error < 1e-12
    assert len(rotation.report["rotations"]) == 5
    assert all(r["loss_after"] < r["loss_before"] for r in rotation.report["rotations"])
    rotation.save(tmp_path / "r.pt")
    fused = model.fuse()
    ids = [1, 20, 300, 4]
    assert np.abs(fused.rotate(rotation).logits(ids) - model.logits(ids)).max() < 1e-3
    assert np.abs(fused.rotate(r1_path=tmp_path / "r.pt", r2_path=tmp_path / "r.pt").logits(ids)
                  - model.logits(ids)).max() < 1e-2
    one = dartquant.Rotation.calibrate(fused, cal_file=texts[0], target="r1", ep=1, **options)
    assert [r["name"] for r in one.report["rotations"]] == ["R1"]
    with pytest.raises(TypeError):
        dartquant.Rotation.calibrate(model)
    with pytest.raises(dartquant.DartQuantError):
        dartquant.Rotation.calibrate(model, data=tmp_path / "absent")


def test_calibrate_goes_on(model, texts, tmp_path):
    options = {"nsamples": 4, "seqlen": 64, "cal_file": texts[0], "ep": 1, "quant_steps": 2}
    folder, events = tmp_path / "state", []

    def stop(event):
        return event.stage == "fit R1"

    with pytest.raises(dartquant.CancelledError):
        dartquant.Rotation.calibrate(model, checkpoint=folder, progress=stop, **options)
    assert dartquant.checkpoint_exists(folder)
    again = dartquant.Rotation.calibrate(model, checkpoint=folder, progress=events.append, **options)
    whole = dartquant.Rotation.calibrate(model, **options)
    assert {e.stage for e in events} == {"fit R1"} and np.array_equal(again.r1, whole.r1) and np.array_equal(again.r2, whole.r2)
    assert not folder.exists()


def test_learnt_and_loaded(model, texts, tmp_path):
    for bad in ({"r1_path": "r.pt"}, {"use_r1": False}, {"use_r2": "online"}, {"r2_path": "r.pt"}):
        with pytest.raises(dartquant.InvalidError, match="to be learnt"):
            dartquant.Rotation.calibrate(model, cal_file=texts[0], nsamples=2, seqlen=64, **bad)


def test_rotation_matrices(model):
    fused = model.fuse()
    rotation = dartquant.Rotation.make(fused)
    r1, r2 = rotation.r1, rotation.r2
    assert r1.shape == (64, 64) and r2.shape == (4, 2, 16, 16)
    for r in (r1, *r2.reshape(-1, 16, 16)):
        assert np.abs(r.T @ r - np.eye(len(r))).max() < 1e-10
    none = dartquant.Rotation.make(fused, use_r1=False, use_r2="none")
    assert none.r1 is None and none.r2 is None and dartquant.Rotation.make(fused, use_r2="online").r2 is None


def test_capture(model, texts, tmp_path):
    options = {"nsamples": 4, "seqlen": 64}
    model.capture(tmp_path / "rows", cal_file=texts[0], rows_dtype="bf16", **options)
    there = dartquant.Rotation.calibrate(model, cal_file=texts[0], ep=1, quant_steps=2, rows_dtype="bf16", **options)
    read = dartquant.Rotation.calibrate(model, data=tmp_path / "rows", ep=1, quant_steps=2, rows_dtype="bf16",
                                         **options)
    assert np.array_equal(there.r1, read.r1) and np.array_equal(there.r2, read.r2)
    with dartquant.Tensors.open(tmp_path / "rows" / "rows-r1.safetensors") as rows:
        assert rows["activation"].shape == (2 * 4 * 256, 64) and rows.info("activation").dtype == "BF16"
    with pytest.raises(TypeError):
        model.capture(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_tokenizer(model):
    t = model.tokenizer
    ids = t.encode("Once upon a time")
    assert ids.dtype == np.int32 and ids[0] == t.bos == 0 and t.eos == 1 and len(t) == t.vocab_size == 512
    assert t.decode(ids, skip_special=True) == model.detokenize(ids, skip_special=True) == "Once upon a time"
    assert t.encode("Once upon a time", add_special=False).tolist() == ids[1:].tolist()
    assert t.encode("").tolist() == [0] and t.decode([]) == "" and t.algorithm
    long = "word " * 5000
    assert t.decode(t.encode(long, add_special=False)) == long
    assert t.encode("a\0b", add_special=False).size >= 3


def test_dataset(model, texts):
    d = dartquant.Dataset.from_file(model.tokenizer, texts[0])
    assert len(d) == d.ids.size and d.name == "cal.txt" and "BOS" in d.protocol
    s = d.sample(3, 32, seed=1)
    assert s.shape == (3, 32) and s.tobytes() in [d.sample(3, 32, seed=1).tobytes()]
    windows = {d.ids[i:i + 32].tobytes() for i in range(len(d) - 31)}
    assert all(row.tobytes() in windows for row in s)


def test_config():
    c = dartquant.Config("w4a4kv4", seqlen=512, part_size="1M", a_clip_ratio=np.float64(0.5), w_clip=False)
    assert (c["w_bits"], c["seqlen"], c["part_size"], c["a_clip_ratio"], c["w_clip"]) == (4, 512, 1 << 20, 0.5, False)
    assert c["use_r2"] == "offline" and c.is_set("w_bits") and not c.is_set("seed")
    d = c.copy()
    d["seqlen"] = 64
    assert c["seqlen"] == 512 and d.as_dict()["seqlen"] == 64
    names = {o.name for o in dartquant.options()}
    assert {"w_bits", "seqlen", "math"} <= names and set(c) == names
    assert "w4a4kv4" in [p.name for p in dartquant.presets()]
    for o in dartquant.options():
        assert o.help and (not o.choices or o.default in o.choices or o.type != 4)  # a number may also be a word


def test_context():
    messages = []
    with dartquant.Context(threads=1, backend="ref", log=lambda level, text: messages.append(text)) as ctx:
        assert ctx.device.startswith("ref") and ctx.info["threads"] == 1
        m = dartquant.Model.open(TINY, context=ctx)
        logits = m.logits([1, 2, 3])
        assert ctx.memory[1] >= ctx.memory[0] > 0 and ctx.fallbacks == 0 and ctx.counters["ops"] > 0
    assert m.logits([1, 2, 3]).tobytes() == logits.tobytes()  # objects keep the closed context's insides alive
    assert np.allclose(logits, dartquant.Model.open(TINY).logits([1, 2, 3]), atol=1e-3)


def test_perplexity_against_a_reference(model, small, texts):
    plain = small.perplexity(file=texts[1], seqlen=64, limit=4)
    assert plain.kl is None and "kl" not in plain.as_dict() and 0 < plain.top1_accuracy < 1
    far = small.perplexity(file=texts[1], seqlen=64, limit=4, reference=model)
    assert far.ppl == plain.ppl and 0 < far.kl < far.kl_max and 0.5 < far.top1_agreement < 1
    same = model.perplexity(file=texts[1], seqlen=64, limit=4, reference=model)
    assert same.kl == 0 and same.top1_agreement == 1
    with pytest.raises(TypeError, match="reference must be"):
        small.perplexity(file=texts[1], seqlen=64, reference="model")


def test_codes_of_a_linear(model):
    done = model.quantize(w_bits=4, w_groupsize=16, w_rtn=True, no_rotation=True)
    found = done.codes(1, "down_proj")
    assert found.codes.shape == (64, 192) and found.scale.shape == (64, 12) and found.codes.max() < 16
    weight = model.weight("model.layers.1.mlp.down_proj.weight") if hasattr(model, "weight") else None
    again = dartquant.ops.quantize_weight(found.dequantize(), w_bits=4, w_groupsize=16, w_rtn=True)
    assert np.abs(found.dequantize() - again.dequantize()).max() <= found.scale.max()
    if weight is not None:
        assert np.abs(found.dequantize() - weight).max() <= 0.51 * found.scale.max()
    with pytest.raises(dartquant.StateError):
        model.codes(1, "down_proj")
    with pytest.raises(dartquant.NotFoundError):
        done.codes(1, "lm_head")


def test_error_of_a_weight(model):
    done = model.quantize(w_bits=4, w_groupsize=16, w_rtn=True, no_rotation=True)
    found = done.weight_error(model, 1, "down_proj")
    wanted = next(row["error"] for row in done.report["layers"] if (row["layer"], row["name"]) == (1, "down_proj"))
    assert not found.rescaled and abs(found.error ** 2 - wanted) < 1e-6
    assert model.weight_error(model, 0, "q_proj") == (0.0, False)
    with pytest.raises(dartquant.StateError, match="rotated"):
        model.fuse().rotate().weight_error(model, 0, "q_proj")
    with pytest.raises(TypeError, match="reference must be"):
        model.weight_error("model", 0, "q_proj")
