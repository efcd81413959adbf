"""The context: memory, threads, log and the device. SPDX-License-Identifier: Apache-2.0"""
from __future__ import annotations

import ctypes
import json
import logging
import threading
from typing import Any, Callable, Optional

from . import errors
from ._core import Cancel, Core, Handle, expect, run_job
from ._ctypes import HANDLE, DeviceCounters, Services
from ._ffi import lib
from ._progress import ProgressArgument, Reporter
from .config import Config, merged

_LEVELS = {1: logging.ERROR, 2: logging.WARNING, 3: logging.INFO, 4: logging.DEBUG}
_logger = logging.getLogger("dartquant")


def _to_logging(level: int, text: str) -> None:
    _logger.log(_LEVELS.get(level, logging.INFO), "%s", text)


class Context(Handle):
    """Holds the device that all objects made with it use. Most programs need none: each thread has a default one.

    Options: threads, backend, policy, simd, device_memory, memory_budget. `log(level, text)` receives the library's messages (1 error,
    2 warning, 3 information, 4 detail); without it they go to the logger "dartquant". One thread at a time may use a
    context and its objects; a second one gets StateError.
    """

    _free_name = "dq_context_free"

    def __init__(self, config: Optional[Config] = None, *, log: Optional[Callable[[int, str], Any]] = None,
                 **values: Any) -> None:
        if log is not None and not callable(log):
            raise TypeError("log must be callable, not %s" % type(log).__name__)
        settings = merged(config, None, values)
        core = Core(log or _to_logging)
        services = Services(struct_size=ctypes.sizeof(Services), abi=1, log=core.log_trampoline())
        core.keep.append(services)
        out = HANDLE()
        core.call("dq_context_new", settings.handle, ctypes.byref(services), ctypes.byref(out))
        core.handle = out
        super().__init__(core, out)

    def _text(self, name: str) -> str:
        with self._core:
            return getattr(lib, name)(self.handle).decode()

    @property
    def device(self) -> str:
        """Name of the device, e.g. "cpu:avx512"."""
        return self._text("dq_context_device_name")

    @property
    def info(self) -> dict[str, Any]:
        """Device, backend, threads and memory."""
        return json.loads(self._text("dq_context_device_json") or "{}")

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes held now, and the most ever held."""
        with self._core:
            return lib.dq_context_memory_now(self.handle), lib.dq_context_memory_peak(self.handle)

    @property
    def fallbacks(self) -> int:
        """How many operations ran on the host because the device does not support them."""
        with self._core:
            return lib.dq_context_fallback_count(self.handle)

    @property
    def counters(self) -> dict[str, Any]:
        """What went over the border to the device: ops, fallbacks, uploads, downloads, upload_bytes, download_bytes."""
        out = DeviceCounters(struct_size=ctypes.sizeof(DeviceCounters))
        self._core.call("dq_context_counters", self.handle, ctypes.byref(out))
        return {field[0]: getattr(out, field[0]) for field in out._fields_[2:]}

    def benchmark(self, seconds: float = 0.2, *, progress: ProgressArgument = None,
                  cancel: Optional[Cancel] = None) -> dict[str, Any]:
        """Times the device's main operations, `seconds` each."""
        out = ctypes.c_char_p()
        with Reporter(progress) as report:
            run_job(self._core, lambda token, on: lib.dq_benchmark_ops(
                self.handle, seconds, token, on, None, ctypes.byref(out)), report, cancel)
        return json.loads(out.value or b"{}")


_local = threading.local()


def default_context() -> Context:
    """The calling thread's own context, made on first use."""
    found = getattr(_local, "context", None)
    if found is None or found.closed:
        found = _local.context = Context()
    return found


def context_or_default(context: Optional[Context]) -> Context:
    """The given context, checked, or the default one."""
    chosen = default_context() if context is None else expect(context, Context, "context")
    if chosen.closed:
        raise errors.make(-5, "this Context is closed")
    return chosen
