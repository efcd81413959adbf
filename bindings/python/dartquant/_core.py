"""What every object rests on: handles, one call at a time per context, callbacks and Ctrl-C.

SPDX-License-Identifier: Apache-2.0
"""
from __future__ import annotations

import collections
import ctypes
import dataclasses
import json
import math
import os
import signal
import threading
import weakref
from typing import Any, Callable, Optional, TypeVar, Union

from . import errors
from ._ctypes import HANDLE, LOG_FN, PROGRESS_FN
from ._ffi import lib

Path = Union[str, "os.PathLike[str]"]
_T = TypeVar("_T")
_H = TypeVar("_H", bound="Handle")
E_STATE = -5
# A call that another thread is about to leave is waited for that long before it is refused.
GRACE_SECONDS = 0.2


class Core:
    """One dq_context. Calls on its objects must not overlap: a second one is refused, and a handle that is freed (also by
    the garbage collector, at any moment and in any thread) while a call runs is freed after it."""

    def __init__(self, log: Optional[Callable[[int, str], Any]] = None) -> None:
        self.handle: Any = None
        self.keep: list[Any] = []  # callbacks that the library may call as long as the context lives
        self.callback_error: Optional[BaseException] = None
        self._user_log = log
        self._lock = threading.Lock()
        self._owner: Optional[int] = None
        self._pending: collections.deque[tuple[Callable[[Any], None], Any]] = collections.deque()
        self._pid = os.getpid()

    def log_trampoline(self) -> Any:
        def on_log(_user: Any, level: int, text: bytes) -> None:
            try:
                self._user_log(level, text.decode("utf-8", "replace"))  # type: ignore[misc]
            except BaseException as error:  # raised again when the call returns
                self.callback_error = self.callback_error or error

        trampoline = LOG_FN(on_log)
        self.keep.append(trampoline)
        return trampoline

    def __enter__(self) -> Core:
        if os.getpid() != self._pid:
            raise errors.make(E_STATE, "the context was made before this process forked off; make a new one here")
        if not self._lock.acquire(blocking=False):
            if self._owner == threading.get_ident():
                raise errors.make(E_STATE, "called from inside a callback of a call on the same context")
            if not self._lock.acquire(timeout=GRACE_SECONDS):
                raise errors.make(E_STATE, "another thread is using this context; give each thread a Context of its own")
        self._owner = threading.get_ident()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._owner = None
        self._lock.release()
        self._drain()
        stored, self.callback_error = self.callback_error, None
        if stored is not None and (error is None or isinstance(error, errors.DartQuantError)):
            raise stored

    def release(self, free: Callable[[Any], None], handle: Any) -> None:
        if os.getpid() == self._pid:  # a forked child has no threads to free with
            self._pending.append((free, handle))
            self._drain()

    def _drain(self) -> None:
        while self._pending and self._lock.acquire(blocking=False):
            try:
                while self._pending:
                    free, handle = self._pending.popleft()
                    free(handle)
            finally:
                self._lock.release()

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a fallible function; raises its error."""
        with self:
            status = getattr(lib, name)(*arguments)
            if status != 0:
                raise errors.last(status)

    def make(self, name: str, *arguments: Any) -> Any:
        """Calls a function whose last argument returns a handle."""
        out = HANDLE()
        self.call(name, *arguments, ctypes.byref(out))
        return out


class Handle:
    """Base of all objects. `close()` frees early, leaving a `with` block or the last reference frees too."""

    _free_name = ""

    def __init__(self, core: Core, handle: Any) -> None:
        self._core = core
        self._handle: Any = handle
        self._finalizer = weakref.finalize(self, core.release, getattr(lib, self._free_name), handle)

    @property
    def handle(self) -> Any:
        """Pointer for the C interface. Raises StateError when closed."""
        if self._handle is None:
            raise errors.make(E_STATE, "this %s is closed" % type(self).__name__)
        return self._handle

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._handle is None

    def close(self) -> None:
        """Frees the object now; closing twice is fine."""
        self._handle = None
        self._finalizer()

    def __enter__(self: _H) -> _H:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()


def expect(value: Any, kind: type[_T], what: str) -> _T:
    """`value` when it is a `kind`; TypeError otherwise, so that no foreign pointer reaches the library."""
    if not isinstance(value, kind):
        raise TypeError("%s must be a %s, not %s" % (what, kind.__name__, type(value).__name__))
    return value


def same_context(owner: Handle, other: Handle) -> None:
    """Objects of two contexts do not mix."""
    if owner._core is not other._core:
        raise errors.make(-1, "the %s belongs to another Context than the %s"
                          % (type(other).__name__, type(owner).__name__))


def text_of(core: Core, name: str, handle: Any) -> dict[str, Any]:
    """JSON that a function hands out as text it owns."""
    out = ctypes.c_char_p()
    with core:
        status = getattr(lib, name)(handle, ctypes.byref(out))
        if status != 0:
            raise errors.last(status)
        return json.loads(out.value or b"{}")


class Cancel:
    """A flag that stops jobs. `set()` may be called from any thread."""

    def __init__(self) -> None:
        out = HANDLE()
        status = lib.dq_cancel_new(ctypes.byref(out))
        if status != 0:
            raise errors.last(status)
        self.handle = out
        self._finalizer = weakref.finalize(self, lib.dq_cancel_free, out)

    def set(self) -> None:
        """Asks the job to stop; it raises CancelledError at the next unit of work."""
        lib.dq_cancel_set(self.handle)

    def clear(self) -> None:
        """Makes the token usable again."""
        lib.dq_cancel_clear(self.handle)


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a progress callback receives."""

    stage: str
    index: int
    """Units done."""
    total: int
    """Units in the stage; 0 = unknown."""
    metric: float
    """The stage's own figure (running perplexity, layer error); NaN when none."""
    elapsed: float
    """Seconds since the stage began."""
    orthogonality_error: float = math.nan
    """max |R^T R - I| of the rotation that is being fitted, in its fp32 form; NaN in other stages."""


class _Run:
    """The callbacks of one call. No exception leaves them: it is kept, the job is cancelled, and the exception is raised
    when the library has returned."""

    def __init__(self, report: Optional[Callable[[Progress], Any]], cancel: Cancel) -> None:
        self.report, self.cancel = report, cancel
        self.error: Optional[BaseException] = None
        self.interrupted = False
        self.trampoline = PROGRESS_FN(self._on_event)

    def _on_event(self, _user: Any, event: Any) -> int:
        # Running Python code here also runs Python's pending signal handlers.
        try:
            if self.error is not None or self.interrupted:
                return 1
            if self.report is None:
                return 0
            e = event.contents
            stop = self.report(Progress(e.stage.decode(), e.index, e.total, e.metric, e.elapsed, e.orthogonality_error))
            return 1 if stop else 0
        except BaseException as error:
            self.error = error
            return 1

    def _on_interrupt(self, _number: int, _frame: Any) -> None:
        self.interrupted = True
        self.cancel.set()

    def __enter__(self) -> _Run:
        # Python's own handler would raise inside a callback, where nobody can catch it reliably. Other handlers stay.
        self._restore = (threading.current_thread() is threading.main_thread()
                         and signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        if self._restore:
            signal.signal(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._restore:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def run_job(core: Core, function: Callable[[Any, Any], int], report: Optional[Callable[[Progress], Any]],
            cancel: Optional[Cancel]) -> None:
    """Runs `function(cancel handle, progress callback)`; raises what went wrong in it or in the callbacks."""
    if cancel is not None:
        expect(cancel, Cancel, "cancel")
    run = _Run(report, cancel or Cancel())
    failure: Optional[errors.DartQuantError] = None
    with core, run:
        status = function(run.cancel.handle, run.trampoline)
        if status != 0:
            failure = errors.last(status)
    if run.interrupted:
        if cancel is not None:
            cancel.clear()
        raise KeyboardInterrupt
    if run.error is not None:
        raise run.error
    if failure is not None:
        raise failure
