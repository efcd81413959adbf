"""Generation through the package. SPDX-License-Identifier: Apache-2.0"""
import json
import pathlib

import numpy as np
import pytest

import dartquant

DATA = pathlib.Path(__file__).resolve().parents[3] / "tests" / "data"


def test_greedy_is_transformers():
    """The continuations that tests/golden/make_generate.py wrote down."""
    cases = [c for c in json.loads((DATA / "generate" / "greedy.json").read_text()) if c["model"] == "tiny"]
    model = dartquant.Model.open(DATA / "tiny")
    found = model.generate([c["prompt"] for c in cases], max_tokens=24, ignore_eos=True)
    for case, one in zip(cases, found):
        assert one.ids[:len(case["new"])].tolist() == case["new"]
        assert one.finish == "length" and len(one.ids) == 24


def test_text_stops_and_tokens():
    model = dartquant.Model.open(DATA / "tiny")
    pieces = []
    whole = model.generate("Ada found", token=lambda t: pieces.append(t.text) and None, max_tokens=30, ignore_eos=True)
    assert "".join(pieces) == whole.text and len(whole.text) > 20
    stop = whole.text[10:16]
    cut = model.generate("Ada found", stop=stop, max_tokens=30, ignore_eos=True)
    assert cut.finish == "stop" and cut.text == whole.text[:whole.text.index(stop)]


def test_steps_and_sampling():
    model = dartquant.Model.open(DATA / "tiny")
    runs = []
    for seed in (1, 1, 2):
        with model.generator(max_tokens=12, temperature=1.0, top_k=50, seed=seed, kv="int8", ignore_eos=True) as g:
            g.add("Ada")
            steps = 0
            while not g.step():
                steps += 1
            runs.append(g.result().ids.tolist())
            assert steps >= 12 and g.whole("tokens") == 12 and g.number("decode_tokens_per_second") > 0
    assert runs[0] == runs[1] != runs[2]


def test_errors():
    model = dartquant.Model.open(DATA / "tiny")
    with pytest.raises(dartquant.DartQuantError):
        model.generate([1, 99999])
    with pytest.raises(ZeroDivisionError):  # raised in the callback
        model.generate("Ada", token=lambda t: 1 // 0)
    with model.generator() as g, pytest.raises(dartquant.DartQuantError):
        g.result(3)
    assert isinstance(model.generate(np.array([5, 6], np.int32), max_tokens=1).text, str)
