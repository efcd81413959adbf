"""Jobs that go on after they were stopped; perplexity from logits of one's own. SPDX-License-Identifier: Apache-2.0"""
import numpy as np
import pytest

import dartquant

IDS = [1, 20, 300, 4]
OPTIONS = dict(preset="w4a4kv4", nsamples=8, seqlen=64)


def test_quantize_goes_on(model, small, texts, tmp_path):
    folder = tmp_path / "state"
    job = model.quantize_job(cal_file=texts[0], **OPTIONS)
    assert not dartquant.checkpoint_exists(folder)
    job.checkpoint(folder)
    for _ in range(2):
        job.step()
        job.checkpoint(folder)
    job.close()
    assert dartquant.checkpoint_exists(folder)
    again = model.quantize_job(cal_file=texts[0], **OPTIONS)
    again.restore(folder)
    steps = list(again)
    assert [s.index for s in steps] == [3, 4] and all(len(s.layers) == 7 for s in steps)
    assert np.array_equal(again.result().logits(IDS), small.logits(IDS))
    assert again.report["layers"] == small.report["layers"]
    again.close()
    dartquant.checkpoint_remove(folder)
    assert not folder.exists()


class Stop(Exception):
    pass


def test_quantize_with_checkpoint(model, small, texts, tmp_path):
    seen = []

    def stop(event):
        seen.append(event)
        if len(seen) > 1:  # the second layer
            raise Stop

    folder = tmp_path / "state"
    with pytest.raises(Stop):
        model.quantize(cal_file=texts[0], checkpoint=folder, progress=stop, **OPTIONS)
    assert dartquant.checkpoint_exists(folder)
    with pytest.raises(dartquant.MismatchError):
        model.quantize(cal_file=texts[1], checkpoint=folder, **OPTIONS)
    done = model.quantize(cal_file=texts[0], checkpoint=folder, **OPTIONS)
    assert np.array_equal(done.logits(IDS), small.logits(IDS)) and not folder.exists()
    rtn = model.quantize(w_bits=4, w_rtn=True, checkpoint=folder)
    assert np.array_equal(rtn.logits(IDS), model.quantize(w_bits=4, w_rtn=True).logits(IDS)) and not folder.exists()


def test_perplexity_goes_on(model, texts, tmp_path):
    data = dartquant.Dataset.from_file(model.tokenizer, texts[1])
    config = dartquant.Config(seqlen=64, limit=8)
    wanted = model.perplexity(data, config=config)
    job = dartquant.PerplexityJob(model, config, data)
    assert job.step() is False
    with pytest.raises(dartquant.StateError):
        job.result()
    job.checkpoint(tmp_path / "state")
    other = dartquant.PerplexityJob(model, config, data)
    other.restore(tmp_path / "state")
    assert other.run().ppl == wanted.ppl
    while not job.step():
        pass
    assert job.result().ppl == wanted.ppl and job.result().losses.tolist() == wanted.losses.tolist()
    with pytest.raises(dartquant.MismatchError):
        dartquant.PerplexityJob(model, dartquant.Config(seqlen=32), data).restore(tmp_path / "state")
    with pytest.raises(dartquant.NotFoundError):
        dartquant.PerplexityJob(model, config, data).restore(tmp_path / "nothing")


def test_comparison_with_a_reference(model, texts, tmp_path):
    data = dartquant.Dataset.from_file(model.tokenizer, texts[1])
    config = dartquant.Config(seqlen=64, limit=4)
    job = dartquant.PerplexityJob(model, config, data)
    with pytest.raises(dartquant.StateError):
        job.take()
    job.keep()
    wanted = job.run()
    job.take().save(tmp_path / "reference.safetensors")
    reference = dartquant.Reference.open(model, tmp_path / "reference.safetensors")
    assert reference.report["ppl"] == wanted.ppl
    job.compare(reference)
    assert job.run().ppl == wanted.ppl and job.number("kl") == 0 and job.number("top1_agreement") == 1
    coarse = dartquant.PerplexityJob(model.quantize(w_bits=3, w_rtn=True), config, data)
    coarse.compare(reference)
    coarse.run()
    assert 0 < coarse.number("kl") < coarse.number("kl_max") and 0 < coarse.number("top1_agreement") < 1
    assert 0 < coarse.number("top1_accuracy") < 1
    coarse.compare(None)
    coarse.run()
    with pytest.raises(dartquant.NotFoundError):
        coarse.number("kl")


def test_perplexity_from_own_logits(model, texts):
    data = dartquant.Dataset.from_file(model.tokenizer, texts[1])
    job = dartquant.HostPerplexity(model.vocab_size, data, seqlen=64, limit=4)
    assert len(job) == 4
    with pytest.raises(dartquant.StateError):
        job.result()
    with pytest.raises(dartquant.InvalidError, match="shape"):
        job.add(0, np.zeros((3, 512)))
    done = [job.add(i, model.logits(ids)) for i, ids in enumerate(job.windows())]
    assert done == [False, False, False, True]
    assert abs(job.result().ppl / model.perplexity(data, seqlen=64, limit=4).ppl - 1) < 1e-5
    with pytest.raises(dartquant.NotFoundError):
        job.ids(99)
