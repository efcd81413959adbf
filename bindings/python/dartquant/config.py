"""Options by name: the same names, bounds and defaults as on the command line. SPDX-License-Identifier: Apache-2.0"""
from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any, Iterator, NamedTuple, Optional, Union

from . import errors
from ._core import expect
from ._ctypes import F64, HANDLE, I32, I64, OptionInfo, PresetInfo
from ._ffi import lib

INT, FLOAT, BOOL, STRING, CHOICE = range(5)
Value = Union[bool, int, float, str]


class Option(NamedTuple):
    """One row of the option table."""

    name: str
    area: str
    type: int
    help: str
    unit: str
    default: str
    choices: tuple[str, ...]
    min: float
    max: float


class Preset(NamedTuple):
    """A named set of option values."""

    name: str
    description: str
    settings: str


def _check(status: int) -> None:
    if status != 0:
        raise errors.last(status)


def options() -> list[Option]:
    """Every option, in the order of help texts."""
    rows = []
    for index in range(lib.dq_option_count()):
        i = OptionInfo(struct_size=ctypes.sizeof(OptionInfo))
        _check(lib.dq_option_get(index, ctypes.byref(i)))
        choices = tuple(i.choices.decode().split("|")) if i.choices else ()
        rows.append(Option(i.name.decode(), i.area.decode(), i.type, i.help.decode(), i.unit.decode(),
                           i.default_value.decode(), choices, i.min, i.max))
    return rows


def presets() -> list[Preset]:
    """Every preset."""
    rows = []
    for index in range(lib.dq_preset_count()):
        i = PresetInfo(struct_size=ctypes.sizeof(PresetInfo))
        _check(lib.dq_preset_get(index, ctypes.byref(i)))
        rows.append(Preset(i.name.decode(), i.description.decode(), i.settings.decode()))
    return rows


_TYPES = {o.name: o.type for o in options()}


class Config:
    """Option values. `Config("w4a4kv4", seqlen=512)`: a preset first, then single options. Unknown names raise
    NotFoundError with the nearest known one, values out of bounds InvalidError."""

    def __init__(self, preset: Optional[str] = None, **values: Any) -> None:
        out = HANDLE()
        _check(lib.dq_config_new(ctypes.byref(out)))
        self._adopt(out)
        if preset is not None:
            _check(lib.dq_config_apply_preset(self.handle, expect(preset, str, "preset").encode()))
        self.update(**values)

    def _adopt(self, handle: Any) -> None:
        self.handle = handle
        self._finalizer = weakref.finalize(self, lib.dq_config_free, handle)

    def copy(self) -> Config:
        """An independent copy."""
        out = HANDLE()
        _check(lib.dq_config_copy(self.handle, ctypes.byref(out)))
        copied = Config.__new__(Config)
        copied._adopt(out)
        return copied

    def update(self, **values: Any) -> None:
        """Sets several options; None leaves an option as it is."""
        for name, value in values.items():
            if value is not None:
                self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        key = expect(name, str, "an option's name").encode()
        if hasattr(value, "item") and not isinstance(value, (str, bytes)):
            value = value.item()  # NumPy scalars
        if isinstance(value, (bool, int)):
            if not -2**63 <= value < 2**63:
                raise errors.make(-1, "%s: %d does not fit 64 bits" % (name, value))
            if _TYPES.get(_canonical(name)) in (STRING, CHOICE):
                raise TypeError("%s takes text, not %s" % (name, type(value).__name__))
            _check(lib.dq_config_set_int(self.handle, key, int(value)))
        elif isinstance(value, float):
            _check(lib.dq_config_set_float(self.handle, key, value))
        elif isinstance(value, (str, os.PathLike)):
            _check(lib.dq_config_set(self.handle, key, os.fsencode(value)))
        else:
            raise TypeError("%s takes a number, a truth value or text, not %s" % (name, type(value).__name__))

    def __getitem__(self, name: str) -> Value:
        key = expect(name, str, "an option's name").encode()
        text = ctypes.c_char_p()
        _check(lib.dq_config_get(self.handle, key, ctypes.byref(text)))
        kind = _TYPES[_canonical(name)]
        if kind == FLOAT:
            number = F64()
            _check(lib.dq_config_get_float(self.handle, key, ctypes.byref(number)))
            return number.value
        if kind in (INT, BOOL):
            whole = I64()
            _check(lib.dq_config_get_int(self.handle, key, ctypes.byref(whole)))
            return bool(whole.value) if kind == BOOL else whole.value
        return os.fsdecode(text.value or b"")

    def is_set(self, name: str) -> bool:
        """True when the option was set, by itself or by a preset."""
        out = I32()
        _check(lib.dq_config_is_set(self.handle, expect(name, str, "an option's name").encode(), ctypes.byref(out)))
        return bool(out.value)

    def __iter__(self) -> Iterator[str]:
        return iter(_TYPES)

    def as_dict(self) -> dict[str, Value]:
        """All values by name."""
        return {name: self[name] for name in self}

    def __repr__(self) -> str:
        return "Config(%s)" % ", ".join("%s=%r" % (n, self[n]) for n in self if self.is_set(n))


def _canonical(name: str) -> str:
    return name.replace("-", "_").lower()


def merged(config: Optional[Config], preset: Optional[str], values: dict[str, Any]) -> Config:
    """A config of one's own from the three ways to give options."""
    result = Config() if config is None else expect(config, Config, "config").copy()
    if preset is not None:
        _check(lib.dq_config_apply_preset(result.handle, expect(preset, str, "preset").encode()))
    result.update(**values)
    return result
