"""Against transformers and lm-evaluation-harness themselves; opt-in because torch is large:

    pytest -m transformers bindings/python/tests        (pip install torch transformers lm-eval)

SPDX-License-Identifier: Apache-2.0
"""
import numpy as np
import pytest

import dartquant
from conftest import ROOT, TINY

pytestmark = pytest.mark.transformers


@pytest.fixture(scope="module")
def hf_model():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype="float32")
    return model.eval(), transformers.AutoTokenizer.from_pretrained(TINY)


def test_quantize_in_memory(hf_model, texts, tmp_path):
    import torch

    theirs, tokenizer = hf_model
    model = dartquant.Model.from_transformers(theirs, tokenizer=tokenizer)
    ids = tokenizer("Once upon a time there was", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = theirs(ids).logits[0].numpy()
    assert np.abs(model.logits(ids) - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert model.tokenize("Once upon a time").tolist() == tokenizer("Once upon a time")["input_ids"]
    small = model.quantize(preset="w4a8kv8", cal_text=texts[0].read_text(), nsamples=8, seqlen=64)
    text = texts[1].read_text()
    before, after = (m.perplexity(text, seqlen=64, limit=16).ppl for m in (model, small))
    assert before != after and abs(after / before - 1) < 0.1
    small.save(tmp_path / "saved")
    again = dartquant.Model.open(tmp_path / "saved")
    assert again.perplexity(text, seqlen=64, limit=16).ppl == after


def test_activations(hf_model):
    from dartquant import hf, ops

    theirs, tokenizer = hf_model
    ids = tokenizer("Once upon a time there was a little dog")["input_ids"]
    found = hf.layer_inputs(theirs, ids)
    assert len(found) == 4 and all(x.shape == (len(ids), 192) for x in found.values())
    x = found["model.layers.0.mlp.down_proj"]
    assert np.allclose(np.linalg.norm(ops.hadamard(x), axis=1), np.linalg.norm(x, axis=1), rtol=1e-4)
    with pytest.raises(ValueError, match="nothing_of_the_kind"):
        hf.layer_inputs(theirs, ids, "nothing_of_the_kind")


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64"])
def test_types(kind):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=kind)
    model = dartquant.Model.from_transformers(theirs)
    assert np.allclose(model.logits([1, 2, 3]), dartquant.Model.open(TINY).logits([1, 2, 3]), atol=1e-2)


@pytest.mark.parametrize("name", ["gqa", "tied", "bias", "window"])
def test_other_models(name):
    transformers = pytest.importorskip("transformers")
    folder = ROOT / "tests" / "data" / "models" / name
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    ids = list(range(20))
    found = dartquant.Model.from_transformers(theirs).logits(ids)
    assert np.array_equal(found, dartquant.Model.open(folder).logits(ids))


def requests(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]


PAIRS = [("Once upon a time", " there was a dog"), ("The dog ", "ran"), ("", "Once upon"), ("A", " B C D"),
         ("word " * 60, "and more words"), ("Once upon a time", ""), ("Tom and Ann", ".\nThe end")]


def test_harness(hf_model, texts):
    """The same requests through the harness's own model for transformers: the same log-likelihoods."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM

    theirs, tokenizer = hf_model
    oracle = HFLM(pretrained=theirs, tokenizer=tokenizer, max_length=64, batch_size=1)
    import dartquant.lm_eval  # noqa: F401  registers

    ours = get_model("dartquant")(pretrained=str(TINY), max_length=64)
    pairs = [p for p in PAIRS if p[1]]
    wanted = oracle.loglikelihood(requests("loglikelihood", *pairs))
    found = ours.loglikelihood(requests("loglikelihood", *pairs))
    for (a, greedy_a), (b, greedy_b) in zip(wanted, found):
        assert abs(a - b) < 1e-3 and greedy_a == greedy_b
    rolling = [(texts[1].read_text()[:n],) for n in (5, 200, 900)]
    wanted = oracle.loglikelihood_rolling(requests("loglikelihood_rolling", *rolling))
    found = ours.loglikelihood_rolling(requests("loglikelihood_rolling", *rolling))
    assert np.allclose(wanted, found, atol=1e-3)


def test_harness_task(hf_model, tmp_path):
    """A whole local task: accuracy and perplexity equal those of the transformers model."""
    lm_eval = pytest.importorskip("lm_eval")
    import json

    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from dartquant.lm_eval import DartQuantLM

    rows = [{"q": "Once upon a", "choices": [" time", " dog", " the"], "a": 0}, {"q": "There was a", "choices":
            [" little", " Once", " time"], "a": 0}, {"q": "The", "choices": [" end", " a", " there"], "a": 0}]
    (tmp_path / "rows.json").write_text("\n".join(json.dumps(r) for r in rows))
    (tmp_path / "task.yaml").write_text("""
task: dartquant_local
dataset_path: json
dataset_kwargs:
  data_files: {test: %s}
test_split: test
output_type: multiple_choice
doc_to_text: q
doc_to_choice: choices
doc_to_target: a
target_delimiter: ""
metric_list: [{metric: acc}]
""" % (tmp_path / "rows.json"))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    theirs, tokenizer = hf_model
    results = []
    for lm in (HFLM(pretrained=theirs, tokenizer=tokenizer, batch_size=1), DartQuantLM(str(TINY))):
        r = lm_eval.simple_evaluate(model=lm, tasks=["dartquant_local"], task_manager=manager, bootstrap_iters=0,
                                    log_samples=True)
        results.append((r["results"]["dartquant_local"]["acc,none"],
                        [float(x[0]) for s in r["samples"]["dartquant_local"] for x in s["filtered_resps"]]))
    assert results[0][0] == results[1][0] and np.allclose(results[0][1], results[1][1], atol=1e-3)
