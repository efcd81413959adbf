"""Named tensors of a file or folder, read without a model. SPDX-License-Identifier: Apache-2.0"""
from __future__ import annotations

import ctypes
import os
from typing import Any, Iterator, NamedTuple, Optional, Union

import numpy as np

from . import errors
from ._arrays import pointer
from ._core import Handle, Path
from ._ctypes import I64, TensorDesc
from ._ffi import lib
from .context import Context, context_or_default

DTYPES = ("F32", "F64", "F16", "BF16", "U8", "I8", "I16", "I32", "I64", "U16", "U32", "U64", "BOOL", "F8_E4M3",
          "F8_E5M2", "BLOCK", "OTHER")
STORED = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I8": "i1", "I16": "<i2", "I32": "<i4",
          "I64": "<i8", "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "?", "F8_E4M3": "u1", "F8_E5M2": "u1"}
"""NumPy's type for the stored bytes of each; types it has none for are integers of the same size."""


class TensorInfo(NamedTuple):
    """What is known about one stored tensor."""

    name: str
    dtype: str
    type_name: str
    """The file format's own name, e.g. "Q4_1"."""
    shape: tuple[int, ...]
    file: str
    offset: int
    bytes: int


def tensor_info(core: Any, function: str, handle: Any, index: int) -> TensorInfo:
    """Asks a `_tensor_info` function."""
    d = TensorDesc(struct_size=ctypes.sizeof(TensorDesc))
    core.call(function, handle, index, ctypes.byref(d))
    return TensorInfo((d.name or b"").decode("utf-8", "replace"), DTYPES[d.dtype], (d.type_name or b"").decode(),
                      tuple(d.shape[:d.ndim]), os.fsdecode(d.file or b""), d.offset, d.bytes)


class Tensors(Handle):
    """A .safetensors file, a folder of them, a GGUF file or a PyTorch zip archive: `tensors["name"]` is a float32 array."""

    _free_name = "dq_tensors_free"

    @classmethod
    def open(cls, path: Path, *, context: Optional[Context] = None) -> Tensors:
        """Opens by content; files are mapped, not read."""
        ctx = context_or_default(context)
        return cls(ctx._core, ctx._core.make("dq_tensors_open", ctx.handle, os.fsencode(path)))

    @property
    def format(self) -> str:
        """"safetensors", "gguf" or "pytorch"."""
        return lib.dq_tensors_format(self.handle).decode()

    def __len__(self) -> int:
        return lib.dq_tensors_count(self.handle)

    def __iter__(self) -> Iterator[str]:
        return (self.info(i).name for i in range(len(self)))

    def keys(self) -> list[str]:
        """All names."""
        return list(self)

    def index(self, name: str) -> int:
        """Position of a tensor; NotFoundError when there is none."""
        out = I64()
        self._core.call("dq_tensors_find", self.handle, name.encode(), ctypes.byref(out))
        return out.value

    def info(self, tensor: Union[int, str]) -> TensorInfo:
        """Name, type, shape and place of a tensor given by name or position."""
        index = self.index(tensor) if isinstance(tensor, str) else tensor
        return tensor_info(self._core, "dq_tensors_info", self.handle, index)

    def read(self, tensor: Union[int, str], row: int = 0, count: Optional[int] = None) -> np.ndarray:
        """Rows [row, row + count) decoded to float32; all by default. Fewer than two dimensions are one row."""
        index = self.index(tensor) if isinstance(tensor, str) else tensor
        shape = self.info(index).shape
        rows = shape[0] if len(shape) >= 2 else 1
        n = rows - row if count is None else count
        if row < 0 or n < 0 or row + n > rows:
            raise errors.make(-1, "rows %d to %d of a tensor with %d" % (row, row + n, rows))
        out = np.empty(((n,) + shape[1:]) if len(shape) >= 2 else shape, np.float32)
        if out.size:
            self._core.call("dq_tensors_read_f32", self.handle, index, row, n, pointer(out), out.size)
        return out

    __getitem__ = read

    def view(self, tensor: Union[int, str]) -> np.ndarray:
        """The tensor as it is stored, mapped from its file and read-only: nothing is copied or decoded, and it outlives
        this object. BF16 comes as uint16 and F8 as uint8 with the same bits. safetensors and GGUF; block types have no
        NumPy form (UnsupportedError)."""
        info = self.info(tensor)
        if self.format == "pytorch" or info.dtype not in STORED:
            raise errors.make(-4, "%s: no view of %s in a %s file; read() decodes it"
                              % (info.name, info.type_name, self.format))
        if not info.bytes:
            return np.empty(info.shape, STORED[info.dtype])
        flat = np.memmap(info.file, STORED[info.dtype], "r", info.offset, int(np.prod(info.shape, dtype=np.int64)))
        return np.asarray(flat).reshape(info.shape)
