"""Sets of rotations R1..R4. SPDX-License-Identifier: Apache-2.0"""
from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any, Optional

from ._core import Handle, Path, text_of
from ._ctypes import F64
from .config import Config, merged

if TYPE_CHECKING:
    from .model import Model


class Rotation(Handle):
    """Rotations for models of one size: R1 turns the residual stream, R2 each value head, R3 queries and keys after RoPE,
    R4 the input of down_proj."""

    _free_name = "dq_rotation_free"

    @classmethod
    def make(cls, model: Model, *, config: Optional[Config] = None, **options: Any) -> Rotation:
        """The rotations that the options ask for: use_r1, use_r2, use_r3, use_r4, rotate_mode, seed, r1_path, r2_path."""
        settings = merged(config, None, options)
        return cls(model._core, model._core.make("dq_rotation_new", model.handle, settings.handle))

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

    def save(self, path: Path) -> None:
        """Writes R1 and R2 to one safetensors file that r1_path and r2_path accept."""
        self._core.call("dq_rotation_save", self.handle, os.fsencode(path))
