"""Sets of rotations R1..R4. SPDX-License-Identifier: Apache-2.0"""
from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

import numpy as np

from ._arrays import pointer
from ._core import Cancel, Handle, Path, run_job, same_context, text_of
from ._ctypes import F64, I32
from ._ffi import lib
from ._progress import ProgressArgument, Reporter
from .config import Config, merged
from .jobs import checkpoint_exists, checkpoint_remove

if TYPE_CHECKING:
    from .dataset import Dataset
    from .model import Model


class _Calibrator(Handle):
    """A job of `Rotation.calibrate`."""

    _free_name = "dq_calibrator_free"


class Rotation(Handle):
    """Rotations for models of one size: R1 turns the residual stream, R2 each value head, R3 queries and keys after RoPE,
    R4 the input of down_proj."""

    _free_name = "dq_rotation_free"

    report: Optional[dict[str, Any]] = None
    """How `calibrate` learnt it: losses, errors and histories of each rotation. None for others."""

    @classmethod
    def make(cls, model: Model, *, config: Optional[Config] = None, **options: Any) -> Rotation:
        """The rotations that the options ask for: use_r1, use_r2, use_r3, use_r4, rotate_mode, seed, r1_path, r2_path."""
        settings = merged(config, None, options)
        return cls(model._core, model._core.make("dq_rotation_new", model.handle, settings.handle))

    @classmethod
    def calibrate(cls, model: Model, *, data: Optional[Path] = None, cal_text: Optional[str] = None,
                  cal_ids: Any = None, cal_file: Optional[Path] = None,
                  cal_dataset: Union[None, str, Dataset] = None, data_dir: Optional[Path] = None,
                  config: Optional[Config] = None, progress: ProgressArgument = None,
                  cancel: Optional[Cancel] = None, checkpoint: Optional[Path] = None, **options: Any) -> Rotation:
        """Learns R1 and R2 from the model's activations (DartQuant, arXiv 2511.04063):

            rotation = Rotation.calibrate(model, cal_file="text.txt", nsamples=32)
            model.fuse().rotate(rotation)

        data                                        folder of inputs that `dartquant capture` or the original scripts wrote
        cal_text, cal_ids, cal_file, cal_dataset    or calibration data, one of them (cal_dataset with data_dir)
        checkpoint                                  folder to keep the state in: the same call goes on from there after a
                                                    crash or Ctrl-C, to the same bits; removed in the end
        options                                     target, loss, method, ep, nsamples, seqlen, ... and those of `make` for
                                                    what is not learnt

        `.report` tells losses and quantization errors before and after."""
        settings = merged(config, None, options)
        fused = model if model.info["fused"] else model.fuse(config=settings)
        text = model._calibration(settings, cal_text, cal_ids, cal_file, cal_dataset, data_dir)
        if (text is None) == (data is None):
            raise TypeError("give calibration data: either data, or one of cal_text, cal_ids, cal_file, cal_dataset")
        core = model._core
        with _Calibrator(core, core.make("dq_calibrator_new", fused.handle, settings.handle)) as job:
            if text is not None:
                same_context(model, text)
                core.call("dq_calibrator_bind", job.handle, text.handle)
            else:
                core.call("dq_calibrator_bind_folder", job.handle, os.fsencode(data))
            with Reporter(progress) as report:
                run_job(core, cls._runner(model, job, checkpoint), report, cancel)
            rotation = cls(core, core.make("dq_calibrator_take_rotation", job.handle))
            rotation.report = text_of(core, "dq_calibrator_report", job.handle)
        if checkpoint is not None:
            checkpoint_remove(checkpoint, context=model.context)
        return rotation

    @staticmethod
    def _runner(model: Model, job: _Calibrator, checkpoint: Optional[Path]) -> Callable[[Any, Any], int]:
        """What runs the job, as `run_job` calls it."""
        if checkpoint is None:
            return lambda token, on: lib.dq_calibrator_run(job.handle, token, on, None)
        folder = os.fsencode(checkpoint)
        if checkpoint_exists(checkpoint, context=model.context):
            model._core.call("dq_calibrator_restore", job.handle, folder)

        def run(token: Any, on: Any) -> int:
            status, done = 0, I32()
            while status == 0 and not done.value:
                status = lib.dq_calibrator_step(job.handle, token, on, None, ctypes.byref(done))
                if status == 0 and not done.value:
                    status = lib.dq_calibrator_checkpoint(job.handle, folder)
            return status

        return run

    @property
    def info(self) -> dict[str, Any]:
        """Which parts exist, their orders and origin."""
        return text_of(self._core, "dq_rotation_describe", self.handle)

    @property
    def error(self) -> float:
        """Largest entry of |R^T R - I| over R1 and all R2."""
        out = F64()
        self._core.call("dq_rotation_error", self.handle, ctypes.byref(out))
        return out.value

    @property
    def r1(self) -> Optional[np.ndarray]:
        """R1 float64 [hidden, hidden], for row vectors: x @ r1. None when the residual stream is not turned."""
        facts = self.info
        hidden = facts["sizes"]["hidden"]
        return self._copy(-1, (hidden, hidden)) if facts["r1"] else None

    @property
    def r2(self) -> Optional[np.ndarray]:
        """R2 float64 [layers, kv_heads, head_dim, head_dim]. None when there is none, or it works online."""
        facts = self.info
        size = facts["sizes"]
        if facts["r2"] != "offline":
            return None
        shape = (size["kv_heads"], size["head_dim"], size["head_dim"])
        return np.stack([self._copy(layer, shape) for layer in range(size["layers"])])

    def _copy(self, layer: int, shape: tuple[int, ...]) -> np.ndarray:
        out = np.empty(shape, np.float64)
        self._core.call("dq_rotation_copy", self.handle, layer, pointer(out), out.size)
        return out

    def save(self, path: Path) -> None:
        """Writes R1 and R2 to one file that r1_path and r2_path accept: .safetensors, .pt (DartQuant) or .bin (SpinQuant)."""
        self._core.call("dq_rotation_save", self.handle, os.fsencode(path))
