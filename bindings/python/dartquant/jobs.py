"""Long jobs that a program can step through in its own loop. SPDX-License-Identifier: Apache-2.0"""
from __future__ import annotations

import ctypes
import dataclasses
import os
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple, Optional

import numpy as np

from . import errors
from ._arrays import matrix, pointer
from ._core import Cancel, Handle, Path, expect, run_job, same_context, text_of
from ._ctypes import F64, I32, I64
from ._ffi import lib
from ._progress import ProgressArgument, Reporter
from .config import Config, merged
from .context import Context, context_or_default
from .dataset import Dataset
from .memory import Exported, Sink

if TYPE_CHECKING:
    from .model import Model


@dataclasses.dataclass(frozen=True)
class Step:
    """One finished step of a quantization: a decoder layer."""

    index: int
    """Layers done so far."""
    total: int
    layers: list[dict[str, Any]]
    """Reports of the linears finished in this step: {layer, name, bits, error, damping}."""


class QuantizeJob(Handle):
    """The quantization of a model, layer by layer:

        job = model.quantize_job(w_bits=4, cal_file="text.txt")
        for step in job:
            print(step.index, "of", step.total)
        small = job.result()

    After an error or a cancel the job can only be closed; the model it started from is unchanged.
    """

    _free_name = "dq_quantizer_free"

    def __init__(self, model: Model, config: Config, calibration: Optional[Dataset]) -> None:
        self._model = model
        self._config = config
        self._result: Optional[Model] = None
        self._sink: Optional[Sink] = None
        self._done = False
        self._reported = 0
        core = model._core
        super().__init__(core, core.make("dq_quantizer_new", model.handle, config.handle))
        if calibration is not None:
            self.bind(calibration)

    @property
    def needs_data(self) -> bool:
        """True when the job needs calibration data (GPTQ)."""
        out = I32()
        self._core.call("dq_quantizer_needs_data", self.handle, ctypes.byref(out))
        return bool(out.value)

    def bind(self, calibration: Dataset) -> None:
        """Draws the calibration windows."""
        same_context(self, expect(calibration, Dataset, "calibration"))
        self._core.call("dq_quantizer_bind", self.handle, calibration.handle)

    def checkpoint(self, folder: Path) -> None:
        """Keeps the job's state in `folder`: call it before the first step, and again after any step but the last. A job
        that is killed goes on from there with `restore`, to the same bits."""
        self._core.call("dq_quantizer_checkpoint", self.handle, os.fsencode(folder))

    def restore(self, folder: Path) -> None:
        """Brings a job that has not started to the state in `folder`. A checkpoint of another model, of other data or
        options is refused (MismatchError)."""
        self._core.call("dq_quantizer_restore", self.handle, os.fsencode(folder))
        self._reported = len(self.report.get("layers", []))

    def collect(self) -> None:
        """Has the result sent to NumPy arrays as it is made; `exported()` gives them when the job is done."""
        sink = Sink(self._core)
        self._core.call("dq_quantizer_set_sink", self.handle, ctypes.byref(sink.table))
        self._sink = sink  # the library uses the table until the job is done

    def exported(self) -> Exported:
        """The arrays of a job with `collect()`; `Model.from_tensors` opens them."""
        if self._sink is None or not self._sink.finished:
            raise errors.make(-5, "nothing was collected: call collect() before the first step, and finish the job")
        return self._sink.exported()

    @property
    def done(self) -> bool:
        """True after the last step."""
        return self._done

    def step(self, *, progress: ProgressArgument = False, cancel: Optional[Cancel] = None) -> Step:
        """Does one decoder layer."""
        done = I32()
        with Reporter(progress) as report:
            run_job(self._core, lambda token, on: lib.dq_quantizer_step(
                self.handle, token, on, None, ctypes.byref(done)), report, cancel)
        self._done = bool(done.value)
        layers = self.report.get("layers", [])
        fresh, self._reported = layers[self._reported:], len(layers)
        return Step(int(self.number("layers_done")), int(self.number("layers_total")), fresh)

    def __iter__(self) -> Iterator[Step]:
        while not self._done:
            yield self.step()

    def run(self, *, progress: ProgressArgument = None, cancel: Optional[Cancel] = None) -> Model:
        """All remaining steps; returns the result."""
        if not self._done:
            with Reporter(progress) as report:
                run_job(self._core, lambda token, on: lib.dq_quantizer_run(self.handle, token, on, None), report, cancel)
            self._done = True
        return self.result()

    def result(self) -> Model:
        """The quantized model; `.report` says what was done to it."""
        if self._result is None and self._sink is not None:
            e = self.exported()
            self._result = type(self._model).from_tensors(e.config, e.tensors, dtypes=e.dtypes,
                                                          tokenizer=self._model._tokenizer, context=self._model.context)
            self._result.path, self._result.report = self._model.path, self.report
        if self._result is None:
            taken = self._core.make("dq_quantizer_take_model", self.handle)
            self._result = self._model._derive(taken, report=self.report)
        return self._result

    @property
    def report(self) -> dict[str, Any]:
        """What was done so far: scheme, layers with their errors, calibration, bits_per_weight, seconds."""
        return text_of(self._core, "dq_quantizer_report", self.handle)

    def number(self, key: str) -> float:
        """bits_per_weight, layers_done, layers_total, max_error, mean_error or total_seconds."""
        out = F64()
        self._core.call("dq_quantizer_get_float", self.handle, key.encode(), ctypes.byref(out))
        return out.value


class Perplexity(NamedTuple):
    """How well a model predicts a text, and how that was measured. `float(result)` is the perplexity."""

    ppl: float
    nll: float
    """Mean loss in nats per token."""
    windows: int
    tokens: int
    seqlen: int
    seconds: float
    tokens_per_second: float
    dataset: str
    protocol: str
    losses: np.ndarray
    """Loss of each window in nats, float64 [windows]."""
    top1_accuracy: Optional[float] = None
    """Share of the targets that have the largest logit."""
    kl: Optional[float] = None
    """With a reference: mean Kullback-Leibler divergence from it per token, in nats."""
    kl_max: Optional[float] = None
    top1_agreement: Optional[float] = None
    """With a reference: share of the positions where both have the same most probable token."""

    def __float__(self) -> float:
        return self.ppl

    def as_dict(self) -> dict[str, Any]:
        """Everything that was measured but the losses; fit for JSON."""
        return {k: v for k, v in self._asdict().items() if k != "losses" and v is not None}


class Reference(Handle):
    """What is kept of an evaluated model so that others can be compared with it: PerplexityJob.keep, take and compare."""

    _free_name = "dq_reference_free"

    @classmethod
    def open(cls, model: Model, path: Path) -> Reference:
        """Takes a saved reference up again; `model` is the one that was evaluated."""
        return cls(model._core, model._core.make("dq_reference_open", model.handle, os.fsencode(path)))

    def save(self, path: Path) -> None:
        """Writes NAME.safetensors."""
        self._core.call("dq_reference_save", self.handle, os.fsencode(path))

    @property
    def report(self) -> dict[str, Any]:
        """The results of the run that made it."""
        return text_of(self._core, "dq_reference_report", self.handle)


class PerplexityJob(Handle):
    """The measurement of a model on a dataset. `model.perplexity(...)` is the short way."""

    _free_name = "dq_evaluator_free"

    def __init__(self, model: Model, config: Config, dataset: Dataset) -> None:
        core = model._core
        same_context(model, expect(dataset, Dataset, "dataset"))
        super().__init__(core, core.make("dq_evaluator_new", model.handle, config.handle))
        core.call("dq_evaluator_bind", self.handle, dataset.handle)

    def step(self, *, progress: ProgressArgument = False, cancel: Optional[Cancel] = None) -> bool:
        """Does a part of the work (a decoder layer for all windows); True when the result is there."""
        done = I32()
        with Reporter(progress) as report:
            run_job(self._core, lambda token, on: lib.dq_evaluator_step(
                self.handle, token, on, None, ctypes.byref(done)), report, cancel)
        return bool(done.value)

    def checkpoint(self, folder: Path) -> None:
        """Keeps the job's state in `folder`, between steps."""
        self._core.call("dq_evaluator_checkpoint", self.handle, os.fsencode(folder))

    def restore(self, folder: Path) -> None:
        """Brings a job that has not started to the state in `folder`."""
        self._core.call("dq_evaluator_restore", self.handle, os.fsencode(folder))

    def run(self, *, progress: ProgressArgument = None, cancel: Optional[Cancel] = None) -> Perplexity:
        """Runs all windows, or the steps that are left; may be called again."""
        with Reporter(progress) as report:
            run_job(self._core, lambda token, on: lib.dq_evaluator_run(self.handle, token, on, None), report, cancel)
        return self.result()

    def keep(self, keep: bool = True) -> None:
        """Whether the next runs keep what take() gives."""
        self._core.call("dq_evaluator_keep_reference", self.handle, int(keep))

    def take(self) -> Reference:
        """The last run as a reference for other models."""
        return Reference(self._core, self._core.make("dq_evaluator_take_reference", self.handle))

    def compare(self, reference: Optional[Reference]) -> None:
        """The next runs also give kl, kl_max and top1_agreement against `reference`, of the same dataset."""
        if reference is not None:
            same_context(self, expect(reference, Reference, "reference"))
        handle = reference.handle if reference is not None else None
        self._core.call("dq_evaluator_set_reference", self.handle, handle)

    def number(self, key: str) -> float:
        """ppl, nll, top1_accuracy, windows, tokens, seqlen, seconds or tokens_per_second; after a comparison kl, kl_max,
        top1_agreement; integer_linears where there are any."""
        out = F64()
        self._core.call("dq_evaluator_get_float", self.handle, key.encode(), ctypes.byref(out))
        return out.value

    def _whole(self, key: str) -> int:
        out = I64()
        self._core.call("dq_evaluator_get_int", self.handle, key.encode(), ctypes.byref(out))
        return out.value

    @property
    def report(self) -> dict[str, Any]:
        """The results with dataset and protocol."""
        return text_of(self._core, "dq_evaluator_report", self.handle)

    def result(self) -> Perplexity:
        """The results of the last run."""
        facts: dict[str, Any] = self.report
        windows = self._whole("windows")
        losses = np.empty(windows, np.float64)
        self._core.call("dq_evaluator_copy_windows", self.handle, pointer(losses), losses.size)
        return Perplexity(self.number("ppl"), self.number("nll"), windows, self._whole("tokens"),
                          self._whole("seqlen"), self.number("seconds"), self.number("tokens_per_second"),
                          facts.get("dataset", ""), facts.get("protocol", ""), losses,
                          *(facts.get(key) for key in ("top1_accuracy", "kl", "kl_max", "top1_agreement")))


class HostPerplexity(PerplexityJob):
    """The same measurement from logits of one's own forward pass:

        job = HostPerplexity(vocab_size, dataset, seqlen=512)
        for window, ids in enumerate(job.windows()):
            job.add(window, my_forward(ids))
        print(job.result().ppl)
    """

    def __init__(self, vocab_size: int, dataset: Dataset, *, config: Optional[Config] = None,
                 context: Optional[Context] = None, **options: Any) -> None:
        """Options: seqlen, limit. The dataset must be of the same context."""
        ctx, settings = context_or_default(context), merged(config, None, options)
        same_context(ctx, expect(dataset, Dataset, "dataset"))
        Handle.__init__(self, ctx._core, ctx._core.make("dq_evaluator_new_host", ctx.handle, vocab_size, settings.handle))
        self._core.call("dq_evaluator_bind", self.handle, dataset.handle)
        self._seqlen, self._vocab_size = int(settings["seqlen"]), vocab_size
        whole = len(dataset) // self._seqlen
        self._count = min(whole, int(settings["limit"]) or whole)

    def __len__(self) -> int:
        return self._count

    def ids(self, window: int) -> np.ndarray:
        """int32 [seqlen]"""
        out = np.empty(self._seqlen, np.int32)
        self._core.call("dq_evaluator_copy_ids", self.handle, window, pointer(out), out.size)
        return out

    def windows(self) -> Iterator[np.ndarray]:
        """The ids of every window."""
        return (self.ids(i) for i in range(len(self)))

    def add(self, window: int, logits: Any) -> bool:
        """Logits [seqlen, vocab_size] of a window, row i after ids 0 .. i; True when all windows are there."""
        array = matrix(logits, np.float32, "logits")
        if array.shape != (self._seqlen, self._vocab_size):
            raise errors.make(-1, "logits of shape %s, not (%d, %d)" % (array.shape, self._seqlen, self._vocab_size))
        done = I32()
        self._core.call("dq_evaluator_add_logits", self.handle, window, pointer(array), array.size, ctypes.byref(done))
        return bool(done.value)


def checkpoint_exists(folder: Path, *, context: Optional[Context] = None) -> bool:
    """True when `folder` holds a checkpoint, of whatever job."""
    ctx, out = context_or_default(context), I32()
    ctx._core.call("dq_checkpoint_exists", ctx.handle, os.fsencode(folder), ctypes.byref(out))
    return bool(out.value)


def checkpoint_remove(folder: Path, *, context: Optional[Context] = None) -> None:
    """Removes the files of a checkpoint, and `folder` when nothing else is in it."""
    ctx = context_or_default(context)
    ctx._core.call("dq_checkpoint_remove", ctx.handle, os.fsencode(folder))
