"""One exception class per status code, grouped by area. SPDX-License-Identifier: Apache-2.0"""
from __future__ import annotations

from ._ffi import lib


class DartQuantError(Exception):
    """A failed call. The attributes are the library's record of the failure."""

    status: int = 0
    """Status code, e.g. -101."""
    name: str = ""
    """Its name, e.g. "DQ_E_FORMAT"."""
    file: str = ""
    """File that is to blame, or ""."""
    tensor: str = ""
    """Tensor that is to blame, or ""."""
    byte: int = -1
    """Byte position in the file, or -1."""
    backend: str = ""
    """Device that failed, or ""."""
    vendor_code: int = 0
    """errno or the device library's own code, or 0."""


class InvalidError(DartQuantError, ValueError):
    """An argument or option value is out of its documented range."""


class NoMemoryError(DartQuantError, MemoryError):
    """The allocator refused, or a size overflowed."""


class CancelledError(DartQuantError):
    """The progress callback or a cancel token stopped the job."""


class UnsupportedError(DartQuantError):
    """A valid request that this build, device or model cannot do."""


class StateError(DartQuantError, RuntimeError):
    """A call that is not allowed now: out of order, on a closed object, or while another call runs."""


class NotFoundError(DartQuantError, LookupError):
    """No option, preset, tensor, key or dataset of this name."""


class InternalError(DartQuantError):
    """The library contradicts itself."""


class FileError(DartQuantError):
    """Anything about files."""


class IOError_(FileError, OSError):
    """The operating system refused; `errno` says why."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class FormatError(FileError, ValueError):
    """A file breaks the rules of its format."""


class TruncatedError(FileError, EOFError):
    """A file ends before the data it promises."""


class MismatchError(FileError, ValueError):
    """Files disagree with each other or with the model."""


class NumberError(DartQuantError, ArithmeticError):
    """Anything about numbers."""


class NonFiniteError(NumberError):
    """NaN or Inf where a finite number is required."""


class NumericError(NumberError):
    """A factorization failed after all remedies, or a rotation is not orthogonal."""


class TextError(DartQuantError, ValueError):
    """Tokenizer or dataset cannot serve the request."""


class DeviceError(DartQuantError):
    """Anything about devices."""


class BackendError(DeviceError):
    """A backend failed; `backend` and `vendor_code` say how."""


class DeviceMemoryError(DeviceError, MemoryError):
    """Device memory ran out."""


class DeviceLostError(DeviceError):
    """The device is unusable from now on."""


CLASSES = {
    -1: InvalidError, -2: NoMemoryError, -3: CancelledError, -4: UnsupportedError, -5: StateError, -6: NotFoundError,
    -7: InternalError, -100: IOError_, -101: FormatError, -102: TruncatedError, -103: MismatchError,
    -200: NonFiniteError, -201: NumericError, -300: TextError, -400: BackendError, -401: DeviceMemoryError,
    -402: DeviceLostError,
}
_AREAS = {0: DartQuantError, 1: FileError, 2: NumberError, 3: TextError, 4: DeviceError}


def class_of(status: int) -> type[DartQuantError]:
    """The class for a status code; an unknown code gets that of its area."""
    return CLASSES.get(status) or _AREAS.get(-status // 100, DartQuantError)


def make(status: int, message: str) -> DartQuantError:
    """An error this package finds itself, in the same classes."""
    error = class_of(status)(message)
    error.status, error.name = status, lib.dq_status_name(status).decode()
    return error


def last(status: int) -> DartQuantError:
    """The calling thread's last failure as an exception. Call right after the failing call, on its thread."""
    error = make(status, lib.dq_error_text().decode("utf-8", "replace"))
    error.file = lib.dq_error_file().decode("utf-8", "surrogateescape")
    error.tensor = lib.dq_error_tensor().decode("utf-8", "replace")
    error.byte = lib.dq_error_byte()
    error.backend = lib.dq_error_backend().decode("utf-8", "replace")
    error.vendor_code = lib.dq_error_vendor_code()
    if isinstance(error, IOError_):
        error.errno = error.vendor_code or None
        error.filename = error.file or None
    return error
