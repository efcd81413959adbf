"""Text from a model, token by token. SPDX-License-Identifier: Apache-2.0"""
from __future__ import annotations

import ctypes
import dataclasses
from typing import TYPE_CHECKING, Any, Callable, Optional, Sequence, Union

import numpy as np

from ._arrays import pointer, token_ids
from ._core import Cancel, Handle, expect, run_job, same_context
from ._ctypes import F64, I32, I64, SIZE, STR, TOKEN_FN
from ._ffi import lib
from .config import Config
from .tokenizer import Tokenizer, encode_with

if TYPE_CHECKING:
    from .model import Model

_REASONS = ("none", "length", "eos", "stop")
_WHOLE = ("weights_bytes", "cache_bytes", "prompt_tokens", "tokens")


@dataclasses.dataclass(frozen=True)
class Token:
    """One new token."""

    sequence: int
    index: int
    id: int
    text: str
    """New text that can no longer change; "" while a character or a stop text may be incomplete."""
    finish: Optional[str]
    """None, or why the sequence ended with this token: "length", "eos", "stop"."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """What came after one prompt."""

    text: str
    ids: np.ndarray
    finish: str
    """"length", "eos" or "stop"."""


class Generator(Handle):
    """A model kept in memory, and the sequences that go on from prompts. `model.generate(...)` is the short way.

        with model.generator(max_tokens=20, kv="int8") as g:
            g.add("Once upon a time")
            while not g.step():
                ...
            print(g.result(0).text)
    """

    _free_name = "dq_generator_free"

    def __init__(self, model: Model, config: Config, tokenizer: Any = None) -> None:
        self._tokenizer = tokenizer
        own = tokenizer if isinstance(tokenizer, Tokenizer) else None
        if own is not None:
            same_context(model, own)
        core = model._core
        super().__init__(core, core.make("dq_generator_new", model.handle, own.handle if own else None, config.handle))

    def add(self, prompt: Any) -> int:
        """Adds a prompt, a str or token ids; returns the sequence's number."""
        if isinstance(prompt, str):
            if self._tokenizer is None:
                raise TypeError("a prompt in words needs a tokenizer")
            prompt = encode_with(self._tokenizer, prompt, add_special=True)
        array, sequence = token_ids(prompt), I64()
        self._core.call("dq_generator_add", self.handle, pointer(array), array.size, ctypes.byref(sequence))
        return sequence.value

    def add_stop(self, stop: Union[str, int]) -> None:
        """Sequences end before this text, or with this id."""
        if isinstance(stop, str):
            self._core.call("dq_generator_add_stop", self.handle, stop.encode())
        else:
            self._core.call("dq_generator_add_stop_id", self.handle, stop)

    def configure(self, config: Config) -> None:
        """Other sampling options for the sequences to come."""
        self._core.call("dq_generator_configure", self.handle, expect(config, Config, "config").handle)

    def reset(self) -> None:
        """Forgets the sequences; weights and stops stay."""
        self._core.call("dq_generator_reset", self.handle)

    def _drive(self, function: Callable[[Any, Any], int], token: Optional[Callable[[Token], Any]],
               cancel: Optional[Cancel]) -> None:
        caught: list[BaseException] = []

        def on_token(_user: Any, event: Any) -> int:
            try:
                e = event.contents
                stop = token(Token(e.sequence, e.index, e.id, e.text.decode("utf-8", "replace"),
                                   _REASONS[e.finish] if e.finish else None)) if token else None
                return 1 if stop else 0
            except BaseException as error:  # kept, and raised when the library has returned
                caught.append(error)
                return 1

        trampoline = TOKEN_FN(on_token)
        try:
            run_job(self._core, lambda handle, _progress: function(handle, trampoline), None, cancel)
        except Exception:
            if caught:
                raise caught[0] from None
            raise

    def step(self, *, token: Optional[Callable[[Token], Any]] = None, cancel: Optional[Cancel] = None) -> bool:
        """Loads a layer, takes in a piece of the prompts, or makes a token for each sequence; True when all have ended."""
        done = I32()
        self._drive(lambda handle, on: lib.dq_generator_step(self.handle, handle, on, None, ctypes.byref(done)), token, cancel)
        return bool(done.value)

    def run(self, *, token: Optional[Callable[[Token], Any]] = None, cancel: Optional[Cancel] = None) -> None:
        """Steps until all sequences have ended. `token` is called for each new one; a true result cancels."""
        self._drive(lambda handle, on: lib.dq_generator_run(self.handle, handle, on, None), token, cancel)

    def result(self, sequence: int = 0) -> Generation:
        """What a sequence has so far."""
        needed, reason = SIZE(), I32()
        self._core.call("dq_generator_copy_ids", self.handle, sequence, None, 0, ctypes.byref(needed))
        ids = np.empty(needed.value, np.int32)
        self._core.call("dq_generator_copy_ids", self.handle, sequence, pointer(ids), ids.size, ctypes.byref(needed))
        self._core.call("dq_generator_finish_reason", self.handle, sequence, ctypes.byref(reason))
        found = STR()
        self._core.call("dq_generator_text", self.handle, sequence, ctypes.byref(found))
        text = (found.value or b"").decode("utf-8", "replace")
        if not text and self._tokenizer is not None and not isinstance(self._tokenizer, Tokenizer):
            text = self._tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return Generation(text, ids, _REASONS[reason.value])

    def number(self, key: str) -> float:
        """weights_bytes, cache_bytes, load_seconds, prompt_tokens, prompt_seconds, prompt_tokens_per_second, tokens,
        decode_seconds or decode_tokens_per_second."""
        out = F64()
        self._core.call("dq_generator_get_float", self.handle, key.encode(), ctypes.byref(out))
        return out.value

    def whole(self, key: str) -> int:
        """The figures that are counts."""
        out = I64()
        self._core.call("dq_generator_get_int", self.handle, key.encode(), ctypes.byref(out))
        return out.value


def generate(generator: Generator, prompts: Any, stop: Union[None, str, int, Sequence[Union[str, int]]],
             token: Optional[Callable[[Token], Any]], cancel: Optional[Cancel]) -> Union[Generation, list[Generation]]:
    """One prompt or a list of them through a fresh generator."""
    many = isinstance(prompts, (list, tuple)) and len(prompts) > 0 and not isinstance(prompts[0], (int, np.integer))
    stops = [] if stop is None else [stop] if isinstance(stop, (str, int)) else list(stop)
    for one in stops:
        generator.add_stop(one)
    count = 0
    for prompt in prompts if many else [prompts]:
        generator.add(prompt)
        count += 1
    generator.run(token=token, cancel=cancel)
    results = [generator.result(i) for i in range(count)]
    return results if many else results[0]
