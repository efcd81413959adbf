"""Hugging Face: models in memory, and datasets through `datasets`. Install with `pip install dartquant[hf]`.

SPDX-License-Identifier: Apache-2.0
"""
from __future__ import annotations

from typing import Any, Iterable, Optional

import numpy as np

from ._arrays import token_ids
from .context import Context
from .dataset import Dataset
from .model import Model
from .tokenizer import Tokenizer

# text recipes of GPTQ, arXiv 2210.17323: (path, configuration, column, separator)
RECIPES = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "text", "\n\n"),
    "ptb": ("ptb-text-only/ptb_text_only", "penn_treebank", "sentence", " "),
}


def from_transformers(model: Any, *, tokenizer: Any = None, context: Optional[Context] = None) -> Model:
    """A transformers model (LLaMA, Mistral, Qwen2, Qwen3, OPT) without touching disk. CPU weights are read in place: leave them as they
    are while the result or a model derived from it lives. `tokenizer`: the transformers tokenizer, for texts."""
    if not hasattr(model, "state_dict") or not hasattr(getattr(model, "config", None), "to_dict"):
        raise TypeError("a transformers model has state_dict() and config.to_dict(); %s has not" % type(model).__name__)
    config = model.config.to_dict()
    if not config.get("architectures"):
        config["architectures"] = [type(model).__name__]
    return Model.from_tensors(config, model.state_dict(), tokenizer=tokenizer, context=context)


def layer_inputs(model: Any, ids: Any, suffix: str = "down_proj") -> dict[str, np.ndarray]:
    """What the linears of a transformers model whose names end in `suffix` receive while it reads `ids`: name -> float32
    [tokens, features]. For pictures: plot.histogram({"before": x, "after": ops.hadamard(x)})."""
    import torch

    found: dict[str, np.ndarray] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, inputs: Any) -> None:
            found[name] = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float().cpu().numpy()
        return hook

    hooks = [module.register_forward_pre_hook(keep(name)) for name, module in model.named_modules()
             if name.endswith(suffix)]
    if not hooks:
        raise ValueError("the model has no module whose name ends in %r" % suffix)
    try:
        with torch.no_grad():
            model(torch.as_tensor(token_ids(ids)).long()[None].to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def texts(tokenizer: Any, lines: Iterable[str], *, name: str = "texts", separator: str = "\n\n",
          context: Optional[Context] = None) -> Dataset:
    """Texts joined by `separator` and tokenized once as a whole."""
    if isinstance(tokenizer, Tokenizer):
        context = None  # the tokenizer's own
    return Dataset.from_text(tokenizer, separator.join(lines), name=name, context=context)


def dataset(tokenizer: Any, name: Any, *, split: str = "test", column: Optional[str] = None,
            separator: Optional[str] = None, configuration: Optional[str] = None,
            context: Optional[Context] = None) -> Dataset:
    """A dataset read through the package `datasets`: "wikitext2" or "ptb" as GPTQ reads them, any other name as
    `datasets.load_dataset(name, configuration, split=split)` knows it, or a `datasets.Dataset` itself."""
    if not isinstance(name, str):
        return texts(tokenizer, name[column or "text"], name=str(getattr(name, "info", None) and name.info.dataset_name
                                                                 or "dataset"),
                     separator="\n\n" if separator is None else separator, context=context)
    try:
        import datasets
    except ImportError:
        raise ImportError("reading %s needs the package datasets: pip install dartquant[hf]" % name) from None
    path, recipe_configuration, recipe_column, recipe_separator = RECIPES.get(name, (name, None, "text", "\n\n"))
    rows = datasets.load_dataset(path, configuration or recipe_configuration, split=split)
    return texts(tokenizer, rows[column or recipe_column], name=name, context=context,
                 separator=recipe_separator if separator is None else separator)
