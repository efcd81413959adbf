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


def test_chat(tmp_path):
    """A chat template of the folder, its variables, and what is refused."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).symlink_to(DATA / "tiny" / name)
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content | trim }};{% endfor %}{{ date }}" \
               "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}go{% endif %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "chat_template": template}))
    model = dartquant.Model.open(tmp_path)
    messages = [{"role": "user", "content": " h\u00e9 \U0001f642 "}, {"role": "assistant", "content": "x" * 5000}]
    text = "<s>user:h\u00e9 \U0001f642;assistant:" + "x" * 5000 + ";"
    assert model.tokenizer.render_chat(messages) == text + "go"
    assert model.tokenizer.render_chat(messages, add_generation_prompt=False, date="1 May", tools=[{"a": 1.5}]) \
        == text + '1 May[{"a": 1.5}]'
    assert model.tokenizer.render_chat(messages, chat_template="{{ messages | length }}") == "2"
    ids = model.tokenizer.encode_chat(messages[:1])
    assert model.tokenizer.decode(ids, skip_special=True).endswith("go")
    assert len(model.generate(ids, max_tokens=2, ignore_eos=True).ids) == 2
    assert model.tokenizer.chat_template() == template and model.tokenizer.chat_template("tool_use") is None
    with pytest.raises(dartquant.UnsupportedError, match="line 1: the filter 'nope'"):
        model.tokenizer.render_chat(messages, chat_template="{{ 1 | nope }}")
    with pytest.raises(dartquant.InvalidError, match="has no \"role\""):
        model.tokenizer.render_chat([{}])
    with pytest.raises(dartquant.NotFoundError):
        dartquant.Model.open(DATA / "tiny").tokenizer.render_chat(messages)


@pytest.mark.parametrize("name", ["gptq_head", "ct_head"])
def test_quantized_head(name):
    """A checkpoint whose head is codes, without a tokenizer: ids as one whole pass after the other gives them."""
    model = dartquant.Model.open(DATA / "formats" / name)
    ids = [1, 2, 3]
    for _ in range(5):
        ids.append(int(model.logits(ids)[-1].argmax()))
    assert model.generate([1, 2, 3], max_tokens=5, ignore_eos=True).ids.tolist() == ids[3:]
