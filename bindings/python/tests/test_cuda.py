"""The CUDA backend from Python: a precise error where there is no card, and a whole job on the simulated one. Its file is built
by the test suite of the library; without it that part is skipped. SPDX-License-Identifier: Apache-2.0"""

import pytest

import dartquant
from conftest import BUILD

CARD = BUILD / "tests" / "fakes" / "libdartquant-cudasim.so"
OPTIONS = dict(seqlen=32, limit=1)


@pytest.fixture
def card(monkeypatch):
    if not CARD.exists():
        pytest.skip("the simulated card is not built")
    monkeypatch.delenv("CUDASIM_DEVICES", raising=False)
    return str(CARD.resolve())


def test_no_card_is_told():
    """Without plug-in or card an error that names both; where there is a card, its name."""
    try:
        context = dartquant.Context(backend="cuda")
    except dartquant.NotFoundError as error:  # not built
        assert "no backend is called 'cuda'" in str(error) and "libdartquant-cuda.so" in str(error)
    except dartquant.BackendError as error:  # no driver, or no card
        assert "no CUDA device: " in str(error) and "[backend cuda, code " in str(error)
    else:
        assert context.device.startswith("cuda:")
        context.close()


def test_no_card_by_its_file(card, monkeypatch):
    monkeypatch.setenv("CUDASIM_DEVICES", "0")
    with pytest.raises(dartquant.BackendError, match="no CUDA device: no CUDA-capable device is detected") as caught:
        dartquant.Context(backend=card)
    assert caught.value.vendor_code == 100 and caught.value.backend == "cuda"


def test_perplexity_on_a_card(card, texts):
    """The same number as on the CPU, with nothing on the host, and the device says what it is."""
    from conftest import TINY

    results = {}
    for name in (card, "cpu"):
        with dartquant.Context(backend=name, policy="forbid", threads=1) as context:
            with dartquant.Model.open(TINY, context=context) as model:
                results[name] = model.perplexity(dartquant.Dataset.from_file(model.tokenizer, texts[1]), **OPTIONS)
            if name == card:
                assert context.device == "cuda:0" and context.fallbacks == 0
                info = context.info
                assert info["backend"] == "cuda" and info["missing_ops"] == [] and "sm_90" in info["description"]
                assert info["memory_total"] >= info["memory_free"] > 0
    assert float(results[card]) == pytest.approx(float(results["cpu"]), rel=1e-5)


def test_a_full_card_is_told(card, texts):
    from conftest import TINY

    with dartquant.Context(backend=card, device_memory=100000) as context:
        with dartquant.Model.open(TINY, context=context) as model:
            with pytest.raises(dartquant.DeviceMemoryError, match="of 100000 bytes are in use"):
                model.perplexity(dartquant.Dataset.from_file(model.tokenizer, texts[1]), **OPTIONS)
