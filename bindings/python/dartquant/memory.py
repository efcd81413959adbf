"""Tensors in memory lent to the library, and taken from it. SPDX-License-Identifier: Apache-2.0"""
from __future__ import annotations

import ctypes
import json
from typing import Any, Mapping, NamedTuple, Optional

import numpy as np

from ._core import Core
from ._ctypes import (SINK_ADD, SINK_APPEND, SINK_BEGIN, SINK_FINISH, SINK_METADATA, SOURCE_DESCRIBE, SOURCE_FREE,
                      SOURCE_MAP, SOURCE_READ, SOURCE_RELEASE, TensorSink, TensorSource)
from .tensors import DTYPES, STORED

_ABI = 1
_E_IO = -100  # what a callback returns when Python raised; the exception itself is raised again by the caller
_NUMPY = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16", "uint8": "U8", "int8": "I8",
          "int16": "I16", "int32": "I32", "int64": "I64", "uint16": "U16", "uint32": "U32", "uint64": "U64",
          "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}


class Lent:
    """One tensor's memory: dtype, shape, and address when the library may read it directly."""

    def __init__(self, name: str, value: Any, dtype: Optional[str] = None) -> None:
        self.name = name
        self.torch = hasattr(value, "detach") and hasattr(value, "data_ptr")
        if self.torch:
            value = value.detach().contiguous()
            kind = str(value.dtype).rpartition(".")[2]
            self.address = value.data_ptr() if value.device.type == "cpu" else None
            self.bytes = value.numel() * value.element_size()
        else:
            value = np.asarray(value)
            if value.dtype.byteorder == ">":
                value = value.astype(value.dtype.newbyteorder("<"))
            if not value.flags.c_contiguous:
                value = np.ascontiguousarray(value)
            kind, self.address, self.bytes = value.dtype.name, value.ctypes.data, value.nbytes
        self.dtype = dtype or _NUMPY.get(kind, "")
        if self.dtype not in DTYPES:
            raise TypeError("tensor %s has type %s, which the library does not know" % (name, kind))
        self.shape, self.value = tuple(int(n) for n in value.shape), value
        if len(self.shape) > 8:
            raise TypeError("tensor %s has %d dimensions, at most 8 are possible" % (name, len(self.shape)))

    def read(self, offset: int, count: int) -> bytes:
        """Bytes of a tensor that lies on another device."""
        import torch

        flat = self.value.reshape(-1).view(torch.uint8)[offset:offset + count]
        return flat.cpu().numpy().tobytes()


class Source:
    """A dq_tensor_source over a mapping of arrays. Contiguous arrays and CPU tensors are read in place; the library gives
    them up when the last model that reads them is freed."""

    def __init__(self, core: Core, tensors: Mapping[str, Any], dtypes: Optional[Mapping[str, str]] = None) -> None:
        self._core, self.freed = core, False
        self._lent = [Lent(n, t, (dtypes or {}).get(n)) for n, t in tensors.items()]
        self._names = [t.name.encode() for t in self._lent]
        self._callbacks = (SOURCE_DESCRIBE(self._describe), SOURCE_READ(self._read), SOURCE_MAP(self._map),
                           SOURCE_FREE(self._free))
        describe, read, address, free = self._callbacks
        self.table = TensorSource(struct_size=ctypes.sizeof(TensorSource), abi=_ABI, count=len(self._lent),
                                  describe=describe, read=read, map=address, release=SOURCE_RELEASE(), free=free)
        # The callbacks outlive the arrays: the last of them is running when the arrays are given up.
        core.keep[:] = [k for k in core.keep if not (isinstance(k, Source) and k.freed)] + [self]

    def _fail(self, error: BaseException) -> int:
        self._core.callback_error = self._core.callback_error or error
        return _E_IO

    def _describe(self, _user: Any, index: int, out: Any) -> int:
        try:
            t, d = self._lent[index], out.contents
            d.name, d.dtype, d.ndim = self._names[index], DTYPES.index(t.dtype), len(t.shape)
            for i, n in enumerate(t.shape):
                d.shape[i] = n
            return 0
        except BaseException as error:
            return self._fail(error)

    def _read(self, _user: Any, index: int, offset: int, count: int, target: int) -> int:
        try:
            ctypes.memmove(target, self._lent[index].read(offset, count), count)
            return 0
        except BaseException as error:
            return self._fail(error)

    def _map(self, _user: Any, index: int, out: Any) -> int:
        try:
            out[0] = self._lent[index].address
            return 0
        except BaseException as error:
            return self._fail(error)

    def _free(self, _user: Any) -> None:
        self._lent, self.freed = [], True

    def discard(self) -> None:
        """When opening failed, free never comes."""
        self._free(None)


class Exported(NamedTuple):
    """A model as arrays: `Model.from_tensors(e.config, e.tensors, dtypes=e.dtypes)` opens it again."""

    config: dict[str, Any]
    """The manifest, or config.json of a model that is not transformed."""
    tensors: dict[str, np.ndarray]
    """name -> array; BF16 as uint16 and F8 as uint8 with the same bits."""
    dtypes: dict[str, str]
    """name -> type, e.g. "BF16"."""
    metadata: dict[str, str]
    """Texts beside the tensors: "config.json", "dartquant.json", ..."""


class Sink:
    """A dq_tensor_sink that gathers tensors as NumPy arrays."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.tensors: dict[str, np.ndarray] = {}
        self.dtypes: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.finished = False
        self._open: Any = None
        self._callbacks = (SINK_ADD(self._add), SINK_METADATA(self._metadata), SINK_FINISH(self._finish),
                           SINK_BEGIN(self._begin), SINK_APPEND(self._append))
        add, metadata, finish, begin, append = self._callbacks
        self.table = TensorSink(struct_size=ctypes.sizeof(TensorSink), abi=_ABI, add=add, set_metadata=metadata,
                                finish=finish, begin=begin, append=append)

    def _guard(self, action: Any, *arguments: Any) -> int:
        try:
            action(*arguments)
            return 0
        except BaseException as error:
            self._core.callback_error = self._core.callback_error or error
            return _E_IO

    def _room(self, name: bytes, dtype: int, ndim: int, shape: Any, count: int) -> np.ndarray:
        kind = DTYPES[dtype]
        array = np.empty(tuple(shape[i] for i in range(ndim)), STORED[kind])
        if array.nbytes != count:
            raise ValueError("tensor %s: %d bytes for shape %s" % (name.decode(), count, array.shape))
        self.tensors[name.decode()], self.dtypes[name.decode()] = array, kind
        return array

    def _add(self, _user: Any, name: bytes, dtype: int, ndim: int, shape: Any, data: int, count: int) -> int:
        def take() -> None:
            array = self._room(name, dtype, ndim, shape, count)
            if count:
                ctypes.memmove(array.ctypes.data, data, count)
        return self._guard(take)

    def _begin(self, _user: Any, name: bytes, dtype: int, ndim: int, shape: Any, count: int) -> int:
        def take() -> None:
            self._open = [self._room(name, dtype, ndim, shape, count), 0]
        return self._guard(take)

    def _append(self, _user: Any, data: int, count: int) -> int:
        def take() -> None:
            array, at = self._open
            if at + count > array.nbytes:
                raise ValueError("more bytes than the tensor has")
            ctypes.memmove(array.ctypes.data + at, data, count)
            self._open[1] = at + count
        return self._guard(take)

    def _metadata(self, _user: Any, key: bytes, value: bytes) -> int:
        return self._guard(lambda: self.metadata.__setitem__(key.decode(), value.decode()))

    def _finish(self, _user: Any) -> int:
        self.finished = True
        return 0

    def exported(self) -> Exported:
        """What came, once the job is done."""
        config = json.loads(self.metadata.get("dartquant.json") or self.metadata.get("config.json") or "{}")
        return Exported(config, self.tensors, self.dtypes, self.metadata)
