"""NumPy arrays in and out of the C interface. SPDX-License-Identifier: Apache-2.0"""
from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from . import errors
from ._ctypes import F32, F64, I32, PTR, U8

_POINTERS: dict[str, Any] = {"float32": PTR(F32), "float64": PTR(F64), "int32": PTR(I32), "uint8": PTR(U8)}


def pointer(array: np.ndarray) -> Any:
    """Typed pointer to a contiguous array; the caller keeps the array alive during the call."""
    return array.ctypes.data_as(_POINTERS[array.dtype.name])


def token_ids(ids: Any) -> np.ndarray:
    """One-dimensional int32 ids from any sequence, array or tensor of integers. A batch of one is taken as its row."""
    array = np.asarray(ids.detach().cpu().numpy() if hasattr(ids, "detach") else ids)
    if array.ndim == 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 1:
        raise TypeError("token ids must be one sequence of integers, not %d-dimensional" % array.ndim)
    if array.size == 0:
        return np.zeros(0, np.int32)
    if array.dtype.kind not in "iu":
        raise TypeError("token ids must be integers, not %s" % array.dtype)
    if array.min() < -2**31 or array.max() >= 2**31:
        raise errors.make(-1, "a token id does not fit 32 bits")
    return np.ascontiguousarray(array, dtype=np.int32)


def matrix(value: Any, dtype: Any, what: str) -> np.ndarray:
    """A contiguous two-dimensional array of `dtype`; copies only when it must."""
    array = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    if array.dtype.kind not in "fiu":
        raise TypeError("%s must be an array of numbers, not %s" % (what, array.dtype))
    if array.ndim != 2:
        raise TypeError("%s must be two-dimensional, not %d-dimensional" % (what, array.ndim))
    return np.ascontiguousarray(array, dtype=dtype)


def address(array: np.ndarray) -> Any:
    """Untyped pointer."""
    return ctypes.c_void_p(array.ctypes.data)
