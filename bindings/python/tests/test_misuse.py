"""Wrong types, closed objects, callbacks that raise, threads, Ctrl-C. SPDX-License-Identifier: Apache-2.0"""
import errno
import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import dartquant
from conftest import ROOT, TINY


def test_error_record(tmp_path):
    with pytest.raises(dartquant.IOError_) as error:
        dartquant.Model.open(tmp_path / "nowhere")
    e = error.value
    assert (e.status, e.name) == (-100, "DQ_E_IO") and "nowhere" in str(e) and isinstance(e, OSError)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((TINY / "model.safetensors").read_bytes()[:100000])
    with pytest.raises(dartquant.FileError) as error:
        dartquant.Tensors.open(broken)
    e = error.value
    assert e.file == str(broken) and e.name == "DQ_E_TRUNCATED" and e.byte != 0
    copy = pickle.loads(pickle.dumps(e))
    assert (type(copy), str(copy), copy.file) == (type(e), str(e), e.file)


def test_errno(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(dartquant.IOError_) as error:
        model.save(tmp_path / "file" / "below")
    assert error.value.vendor_code == error.value.errno and error.value.errno in (errno.ENOTDIR, errno.EEXIST)


@pytest.mark.parametrize("options, kind", [
    ({"w_bit": 4}, dartquant.NotFoundError), ({"w_bits": 1}, dartquant.InvalidError), ({"w_bits": "x"}, ValueError),
    ({"w_bits": 4.5}, dartquant.InvalidError), ({"w_bits": [4]}, TypeError), ({"math": 1}, TypeError),
    ({"seed": 1 << 70}, dartquant.InvalidError), ({"preset": "w0"}, LookupError), ({"preset": 3}, TypeError),
])
def test_bad_options(model, options, kind):
    with pytest.raises(kind):
        model.quantize(w_rtn=True, **options)


def test_unknown_option_has_a_proposal(model):
    with pytest.raises(dartquant.NotFoundError, match="w_bits"):
        model.quantize(w_bit=4)


@pytest.mark.parametrize("call", [
    lambda m: m.logits("text"), lambda m: m.logits([1.5]), lambda m: m.logits([[1, 2], [3, 4]]),
    lambda m: m.perplexity(), lambda m: m.perplexity("a", text="b"), lambda m: m.perplexity(text="a", ids=[1]),
    lambda m: m.perplexity(dataset="wikitext2"), lambda m: m.perplexity(ids=[1] * 99, seqlen=9, progress=3),
    lambda m: m.perplexity(ids=[1] * 99, seqlen=9, cancel=3), lambda m: m.quantize(w_bits=4),
    lambda m: m.rotate("rotation"), lambda m: m.tokenizer.encode(b"bytes"), lambda m: m.tokenize(3),
    lambda m: dartquant.Model.open(None), lambda m: dartquant.Model.open(TINY, context=m),
    lambda m: dartquant.Dataset.from_file("x", "y"), lambda m: dartquant.Dataset.from_text(3, "text"),
    lambda m: dartquant.QuantizeJob(m, dartquant.Config(w_bits=4), [1, 2]), lambda m: dartquant.Context(log=3),
    lambda m: m.fuse(config={"center_embedding": True}),
])
def test_wrong_types(model, call):
    with pytest.raises(TypeError) as error:
        call(model)
    assert str(error.value)


@pytest.mark.parametrize("call, kind", [
    (lambda m: m.logits([1, 512]), dartquant.MismatchError), (lambda m: m.logits([1, -1]), dartquant.MismatchError),
    (lambda m: m.logits([1 << 40]), dartquant.InvalidError), (lambda m: m.logits([]), dartquant.InvalidError),
    (lambda m: m.rotate(), dartquant.StateError), (lambda m: m.perplexity(text="short"), dartquant.TextError),
    (lambda m: m.detokenize([9999]), dartquant.InvalidError), (lambda m: dartquant.Dataset.from_ids([]), ValueError),
    (lambda m: dartquant.Context(backend="none"), dartquant.NotFoundError),
    (lambda m: dartquant.Tensors.open(TINY / "config.json"), dartquant.FormatError),
    (lambda m: dartquant.Tensors.open(TINY / "model.safetensors").read(0, 5, 10**9), dartquant.InvalidError),
    (lambda m: dartquant.Tensors.open(TINY / "model.safetensors").info(99), dartquant.InvalidError),
    (lambda m: dartquant.Tensors.open(TINY / "model.safetensors")["none"], dartquant.NotFoundError),
    (lambda m: m.quantize(w_bits=4, w_rtn=True).quantize(w_bits=4, w_rtn=True), dartquant.StateError),
])
def test_bad_requests(model, call, kind):
    with pytest.raises(kind) as error:
        call(model)
    assert isinstance(error.value, dartquant.DartQuantError) and error.value.status < 0 and str(error.value)


def test_closed_objects():
    ctx = dartquant.Context(threads=1)
    m = dartquant.Model.open(TINY, context=ctx)
    t = m.tokenizer
    with m:
        pass
    m.close()
    t.close()
    assert m.closed and repr(m) == "<Model, closed>"
    for call in (lambda: m.logits([1]), lambda: m.info, lambda: m.vocab_size, lambda: t.encode("a"), lambda: t.bos):
        with pytest.raises(dartquant.StateError, match="closed"):
            call()
    ctx.close()
    with pytest.raises(dartquant.StateError, match="closed"):
        dartquant.Model.open(TINY, context=ctx)


def test_two_contexts_do_not_mix(model, texts):
    other = dartquant.Context(threads=1)
    data = dartquant.Dataset.from_ids([1] * 100, context=other)
    with pytest.raises(dartquant.InvalidError, match="another Context"):
        model.perplexity(data, seqlen=9)
    with pytest.raises(dartquant.InvalidError, match="another Context"):
        model.quantize(w_bits=4, cal_dataset=data, seqlen=9)
    rotation = dartquant.Rotation.make(dartquant.Model.open(TINY, context=other).fuse())
    with pytest.raises(dartquant.InvalidError, match="another Context"):
        model.fuse().rotate(rotation)


class Stop(Exception):
    pass


def test_exceptions_in_progress(model, texts, tmp_path):
    def broken(event):
        raise Stop(event.stage)

    data = {"file": texts[1], "seqlen": 64}
    with pytest.raises(Stop, match="perplexity"):
        model.perplexity(progress=broken, **data)
    with pytest.raises(Stop):
        model.save(tmp_path / "never", progress=broken)
    assert not (tmp_path / "never" / "dartquant.json").exists()
    job = model.quantize_job(w_bits=4, cal_file=texts[0], nsamples=4, seqlen=64)
    with pytest.raises(Stop):
        job.step(progress=broken)
    with pytest.raises(dartquant.StateError):
        job.step()
    with pytest.raises(Stop):
        model.export_tensors(progress=broken)
    assert model.perplexity(limit=2, **data).windows == 2  # everything goes on


def test_exceptions_in_log():
    def broken(level, text):
        raise Stop(text)

    ctx = dartquant.Context(threads=1, log=broken)
    ctx._core.keep[0](None, 3, b"a message")  # as the library would
    with pytest.raises(Stop, match="a message"):
        dartquant.Model.open(TINY, context=ctx)
    assert dartquant.Model.open(TINY, context=ctx).vocab_size == 512


def test_cancel(model, texts):
    events = []
    with pytest.raises(dartquant.CancelledError):
        model.perplexity(file=texts[1], seqlen=64, progress=lambda e: events.append(e) or True)
    assert len(events) == 1 and events[0].stage and events[0].total >= events[0].index
    token = dartquant.Cancel()
    token.set()
    with pytest.raises(dartquant.CancelledError):
        model.perplexity(file=texts[1], seqlen=64, cancel=token)
    token.clear()
    assert model.perplexity(file=texts[1], seqlen=64, limit=1, cancel=token).windows == 1


def test_progress_events(model, texts):
    events = []
    p = model.perplexity(file=texts[1], seqlen=64, progress=events.append)
    assert events[-1].index == events[-1].total > 0 and events[-1].elapsed >= 0 and p.windows > 0


def test_tqdm(model, texts, monkeypatch):
    bars = []

    class Fake:
        def __init__(self, total, desc, leave):
            self.n, self.total, self.closed = 0, total, False
            bars.append(self)

        def update(self, n):
            self.n += n

        def set_postfix_str(self, text, refresh):
            pass

        def close(self):
            self.closed = True

    import types
    monkeypatch.setitem(sys.modules, "tqdm", types.ModuleType("tqdm"))
    auto = types.ModuleType("tqdm.auto")
    auto.tqdm = Fake
    monkeypatch.setitem(sys.modules, "tqdm.auto", auto)
    model.perplexity(file=texts[1], seqlen=64, progress=True)
    assert bars and all(b.closed for b in bars) and bars[-1].n == bars[-1].total
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="tqdm"):
        model.perplexity(file=texts[1], seqlen=64, progress=True)


def test_calls_from_inside_callbacks(model, texts):
    found = []

    def inside(event):
        try:
            model.logits([1])
        except dartquant.StateError as error:
            found.append(str(error))
        dartquant.Dataset.from_ids([1, 2], context=dartquant.Context(threads=1))  # another context is fine
        return True

    with pytest.raises(dartquant.CancelledError):
        model.perplexity(file=texts[1], seqlen=64, progress=inside)
    assert found == ["called from inside a callback of a call on the same context"]


def test_closing_inside_a_callback(texts):
    """What is freed while a call runs, by hand or by the garbage collector, is freed after it."""
    m = dartquant.Model.open(TINY, context=dartquant.Context(threads=1))
    extra = [dartquant.Model.open(TINY, context=m.context), m.tokenizer]

    def inside(event):
        m.close()
        extra.clear()
        gc.collect()
        assert m._core._pending

    assert m.perplexity(file=texts[1], seqlen=64, limit=4, progress=inside).windows == 4
    assert not m._core._pending
    with pytest.raises(dartquant.StateError):
        m.logits([1])


def test_second_thread_is_refused(model, texts):
    outcome = []

    def other():
        try:
            model.logits([1])
        except dartquant.StateError as error:
            outcome.append(str(error))

    def inside(event):
        if not outcome:
            t = threading.Thread(target=other)
            t.start()
            t.join()

    model.perplexity(file=texts[1], seqlen=64, limit=4, progress=inside)
    assert len(outcome) == 1 and "another thread" in outcome[0]


def test_threads_with_their_own_contexts(model, texts):
    wanted = model.perplexity(file=texts[1], seqlen=64, limit=8).ppl
    results = []

    def work():
        mine = dartquant.Model.open(TINY)  # each thread has a default context of its own
        results.append(mine.perplexity(file=texts[1], seqlen=64, limit=8, progress=False).ppl)

    threads = [threading.Thread(target=work) for _ in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert results == [wanted, wanted]


def test_after_fork(model):
    pid = os.fork()
    if pid == 0:
        try:
            model.logits([1])
        except dartquant.StateError as error:
            os._exit(7 if "forked" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


INTERRUPTED = """
    import sys, threading, time, os, signal
    import dartquant
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    model = dartquant.Model.open({tiny!r}, context=dartquant.Context(backend="ref"))
    ids = [i % 500 for i in range(200000)]
    threading.Timer(0.7, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    begin = time.time()
    try:
        {call}
    except KeyboardInterrupt:
        assert 0.5 < time.time() - begin < 25, time.time() - begin
    else:
        sys.exit("finished")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert model.logits([1, 2]).shape == (2, 512)
    print("interrupted")
"""


@pytest.mark.parametrize("call", [
    "model.perplexity(ids, seqlen=256, progress=False)",
    "model.perplexity(ids, seqlen=256, progress=lambda e: None)",
    "model.quantize(w_bits=4, cal_ids=ids, seqlen=256, nsamples=128, save_qmodel_path={folder!r})",
])
def test_ctrl_c(call, tmp_path):
    script = textwrap.dedent(INTERRUPTED).format(tiny=str(TINY), call=call.format(folder=str(tmp_path / "q")))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "interrupted\n" and not done.stderr, done.stderr
    assert not (tmp_path / "q").exists() or not os.listdir(tmp_path / "q")


def test_own_signal_handlers_stay(model, texts):
    seen = []
    old = signal.signal(signal.SIGINT, lambda *a: seen.append(a))
    try:
        def inside(event):
            if not seen:
                os.kill(os.getpid(), signal.SIGINT)
        assert model.perplexity(file=texts[1], seqlen=64, limit=4, progress=inside).windows == 4
    finally:
        signal.signal(signal.SIGINT, old)
    assert len(seen) >= 1


@pytest.mark.parametrize("library, text", [("/nowhere/libdartquant.so", "not found"), ("libm.so.6", "has no dq_")])
def test_wrong_library(library, text, tmp_path):
    import shutil

    folder = tmp_path / "dartquant"  # a copy, so that no library lies beside it
    shutil.copytree(ROOT / "bindings" / "python" / "dartquant", folder, ignore=shutil.ignore_patterns("*.so*", "__py*"))
    env = dict(os.environ, DARTQUANT_LIBRARY=library, PYTHONPATH=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", "import dartquant"], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and text in done.stderr and "LibraryError" in done.stderr


def test_time_is_not_lost():
    begin = time.time()
    for _ in range(200):
        dartquant.Config(w_bits=4).copy()
    assert time.time() - begin < 5 and np.__version__
