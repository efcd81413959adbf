"""Token streams for calibration and evaluation. SPDX-License-Identifier: Apache-2.0"""
from __future__ import annotations

import os
from typing import Any, Optional, Union

import numpy as np

from . import errors
from ._arrays import pointer, token_ids
from ._core import Handle, Path, expect
from ._ffi import lib
from .context import Context, context_or_default
from .tokenizer import Tokenizer, encode_with

PARTS = {"test": 0, "train": 1}


class Dataset(Handle):
    """Token ids with a name and a protocol (which text, how joined, where BOS). Read-only."""

    _free_name = "dq_dataset_free"

    @classmethod
    def from_ids(cls, ids: Any, *, name: str = "ids", context: Optional[Context] = None) -> Dataset:
        """From ids of one's own; they are copied."""
        ctx, array = context_or_default(context), token_ids(ids)
        return cls(ctx._core, ctx._core.make("dq_dataset_from_ids", ctx.handle, pointer(array), array.size,
                                             name.encode()))

    @classmethod
    def from_ids_file(cls, path: Path, *, context: Optional[Context] = None) -> Dataset:
        """From a JSON file with [1,2,...] or {"ids":[...]}."""
        ctx = context_or_default(context)
        return cls(ctx._core, ctx._core.make("dq_dataset_from_ids_file", ctx.handle, os.fsencode(path)))

    @classmethod
    def from_text(cls, tokenizer: Any, text: str, *, name: str = "text", context: Optional[Context] = None) -> Dataset:
        """From text, tokenized once as a whole. A transformers tokenizer serves too."""
        expect(text, str, "text")
        if not isinstance(tokenizer, Tokenizer):
            return cls.from_ids(encode_with(tokenizer, text), name=name, context=context)
        data, core = text.encode(), tokenizer._core
        return cls(core, core.make("dq_dataset_from_text", tokenizer.handle, data, len(data), name.encode()))

    @classmethod
    def from_file(cls, tokenizer: Tokenizer, path: Path) -> Dataset:
        """From any text file; of .jsonl and .json.gz the field "text" of each line."""
        core = expect(tokenizer, Tokenizer, "tokenizer")._core
        return cls(core, core.make("dq_dataset_from_file", tokenizer.handle, os.fsencode(path)))

    @classmethod
    def from_recipe(cls, tokenizer: Tokenizer, name: str, data_dir: Path, *, part: str = "test",
                    seqlen: int = 2048) -> Dataset:
        """"wikitext2", "ptb" or "c4" as GPTQ (arXiv 2210.17323) reads them, from files in `data_dir`."""
        core = expect(tokenizer, Tokenizer, "tokenizer")._core
        if part not in PARTS:
            raise errors.make(-1, "part is \"test\" or \"train\", not %r" % (part,))
        return cls(core, core.make("dq_dataset_from_recipe", tokenizer.handle, name.encode(), os.fsencode(data_dir),
                                   PARTS[part], seqlen))

    @property
    def name(self) -> str:
        """Name as in reports."""
        return lib.dq_dataset_name(self.handle).decode()

    @property
    def protocol(self) -> str:
        """How the ids were made, in words."""
        return lib.dq_dataset_protocol(self.handle).decode()

    def __len__(self) -> int:
        return lib.dq_dataset_count(self.handle)

    @property
    def ids(self) -> np.ndarray:
        """All ids, int32 [n], as a copy."""
        out = np.empty(len(self), np.int32)
        self._core.call("dq_dataset_copy_ids", self.handle, 0, out.size, pointer(out))
        return out

    def sample(self, nsamples: int = 128, seqlen: int = 2048, *, seed: int = 0) -> np.ndarray:
        """Calibration windows as the quantizer draws them: int32 [nsamples, seqlen]."""
        if nsamples < 1 or seqlen < 1:
            raise errors.make(-1, "nsamples and seqlen must be positive")
        out = np.empty((nsamples, seqlen), np.int32)
        self._core.call("dq_dataset_sample", self.handle, seed, nsamples, seqlen, pointer(out), out.size)
        return out


def dataset_of(tokenizer: Any, context: Context, *, text: Optional[str] = None, ids: Any = None,
               file: Optional[Path] = None, dataset: Union[None, str, Dataset] = None,
               data_dir: Optional[Path] = None, part: str = "test", seqlen: int = 2048,
               prefix: str = "") -> Optional[Dataset]:
    """The dataset that exactly one of the keyword arguments names; None when none is given."""
    names = [prefix + n for n, v in (("text", text), ("ids", ids), ("file", file), ("dataset", dataset)) if v is not None]
    if not names:
        return None
    if len(names) > 1:
        raise TypeError("give one of %s" % " and ".join(names))
    if isinstance(dataset, Dataset):
        return dataset
    if text is not None:
        return Dataset.from_text(tokenizer, text, context=context)
    if ids is not None:
        if isinstance(ids, (str, os.PathLike)):
            return Dataset.from_ids_file(ids, context=context)
        return Dataset.from_ids(ids, context=context)
    if not isinstance(tokenizer, Tokenizer):
        raise errors.make(-5, "%s needs a dartquant.Tokenizer; with another one pass text or ids" % names[0])
    if file is not None:
        return Dataset.from_file(tokenizer, file)
    if data_dir is None:
        raise TypeError("%s=%r needs data_dir, the folder with its files" % (names[0], dataset))
    return Dataset.from_recipe(tokenizer, expect(dataset, str, "dataset"), data_dir, part=part, seqlen=seqlen)
