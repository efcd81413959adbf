"""Pictures, the harness adapter, transformers-like objects: without their packages where that is possible.

SPDX-License-Identifier: Apache-2.0
"""
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest

import dartquant
from conftest import TINY
from dartquant import hf, plot
from dartquant.lm_eval import DartQuantLM, rolling_windows


class Request:
    def __init__(self, *args):
        self.args = args


@pytest.fixture(scope="module")
def lm(model):
    return DartQuantLM(model, max_length=32)


def loss(model, ids, n):
    """Log-likelihood of the last n ids, the plain way in float64."""
    x = model.logits(ids[:-1]).astype(np.float64)
    logp = x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True)
    return sum(logp[i, ids[i + 1]] for i in range(len(ids) - 1 - n, len(ids) - 1))


def test_loglikelihood(lm, model):
    pair = ("Once upon a time there was", " a small dog")
    ids = model.tokenize("".join(pair)).tolist()
    n = len(ids) - model.tokenize(pair[0]).size
    (found, greedy), = lm.loglikelihood([Request(*pair)])
    assert abs(found - loss(model, ids, n)) < 1e-6 and isinstance(greedy, bool)
    # trailing spaces move to the continuation
    (moved, _), = lm.loglikelihood([Request(pair[0] + " ", "a small dog")])
    assert abs(moved - found) < 1e-9
    (empty, _), = lm.loglikelihood([Request("", "Once upon")])
    ids = model.tokenize("Once upon").tolist()
    assert abs(empty - loss(model, ids, len(ids) - 1)) < 1e-6 and ids[0] == lm.prefix_token_id
    assert lm.tok_encode("<s>Once upon") == ids  # no second BOS
    assert lm.tok_encode("Once upon", add_special_tokens=False) == ids[1:]


def test_greedy(lm, model):
    ids = model.tokenize("Once upon a time", add_special=False)
    following = int(model.logits(ids)[-1].argmax())
    assert lm._score(ids.tolist(), [following])[1] is True
    assert lm._score(ids.tolist(), [(following + 1) % 512])[1] is False


def test_long_context_is_cut_from_the_left(lm, model):
    ids = list(range(2, 82))
    score, _ = lm._score(ids[:-3], ids[-3:])
    assert abs(score - loss(model, ids[-33:], 3)) < 1e-6
    with pytest.raises(ValueError, match="longer than max_length"):
        lm._score([1], list(range(40)))


def test_rolling(lm, model, texts):
    text = texts[1].read_text()[:400]
    ids = lm.tok_encode(text)
    assert len(ids) > 70
    pairs = rolling_windows(ids, 0, 32)
    assert [t for _, c in pairs for t in c] == ids and all(0 < len(h) + len(c) <= 33 for h, c in pairs)
    found, = lm.loglikelihood_rolling([Request(text)])
    assert abs(found - sum(loss(model, h + c, len(c)) for h, c in pairs)) < 1e-5
    assert rolling_windows([], 0, 8) == []


def test_generate_is_refused(lm):
    with pytest.raises(NotImplementedError, match="cannot generate"):
        lm.generate_until([Request("a", {})])


def test_unknown_model_argument(model):
    with pytest.raises(TypeError, match="colour"):
        DartQuantLM(model, colour="blue")


class Words:
    """What the package uses of a transformers tokenizer."""

    bos_token_id, eos_token_id = 0, 1

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": self.inner.encode(text, add_special=add_special_tokens).tolist()}

    def decode(self, ids, skip_special_tokens=False):
        return self.inner.decode(ids, skip_special=skip_special_tokens)

    def save_pretrained(self, folder):
        (folder / "tokenizer.txt").write_text("words")


class HfModel:
    """What the package uses of a transformers model."""

    def __init__(self):
        tensors = dartquant.Tensors.open(TINY / "model.safetensors")
        self._state = {n: tensors[n] for n in tensors}
        self.config = types.SimpleNamespace(to_dict=lambda: json.loads((TINY / "config.json").read_text()))

    def state_dict(self):
        return self._state


def test_from_transformers(model, texts, tmp_path):
    words = Words(model.tokenizer)
    m = dartquant.Model.from_transformers(HfModel(), tokenizer=words)
    assert np.array_equal(m.logits([1, 2, 3]), model.logits([1, 2, 3]))
    assert m.detokenize(m.tokenize("Once upon"), skip_special=True) == "Once upon"
    text = texts[1].read_text()
    assert m.perplexity(text, seqlen=64, limit=4).ppl == model.perplexity(text, seqlen=64, limit=4).ppl
    with pytest.raises(dartquant.StateError, match="text or ids"):
        m.perplexity(file=texts[1], seqlen=64)
    m.fuse().save(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.txt").exists()
    assert DartQuantLM(m).prefix_token_id == 0
    with pytest.raises(TypeError, match="state_dict"):
        dartquant.Model.from_transformers(object())
    untitled = dartquant.Model.from_transformers(HfModel())
    with pytest.raises(dartquant.StateError, match="no tokenizer"):
        untitled.perplexity("text")


def test_hf_datasets(model, monkeypatch):
    rows = {"text": ["Once upon a time", "there was"], "sentence": ["a", "b"]}
    asked = []
    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda *a, **k: asked.append((a, k)) or rows
    monkeypatch.setitem(sys.modules, "datasets", fake)
    d = hf.dataset(model.tokenizer, "wikitext2", split="train")
    assert d.ids.tolist() == model.tokenize("Once upon a time\n\nthere was").tolist() and d.name == "wikitext2"
    assert asked == [(("Salesforce/wikitext", "wikitext-2-raw-v1"), {"split": "train"})]
    assert hf.dataset(model.tokenizer, "ptb").ids.tolist() == model.tokenize("a b").tolist()
    assert hf.dataset(model.tokenizer, rows, separator=" ").ids.tolist() == \
        model.tokenize("Once upon a time there was").tolist()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"dartquant\[hf\]"):
        hf.dataset(model.tokenizer, "wikitext2")


def test_scheme_name(small, model):
    assert plot.scheme_name(small.report) == "w4a4k4v4" and plot.scheme_name({}) == "none"


def test_plots(small, model, texts, tmp_path):
    pytest.importorskip("matplotlib")
    axes = plot.layer_error(small.report)
    assert len(axes.lines) == 7 and all(len(line.get_xdata()) == 4 for line in axes.lines)
    axes = plot.perplexity_by_scheme({"w4": 5.0, "w3": 80.0}, baseline=4.0)
    assert [b.get_height() for b in axes.patches] == [5.0, 80.0] and axes.get_yscale() == "log"
    x = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    x[:, 3] *= 50
    axes = plot.histogram({"before": x, "after": dartquant.ops.hadamard(x)})
    assert len(axes.get_legend().get_texts()) == 2
    first, second = plot.channel_ranges({"before": x, "after": dartquant.ops.hadamard(x)}).lines
    assert first.get_ydata()[0] > 3 * second.get_ydata()[0]
    rotation = dartquant.Rotation.calibrate(model, cal_file=texts[0], nsamples=4, seqlen=64, ep=2, quant_steps=2)
    axes = plot.calibration(rotation.report)
    of_r1 = [p for r in rotation.report["rotations"] if r["name"] == "R1" for p in r["history"] if not p["finish"]]
    bold = [line for line in axes.lines if line.get_linewidth() == 2]
    assert len(axes.lines) == 5 and len(bold) == 1 and len(bold[0].get_ydata()) == len(of_r1)
    assert all(line.get_ydata()[0] == 1 and line.get_ydata()[-1] < 1 for line in axes.lines)
    axes = plot.histogram({"before": x, "after R1": x @ rotation.r1})
    assert [t.get_text().split(" (")[0] for t in axes.get_legend().get_texts()] == ["before", "after R1"]
    before, after = plot.calibration_error(rotation.report).lines
    assert len(before.get_ydata()) == 5 and all(np.array(after.get_ydata()) <= np.array(before.get_ydata()))
    for call in (plot.calibration, plot.calibration_error):
        with pytest.raises(ValueError):
            call({})
    for call in (lambda: plot.layer_error({}), lambda: plot.perplexity_by_scheme({}), lambda: plot.histogram({})):
        with pytest.raises(ValueError):
            call()


def test_plot_command(small, model, texts, dartquant_program, tmp_path):
    pytest.importorskip("matplotlib")
    whole = dartquant_program("ppl", TINY, "--text_file", texts[1], "--seqlen", 64, "--limit", 4)
    part = dartquant_program("quantize", TINY, "--w_bits", 4, "--w_rtn", "--ppl_eval", "--text_file", texts[1],
                             "--seqlen", 64, "--limit", 4)
    (tmp_path / "a.json").write_text(json.dumps(whole))
    (tmp_path / "b.json").write_text(json.dumps([part]))
    command = [sys.executable, "-m", "dartquant", "plot"]
    done = subprocess.run(command + [str(tmp_path / "a.json"), str(tmp_path / "b.json"), "-o", str(tmp_path / "p.png")],
                          capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout and "error of w4" in done.stdout
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    rotations = dartquant_program("calibrate", TINY, "--cal_file", texts[0], "--nsamples", 4, "--seqlen", 64, "--ep", 1,
                                  "--quant_steps", 2, "--out", tmp_path / "r.safetensors")
    compared = dartquant_program("compare", TINY, "--text_file", texts[1], "--cal_file", texts[0], "--nsamples", 4, "--seqlen",
                                 64, "--limit", 4, "--schemes", "hadamard:a4,whip:a4:ep=1")
    (tmp_path / "d.json").write_text(json.dumps([rotations, compared]))
    done = subprocess.run(command + [str(tmp_path / "d.json"), "-o", str(tmp_path / "q.png")], capture_output=True,
                          text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert [line.split(": ", 1)[1] for line in done.stdout.splitlines()] == [
        "learning rotations", "error at the target bits", "perplexity, compared", "learning rotations: whip:a4:ep=1",
        "error at the target bits: whip:a4:ep=1"]
    (tmp_path / "c.json").write_text("{}")
    done = subprocess.run(command + [str(tmp_path / "c.json")], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "nothing to draw" in done.stderr and not (tmp_path / "dartquant.png").exists()


@pytest.mark.parametrize("text, said", [("[", "is no JSON"), ("[1]", "not what"), ('{"layers": [{"a": 1}]}', "not what"),
                                        ("{}", "nothing to draw"), (None, "No such file")])
def test_plot_of_something_else(text, said, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from dartquant.__main__ import main

    if text is not None:
        (tmp_path / "r.json").write_text(text)
    assert main(["plot", str(tmp_path / "r.json"), "-o", str(tmp_path / "p.png")]) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "p.png").exists()


def test_harness_missing(monkeypatch, capsys):
    from dartquant.__main__ import main

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["lm_eval", "--tasks", "x"]) == 1 and "dartquant[lm_eval]" in capsys.readouterr().err
