"""A model for lm-evaluation-harness: `lm_eval --model dartquant --model_args pretrained=FOLDER --tasks ...` after
`import dartquant.lm_eval`, or `python -m dartquant lm_eval ...`. Install with `pip install dartquant[lm_eval]`.

Scores are computed as the harness's own model for transformers does: contexts are cut from the left to max_length, rolling
scores use disjoint windows that begin with the prefix token. SPDX-License-Identifier: Apache-2.0
"""
from __future__ import annotations

from typing import Any, Optional

import numpy as np

from .model import Model
from .ops import score_logits
from .tokenizer import Tokenizer, encode_with

try:
    from lm_eval.api.model import LM as _Base
    from lm_eval.api.registry import register_model as _register
except ImportError:  # the class works without the harness, it is only not registered
    _Base = object  # type: ignore[assignment,misc]
    _register = None  # type: ignore[assignment]


class DartQuantLM(_Base):  # type: ignore[misc,valid-type]
    """loglikelihood and loglikelihood_rolling of a dartquant Model."""

    def __init__(self, pretrained: Any, tokenizer: Any = None, max_length: Optional[int] = None,
                 add_bos_token: Any = None, prefix_token_id: Optional[int] = None, math: str = "f32",
                 batch_size: Any = 1, **unused: Any) -> None:
        super().__init__()
        for name, value in unused.items():
            if name not in ("device", "max_batch_size") and value is not None:
                raise TypeError("unknown model argument %s" % name)
        self.model = pretrained if isinstance(pretrained, Model) else Model.open(pretrained, tokenizer=tokenizer)
        self.tokenizer = self.model.tokenizer
        self.max_length = int(max_length or self.model.info.get("max_position_embeddings") or 2048)
        # None: what the tokenizer does by itself
        self.add_bos_token = None if add_bos_token is None else str(add_bos_token).lower() in ("true", "1")
        self.batch_size, self._math = batch_size, math
        self._prefix = prefix_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before the first token of a text: the given id, else BOS, else EOS."""
        if self._prefix is not None:
            return int(self._prefix)
        if isinstance(self.tokenizer, Tokenizer):
            found = self.tokenizer.bos if self.tokenizer.bos is not None else self.tokenizer.eos
        else:
            found = self.tokenizer.bos_token_id
            found = self.tokenizer.eos_token_id if found is None else found
        if found is None:
            raise ValueError("the tokenizer has neither BOS nor EOS: give prefix_token_id")
        return found

    def tok_encode(self, text: str, add_special_tokens: Optional[bool] = None) -> list[int]:
        """Ids of a text. BOS as asked for here, else as the model was made, else as the tokenizer does by itself; a text
        that begins with BOS written out gets no second one."""
        special = add_special_tokens if add_special_tokens is not None else self.add_bos_token
        special = True if special is None else special
        if add_special_tokens is None and text.startswith(self._prefix_text()):
            special = False
        if isinstance(self.tokenizer, Tokenizer):
            return self.tokenizer.encode(text, add_special=special, parse_special=True).tolist()
        return encode_with(self.tokenizer, text, add_special=special).tolist()

    def _prefix_text(self) -> str:
        try:
            return self.model.detokenize([self.prefix_token_id]) or "\0"
        except ValueError:  # a tokenizer without BOS and EOS
            return "\0"

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Trailing spaces of the context belong to the continuation, as in the harness."""
        spaces = len(context) - len(context.rstrip())
        if spaces:
            continuation, context = context[-spaces:] + continuation, context[:-spaces]
        whole, head = self.tok_encode(context + continuation), self.tok_encode(context)
        return head, whole[len(head):]

    def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Log-likelihood of `continuation` after `context` (not empty), and whether greedy decoding would give it."""
        if not continuation:
            return 0.0, True
        if len(continuation) > self.max_length:
            raise ValueError("a continuation of %d tokens is longer than max_length (%d)"
                             % (len(continuation), self.max_length))
        ids = (context + continuation)[-(self.max_length + 1):]
        n = len(continuation)
        logits = self.model.logits(ids[:-1], math=self._math)[-n:]
        nll, best = score_logits(logits, np.asarray(continuation, np.int32), context=self.model.context)
        return -float(nll.sum()), bool((best == np.asarray(continuation)).all())

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of each request's (context, continuation)."""
        results = []
        for request in requests:
            context, continuation = request.args
            if context == "":
                head, tail = [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
                if tail and tail[0] == head[0]:
                    tail = tail[1:]
            else:
                head, tail = self._encode_pair(context, continuation)
            results.append(self._score(head, tail))
            self._remember("loglikelihood", request, results[-1])
        return results

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, in disjoint windows of max_length."""
        results = []
        for request in requests:
            (text,) = request.args
            ids = self.tok_encode(text)
            total = 0.0
            for context, continuation in rolling_windows(ids, self.prefix_token_id, self.max_length):
                total += self._score(context, continuation)[0]
            results.append(total)
            self._remember("loglikelihood_rolling", request, total)
        return results

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Not possible: libdartquant has no generation."""
        raise NotImplementedError("dartquant cannot generate text yet: generate_until tasks need a model with generation; "
                                  "choose tasks that score (multiple choice, perplexity)")

    def _remember(self, kind: str, request: Any, answer: Any) -> None:
        hook = getattr(self, "cache_hook", None)
        if hook is not None:
            hook.add_partial(kind, request.args, answer)


def rolling_windows(ids: list[int], prefix: int, max_length: int) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) pairs that score every id once: the first window begins with the prefix token, each later
    one sees as many tokens before it as fit. The same cuts as lm_eval.utils.get_rolling_token_windows with context_len 1
    after make_disjoint_window."""
    pairs = []
    if ids:
        first = min(max_length, len(ids))
        pairs.append(([prefix], ids[:first]))
        done = first
        while done < len(ids):
            n = min(len(ids) - done, max_length)
            end = done + n
            start = max(end - max_length - 1, 0)
            pairs.append((ids[start:done], ids[done:end]))
            done = end
    return pairs


if _register is not None:
    DartQuantLM = _register("dartquant")(DartQuantLM)  # type: ignore[misc,assignment]
