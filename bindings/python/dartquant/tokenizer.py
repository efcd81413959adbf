"""Text to token ids and back. SPDX-License-Identifier: Apache-2.0"""
from __future__ import annotations

import ctypes
import json
import os
from typing import Any, Optional

import numpy as np

from . import errors
from ._arrays import pointer, token_ids
from ._core import Handle, Path, expect
from ._ctypes import SIZE, STR
from ._ffi import lib
from .context import Context, context_or_default

_ADD_SPECIAL, _PARSE_SPECIAL, _SKIP_SPECIAL = 1, 2, 1


class Tokenizer(Handle):
    """Byte-level BPE and SentencePiece-style BPE. Make one with `Tokenizer.open` or take `model.tokenizer`."""

    _free_name = "dq_tokenizer_free"

    @classmethod
    def open(cls, path: Path, *, context: Optional[Context] = None) -> Tokenizer:
        """Opens a folder with tokenizer.json, a tokenizer.json, or a GGUF file."""
        ctx = context_or_default(context)
        return cls(ctx._core, ctx._core.make("dq_tokenizer_open", ctx.handle, os.fsencode(path)))

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return lib.dq_tokenizer_vocab_size(self.handle)

    @property
    def bos(self) -> Optional[int]:
        """Beginning-of-sequence id, or None."""
        found = lib.dq_tokenizer_bos(self.handle)
        return None if found < 0 else found

    @property
    def eos(self) -> Optional[int]:
        """End-of-sequence id, or None."""
        found = lib.dq_tokenizer_eos(self.handle)
        return None if found < 0 else found

    @property
    def algorithm(self) -> str:
        """"byte-level BPE" or "sentencepiece BPE"."""
        return lib.dq_tokenizer_algorithm(self.handle).decode()

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> np.ndarray:
        """Ids of `text`, int32 [n]. add_special: BOS (and EOS) where the tokenizer's template says so. parse_special:
        special tokens written out in the text become their ids."""
        data = expect(text, str, "text").encode()
        flags = (_ADD_SPECIAL if add_special else 0) | (_PARSE_SPECIAL if parse_special else 0)
        needed = SIZE()
        ids = np.empty(len(data) + 4, np.int32)  # rarely more tokens than bytes
        while True:
            self._core.call("dq_tokenizer_encode", self.handle, data, len(data), flags, pointer(ids), ids.size,
                            ctypes.byref(needed))
            if needed.value <= ids.size:
                return ids[:needed.value].copy()
            ids = np.empty(needed.value, np.int32)

    def decode(self, ids: Any, *, skip_special: bool = False) -> str:
        """Text of `ids`. Bytes that are not UTF-8 by themselves become U+FFFD."""
        array = token_ids(ids)
        flags = _SKIP_SPECIAL if skip_special else 0
        needed = SIZE()
        size = 16 * array.size + 64
        while True:
            text = ctypes.create_string_buffer(size)
            self._core.call("dq_tokenizer_decode", self.handle, pointer(array), array.size, flags, text, size,
                            ctypes.byref(needed))
            if size > needed.value:
                return text.raw[:needed.value].decode("utf-8", "replace")
            size = needed.value + 1

    def chat_template(self, name: Optional[str] = None) -> Optional[str]:
        """The text of the chat template of that name ("default"), or None."""
        found = STR()
        try:
            self._core.call("dq_tokenizer_get_chat_template", self.handle, name.encode() if name else None,
                            ctypes.byref(found))
        except errors.NotFoundError:
            return None
        return (found.value or b"").decode()

    def render_chat(self, messages: Any, *, add_generation_prompt: bool = True, chat_template: Optional[str] = None,
                    **variables: Any) -> str:
        """A conversation, a list of {"role", "content"}, as text by the tokenizer's chat template, one of its templates by
        name, or the text of another. Other keywords (tools=, date_string=, ...) are variables of the template."""
        data, needed = json.dumps(messages, ensure_ascii=False).encode(), SIZE()
        more = json.dumps(variables, ensure_ascii=False).encode() if variables else None
        template = chat_template.encode() if chat_template is not None else None
        size = 4 * len(data) + 1000
        while True:
            text = ctypes.create_string_buffer(size)
            self._core.call("dq_tokenizer_render_chat", self.handle, template, data, more, int(add_generation_prompt), text,
                            size, ctypes.byref(needed))
            if size > needed.value:
                return text.raw[:needed.value].decode()
            size = needed.value + 1

    def encode_chat(self, messages: Any, *, add_generation_prompt: bool = True, chat_template: Optional[str] = None,
                    **variables: Any) -> np.ndarray:
        """Ids of `render_chat`, as a prompt for `model.generate`."""
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt, chat_template=chat_template,
                                **variables)
        return self.encode(text, add_special=False, parse_special=True)

    def __len__(self) -> int:
        return self.vocab_size


def encode_with(tokenizer: Any, text: str, *, add_special: bool = True) -> np.ndarray:
    """Ids of `text` from a Tokenizer or from a transformers tokenizer."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.encode(text, add_special=add_special)
    if tokenizer is None:
        raise errors.make(-5, "this model has no tokenizer: give it one, or pass token ids")
    if callable(tokenizer):
        return token_ids(tokenizer(text, add_special_tokens=add_special)["input_ids"])
    raise TypeError("a tokenizer must be a dartquant.Tokenizer or a transformers tokenizer, not %s"
                    % type(tokenizer).__name__)
