"""The pieces below the jobs, on NumPy arrays: for programs with their own weights and their own forward pass.

Everything takes and returns arrays; inputs are never changed. SPDX-License-Identifier: Apache-2.0
"""
from __future__ import annotations

import ctypes
from typing import Any, Mapping, NamedTuple, Optional

import numpy as np

from . import errors
from ._arrays import matrix, pointer
from ._core import Cancel, Handle, expect, run_job, text_of
from ._ctypes import F64, I64
from ._ffi import lib
from ._progress import ProgressArgument, Reporter
from .config import Config, merged
from .context import Context, context_or_default
from .memory import Lent
from .tensors import DTYPES


class Hessian(Handle):
    """What GPTQ knows of a linear's inputs: H = 2 sum x^T x. Feed it with `add`, batch by batch."""

    _free_name = "dq_hessian_free"

    def __init__(self, n: int, *, context: Optional[Context] = None) -> None:
        ctx = context_or_default(context)
        super().__init__(ctx._core, ctx._core.make("dq_hessian_new", ctx.handle, n))
        self.context, self.n = ctx, n

    def add(self, x: Any) -> None:
        """Adds inputs [..., n]: float32, float16, or bfloat16 (torch)."""
        lent = Lent("x", x)
        if not lent.shape or lent.shape[-1] != self.n:
            raise errors.make(-1, "inputs of shape %s for %d features" % (lent.shape, self.n))
        if lent.address is None:
            lent = Lent("x", x.cpu())
        rows = int(np.prod(lent.shape[:-1], dtype=np.int64))
        self._core.call("dq_hessian_add", self.handle, lent.address, rows, self.n, DTYPES.index(lent.dtype))

    @property
    def rows(self) -> int:
        """Inputs added so far."""
        return lib.dq_hessian_rows(self.handle)

    @property
    def matrix(self) -> np.ndarray:
        """H as float32 [n, n]."""
        out = np.empty((self.n, self.n), np.float32)
        self._core.call("dq_hessian_copy", self.handle, pointer(out), out.size)
        return out

    def set(self, h: Any, rows: int) -> None:
        """Replaces H by what another accumulator gave, or the sum of several."""
        array = matrix(h, np.float32, "h")
        if array.shape != (self.n, self.n):
            raise errors.make(-1, "h has shape %s, not (%d, %d)" % (array.shape, self.n, self.n))
        self._core.call("dq_hessian_set", self.handle, pointer(array), rows)


class QuantizedWeight(NamedTuple):
    """scale * (code - zero), one code per byte."""

    codes: np.ndarray
    """uint8 [out, in]"""
    scale: np.ndarray
    """float32 [out, groups]"""
    zero: np.ndarray
    """float32 [out, groups], integral"""
    g_idx: np.ndarray
    """int32 [in], group of each column"""
    error: float
    damping: float

    def dequantize(self, *, context: Optional[Context] = None) -> np.ndarray:
        """float32 [out, in]"""
        ctx = context_or_default(context)
        out, cols = self.codes.shape
        groups = self.scale.shape[1]
        w = np.empty(self.codes.shape, np.float32)
        ctx._core.call("dq_dequantize_weight", ctx.handle, pointer(self.codes), pointer(self.scale), pointer(self.zero),
                       pointer(self.g_idx), out, cols, _group_size(self.g_idx, cols, groups), pointer(w))
        return w


def _group_size(g_idx: np.ndarray, cols: int, groups: int) -> int:
    return -1 if groups == 1 else int(np.bincount(g_idx, minlength=groups).max())


def quantize_weight(w: Any, hessian: Optional[Hessian] = None, *, config: Optional[Config] = None,
                    context: Optional[Context] = None, **options: Any) -> QuantizedWeight:
    """Quantizes the weight [out, in] of a linear y = x w^T. Options: w_bits, w_groupsize, w_asym, w_clip, w_rtn, act_order,
    static_groups, percdamp. Without a Hessian only w_rtn=True is possible."""
    array, settings = matrix(w, np.float32, "w"), merged(config, None, options)
    if hessian is not None:
        context = context or expect(hessian, Hessian, "hessian").context
    ctx = context_or_default(context)
    out, cols = array.shape
    groups = I64()
    ctx._core.call("dq_quantize_groups", settings.handle, cols, ctypes.byref(groups))
    codes, g_idx = np.empty((out, cols), np.uint8), np.empty(cols, np.int32)
    scale, zero = np.empty((out, groups.value), np.float32), np.empty((out, groups.value), np.float32)
    error, damping = F64(), F64()
    ctx._core.call("dq_quantize_weight", ctx.handle, settings.handle, pointer(array), out, cols,
                   None if hessian is None else hessian.handle, pointer(codes), pointer(scale), pointer(zero),
                   pointer(g_idx), ctypes.byref(error), ctypes.byref(damping))
    return QuantizedWeight(codes, scale, zero, g_idx, error.value, damping.value)


def fake_quantize(x: Any, bits: int, *, group: int = -1, symmetric: bool = True, clip: float = 1.0,
                  context: Optional[Context] = None) -> np.ndarray:
    """What dynamic quantization of the rows leaves of x [rows, cols]."""
    ctx, y = context_or_default(context), matrix(x, np.float32, "x").copy()
    ctx._core.call("dq_fake_quantize", ctx.handle, pointer(y), *y.shape, bits, group, int(symmetric), clip)
    return y


def kv_quantize(x: Any, bits: int, *, group: int = -1, symmetric: bool = False, clip: float = 1.0,
                context: Optional[Context] = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of a KV cache [rows, cols] to (codes, scale, zero): x = scale * (code - zero)."""
    ctx, array = context_or_default(context), matrix(x, np.float32, "x")
    rows, cols = array.shape
    groups = cols // group if group > 0 else 1
    codes = np.empty((rows, cols), np.uint8)
    scale, zero = np.empty((rows, groups), np.float32), np.empty((rows, groups), np.float32)
    ctx._core.call("dq_kv_quantize_rows", ctx.handle, pointer(array), rows, cols, bits, group, int(symmetric), clip,
                   pointer(codes), pointer(scale), pointer(zero))
    return codes, scale, zero


def kv_dequantize(codes: Any, scale: Any, zero: Any, *, group: int = -1,
                  context: Optional[Context] = None) -> np.ndarray:
    """Back to float32 [rows, cols]."""
    ctx, c = context_or_default(context), matrix(codes, np.uint8, "codes")
    s, z = matrix(scale, np.float32, "scale"), matrix(zero, np.float32, "zero")
    groups = c.shape[1] // group if group > 0 else 1
    if s.shape != (c.shape[0], groups) or z.shape != s.shape:
        raise errors.make(-1, "scale %s and zero %s for %d rows of %d groups" % (s.shape, z.shape, c.shape[0], groups))
    x = np.empty(c.shape, np.float32)
    ctx._core.call("dq_kv_dequantize_rows", ctx.handle, pointer(c), pointer(s), pointer(z), *c.shape, group, pointer(x))
    return x


def make_levels(kind: str, bits: int, *, context: Optional[Context] = None) -> np.ndarray:
    """The 2^bits levels on [-1, 1] of kind "uniform" or "normal" (NormalFloat), float32, ascending."""
    kinds = {"uniform": 0, "normal": 1}
    if kind not in kinds or not 2 <= bits <= 8:
        raise errors.make(-1, "kind is \"uniform\" or \"normal\", bits 2 to 8; not %r, %r" % (kind, bits))
    ctx, levels = context_or_default(context), np.empty(1 << bits, np.float32)
    ctx._core.call("dq_make_levels", ctx.handle, kinds[kind], bits, pointer(levels))
    return levels


def column_ranges(x: Any, *, outliers: float = 0.0, sink: int = 0, seqlen: Optional[int] = None,
                  context: Optional[Context] = None) -> np.ndarray:
    """float32 [2, cols]: what each column of x [rows, cols] spans without the share `outliers` of its numbers and without
    the first `sink` rows of every sequence of `seqlen` rows (default: all rows are one)."""
    ctx, array = context_or_default(context), matrix(x, np.float32, "x")
    ranges = np.empty((2, array.shape[1]), np.float32)
    ctx._core.call("dq_measure_columns", ctx.handle, pointer(array), *array.shape, outliers, sink,
                   array.shape[0] if seqlen is None else seqlen, pointer(ranges))
    return ranges


def fake_quantize_levels(x: Any, levels: Any, *, ranges: Any = None, outliers: float = 0.0, keep_outliers: bool = True,
                         sink: int = 0, seqlen: Optional[int] = None, norm: tuple[float, float] = (1.0, 0.0),
                         context: Optional[Context] = None) -> np.ndarray:
    """x [rows, cols] on the nearest of the ascending levels (KVQuant), which are meant for [-1, 1].

    ranges: of the columns, from `column_ranges` (keys); without, every row has its own, less the share `outliers` of it
    (values). Outliers stay as they are or, with keep_outliers=False, take the outermost level. The first `sink` rows of every
    sequence of `seqlen` rows stay (default: all rows are one sequence). norm: scale and offset of the levels (Q-Norm)."""
    ctx, y = context_or_default(context), matrix(x, np.float32, "x").copy()
    table = np.ascontiguousarray(levels, np.float32)
    if table.ndim != 1:
        raise errors.make(-1, "levels have shape %s, not one dimension" % (table.shape,))
    spans = None if ranges is None else matrix(ranges, np.float32, "ranges")
    if spans is not None and spans.shape != (2, y.shape[1]):
        raise errors.make(-1, "ranges have shape %s, not (2, %d)" % (spans.shape, y.shape[1]))
    ctx._core.call("dq_fake_quantize_levels", ctx.handle, pointer(y), *y.shape, pointer(table), table.size,
                   None if spans is None else pointer(spans), outliers, int(keep_outliers), sink,
                   y.shape[0] if seqlen is None else seqlen, *norm)
    return y


def hadamard(x: Any, n: Optional[int] = None, *, transpose: bool = False,
             context: Optional[Context] = None) -> np.ndarray:
    """Normalised Hadamard transform of every run of n neighbours (default: the row) in the rows of x [rows, cols]."""
    ctx, y = context_or_default(context), matrix(x, np.float32, "x").copy()
    ctx._core.call("dq_apply_hadamard", ctx.handle, n or y.shape[1], pointer(y), *y.shape, int(transpose))
    return y


def fold_rotation(w: Any, r: Any, side: str, *, bias: Any = None,
                  context: Optional[Context] = None) -> tuple[np.ndarray, Optional[np.ndarray]]:
    """The rotation r [n, n] folded into w [out, in] on its "input" or "output" side: (weight, bias)."""
    sides = {"input": 0, "output": 1}
    if side not in sides:
        raise errors.make(-1, "side is \"input\" or \"output\", not %r" % (side,))
    ctx, y, turn = context_or_default(context), matrix(w, np.float32, "w").copy(), matrix(r, np.float64, "r")
    if turn.shape[0] != turn.shape[1]:
        raise errors.make(-1, "r has shape %s and is not square" % (turn.shape,))
    b = None if bias is None else np.array(bias, np.float32, copy=True)
    if b is not None and b.shape != (y.shape[0],):
        raise errors.make(-1, "bias has shape %s for %d outputs" % (b.shape, y.shape[0]))
    ctx._core.call("dq_fold_rotation", ctx.handle, pointer(y), None if b is None else pointer(b), *y.shape, pointer(turn),
                   turn.shape[0], sides[side])
    return y, b


def score_logits(logits: Any, targets: Any, *, context: Optional[Context] = None) -> tuple[np.ndarray, np.ndarray]:
    """Of one's own logits [rows, vocab]: the loss of each target in nats (float64; 0 where the target is -1), and the
    index of the largest logit of each row."""
    ctx, x = context_or_default(context), matrix(logits, np.float32, "logits")
    t = np.ascontiguousarray(targets, np.int32)
    if t.shape != (x.shape[0],):
        raise errors.make(-1, "%s targets for %d rows" % (t.shape, x.shape[0]))
    nll, best = np.empty(x.shape[0], np.float64), np.empty(x.shape[0], np.int32)
    ctx._core.call("dq_score_logits", ctx.handle, pointer(x), *x.shape, x.shape[1], pointer(t), pointer(nll),
                   pointer(best))
    return nll, best


class LearntRotation(NamedTuple):
    """What `learn_rotation` found."""

    matrices: np.ndarray
    """float64 [groups, n, n], for row vectors: x @ matrices[g]; orthogonal to 1e-12."""
    report: dict[str, Any]
    """Losses, errors and history, as in `Rotation.report`."""


class _RowsCalibrator(Handle):
    _free_name = "dq_calibrator_free"


_KINDS = {"activation": 0, "sink": 1, "weight": 2}


def learn_rotation(rows: Any, *, heads: int = 1, groups: int = 1, initial: Any = None, config: Optional[Config] = None,
                   progress: ProgressArgument = None, cancel: Optional[Cancel] = None,
                   context: Optional[Context] = None, **options: Any) -> LearntRotation:
    """Fits a rotation to rows that the caller brings, without any model.

    rows       activations [tokens, heads * n], float32, float16 or (torch) bfloat16; or {"activation": ..., "sink": ...,
               "weight": ...}: massive activations and weight rows have shares of their own in the loss
    heads, groups   for R2: head i turns by matrix i // (heads / groups); R1 has one of each
    initial    float64 [groups, n, n] to start from, instead of a Hadamard matrix with random signs
    options    loss, method, ep, seed, a_bits (the target) and the others of rotation fitting"""
    ctx, settings = context_or_default(context), merged(config, None, options)
    kinds = rows if isinstance(rows, Mapping) else {"activation": rows}
    lent = {name: Lent(name, x) for name, x in kinds.items()}
    lent = {name: x if x.address is not None else Lent(name, kinds[name].cpu()) for name, x in lent.items()}
    for name, x in lent.items():
        if name not in _KINDS:
            raise errors.make(-1, "rows of kind %r: there are %s" % (name, ", ".join(_KINDS)))
        if len(x.shape) != 2 or heads < 1 or x.shape[1] % heads:
            raise errors.make(-1, "%s rows of shape %s for %d heads" % (name, x.shape, heads))
    if len({x.shape[1] for x in lent.values()}) != 1:
        raise errors.make(-1, "rows of one width are needed, not %s" % sorted(x.shape[1] for x in lent.values()))
    width = next(iter(lent.values())).shape[1]
    n, core = width // heads, ctx._core
    with _RowsCalibrator(core, core.make("dq_calibrator_new_rows", ctx.handle, settings.handle, n, heads, groups)) as job:
        for name, x in lent.items():
            core.call("dq_calibrator_add_rows", job.handle, _KINDS[name], x.address, x.shape[0], width,
                      DTYPES.index(x.dtype))
        if initial is not None:
            start = np.ascontiguousarray(initial, np.float64)
            core.call("dq_calibrator_set_initial", job.handle, pointer(start), start.size)
        with Reporter(progress) as on_event:
            run_job(core, lambda token, on: lib.dq_calibrator_run(job.handle, token, on, None), on_event, cancel)
        out = np.empty((groups, n, n), np.float64)
        core.call("dq_calibrator_copy_rotation", job.handle, pointer(out), out.size)
        return LearntRotation(out, text_of(core, "dq_calibrator_report", job.handle))
