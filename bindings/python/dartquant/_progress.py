"""How jobs show that they go on. SPDX-License-Identifier: Apache-2.0"""
from __future__ import annotations

import sys
from typing import Any, Callable, Optional, Union

from ._core import Progress

ProgressArgument = Union[None, bool, Callable[[Progress], Any]]


class Bar:
    """A tqdm bar per stage."""

    def __init__(self, tqdm: Any) -> None:
        self._tqdm, self._stage = tqdm, ""
        self._bar: Any = None

    def __call__(self, event: Progress) -> bool:
        if self._bar is None or event.stage != self._stage or event.index < self._bar.n:
            self.close()
            self._bar, self._stage = self._tqdm(total=event.total or None, desc=event.stage, leave=False), event.stage
        if event.metric == event.metric:
            self._bar.set_postfix_str("%.4g" % event.metric, refresh=False)
        self._bar.update(event.index - self._bar.n)
        return False

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class Reporter:
    """What `progress=` asks for: a callable, True (tqdm), False (nothing), or None (tqdm on a terminal, when installed).
    Use it in a `with` block."""

    def __init__(self, progress: ProgressArgument) -> None:
        self.report: Optional[Callable[[Progress], Any]] = None
        self._bar: Optional[Bar] = None
        if callable(progress):
            self.report = progress
        elif progress is True or (progress is None and sys.stderr is not None and sys.stderr.isatty()):
            try:
                from tqdm.auto import tqdm
            except ImportError:
                if progress is True:
                    raise ImportError("progress=True needs tqdm: pip install tqdm") from None
            else:
                self.report = self._bar = Bar(tqdm)
        elif progress not in (None, False):
            raise TypeError("progress must be a callable, True, False or None, not %s" % type(progress).__name__)

    def __enter__(self) -> Optional[Callable[[Progress], Any]]:
        return self.report

    def __exit__(self, *exc: Any) -> None:
        if self._bar is not None:
            self._bar.close()
