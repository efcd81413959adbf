"""Models: open, fuse, rotate, quantize, measure, save. SPDX-License-Identifier: Apache-2.0"""
from __future__ import annotations

import ctypes
import json
import os
import pathlib
from typing import Any, Callable, Mapping, NamedTuple, Optional, Sequence, Union

import numpy as np

from . import errors
from ._arrays import pointer, token_ids
from ._core import Cancel, Handle, Path, expect, run_job, same_context, text_of
from ._ffi import lib
from ._progress import ProgressArgument, Reporter
from .config import Config, merged
from .context import Context, context_or_default
from .dataset import Dataset, dataset_of
from .generation import Generation, Generator, Token, generate
from .memory import Exported, Sink, Source
from .jobs import Perplexity, PerplexityJob, QuantizeJob, Reference, checkpoint_exists, checkpoint_remove
from .ops import QuantizedWeight
from .rotation import Rotation
from .tensors import TensorInfo, tensor_info
from .tokenizer import Tokenizer, encode_with

_ROTATION_OFF = {"fuse_norm": False, "use_r1": False, "use_r2": "none", "use_r3": False, "use_r4": False}


class WeightError(NamedTuple):
    """What `Model.weight_error` gives."""

    error: float
    rescaled: bool
    """Factors of the channels were undone."""


class Model(Handle):
    """A language model. Models never change: fuse, rotate and quantize return new ones that share storage."""

    _free_name = "dq_model_free"

    def __init__(self, context: Context, handle: Any, *, path: Optional[Path] = None, tokenizer: Any = None,
                 report: Optional[dict[str, Any]] = None) -> None:
        super().__init__(context._core, handle)
        self.context = context
        self.path = None if path is None else pathlib.Path(path)
        self.report = report
        """What the quantization did: scheme, layers with their errors, bits_per_weight; None when there was none."""
        self._tokenizer = tokenizer

    # ---- making ----

    @classmethod
    def open(cls, path: Path, *, tokenizer: Any = None, context: Optional[Context] = None) -> Model:
        """Opens a Hugging Face folder, a GGUF file, or a folder saved by `save`. Weights are mapped and read layer by
        layer later. `tokenizer`: a path, a Tokenizer or a transformers tokenizer, when it is not beside the weights."""
        ctx = context_or_default(context)
        if isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = Tokenizer.open(tokenizer, context=ctx)
        handle = ctx._core.make("dq_model_open", ctx.handle, os.fsencode(path))
        return cls(ctx, handle, path=path, tokenizer=tokenizer)

    @classmethod
    def from_tensors(cls, config: Mapping[str, Any], tensors: Mapping[str, Any], *,
                     dtypes: Optional[Mapping[str, str]] = None, tokenizer: Any = None,
                     context: Optional[Context] = None) -> Model:
        """A model whose weights are in memory. `config`: what a Hugging Face config.json holds; `tensors`: arrays or
        torch tensors under Hugging Face names. Contiguous arrays and CPU tensors are read in place, so leave them as they
        are as long as the model or one derived from it lives; others are copied. `dtypes` names the type of arrays that
        NumPy has none for, e.g. {"lm_head.weight": "BF16"} for uint16 bits."""
        ctx = context_or_default(context)
        source = Source(ctx._core, tensors, dtypes)
        try:
            handle = ctx._core.make("dq_model_open_source", ctx.handle, json.dumps(dict(config), default=str).encode(),
                                    ctypes.byref(source.table))
        except BaseException:
            source.discard()
            raise
        if isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = Tokenizer.open(tokenizer, context=ctx)
        return cls(ctx, handle, tokenizer=tokenizer)

    @classmethod
    def from_transformers(cls, model: Any, *, tokenizer: Any = None, context: Optional[Context] = None) -> Model:
        """A transformers model in memory, without touching disk; see `from_tensors`."""
        from .hf import from_transformers

        return from_transformers(model, tokenizer=tokenizer, context=context)

    def _derive(self, handle: Any, report: Optional[dict[str, Any]] = None) -> Model:
        return Model(self.context, handle, path=self.path, tokenizer=self._tokenizer,
                     report=self.report if report is None else report)

    # ---- facts ----

    @property
    def info(self) -> dict[str, Any]:
        """Architecture, sizes, type, parameters, and `quantization` and `rotations` where there are any."""
        return text_of(self._core, "dq_model_describe", self.handle)

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return lib.dq_model_vocab_size(self.handle)

    @property
    def tensors(self) -> list[TensorInfo]:
        """Tensors of the files the model was opened from."""
        return [tensor_info(self._core, "dq_model_tensor_info", self.handle, i)
                for i in range(lib.dq_model_tensor_count(self.handle))]

    def __repr__(self) -> str:
        if self.closed:
            return "<Model, closed>"
        facts = self.info
        return "<Model %s %d x %d, %s>" % (facts.get("architecture"), facts.get("num_hidden_layers", 0),
                                           facts.get("hidden_size", 0),
                                           "quantized" if facts.get("quantization") else facts.get("dtype"))

    # ---- text ----

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, opened from its folder on first use."""
        if self._tokenizer is None and self.path is not None:
            self._tokenizer = Tokenizer.open(self.path, context=self.context)
        if self._tokenizer is None:
            raise errors.make(-5, "this model has no tokenizer: give it one, or pass token ids")
        return self._tokenizer

    def tokenize(self, text: str, *, add_special: bool = True) -> np.ndarray:
        """Ids of a text, int32 [n]."""
        return encode_with(self.tokenizer, text, add_special=add_special)

    def detokenize(self, ids: Any, *, skip_special: bool = False) -> str:
        """Text of ids."""
        if isinstance(self.tokenizer, Tokenizer):
            return self.tokenizer.decode(ids, skip_special=skip_special)
        return self.tokenizer.decode(token_ids(ids).tolist(), skip_special_tokens=skip_special)

    def _dataset(self, arguments: dict[str, Any]) -> Optional[Dataset]:
        given = any(arguments.get(n) is not None for n in ("text", "file")) or isinstance(arguments.get("dataset"), str)
        return dataset_of(self.tokenizer if given else None, self.context, **arguments)

    def _calibration(self, settings: Config, cal_text: Optional[str], cal_ids: Any, cal_file: Optional[Path],
                     cal_dataset: Union[None, str, Dataset], data_dir: Optional[Path]) -> Optional[Dataset]:
        """Calibration data as the jobs' arguments name it; None when they name none."""
        if cal_dataset is None and data_dir is not None and cal_text is None and cal_ids is None and cal_file is None:
            cal_dataset = "wikitext2"
        return self._dataset({"text": cal_text, "ids": cal_ids, "file": cal_file, "dataset": cal_dataset,
                              "data_dir": data_dir, "part": "train", "seqlen": int(settings["seqlen"]), "prefix": "cal_"})

    # ---- deriving ----

    def fuse(self, *, config: Optional[Config] = None, **options: Any) -> Model:
        """Norm weights folded into the linears that read them; the function stays the same. Option: center_embedding."""
        settings = merged(config, None, options)
        return self._derive(self._core.make("dq_model_fuse_norms", self.handle, settings.handle))

    def rotate(self, rotation: Optional[Rotation] = None, *, config: Optional[Config] = None, **options: Any) -> Model:
        """The rotation folded in and its online parts switched on; the model must be fused. Without a Rotation one is
        made from the options: use_r1, use_r2, use_r3, use_r4, rotate_mode, seed, r1_path, r2_path."""
        if rotation is None:
            rotation = Rotation.make(self, config=config, **options)
        elif options or config is not None:
            raise TypeError("give a Rotation or options for one, not both")
        same_context(self, expect(rotation, Rotation, "rotation"))
        return self._derive(self._core.make("dq_model_rotate", self.handle, rotation.handle))

    def quantize_job(self, *, preset: Optional[str] = None, no_rotation: bool = False,
                     rotation: Optional[Rotation] = None, cal_text: Optional[str] = None, cal_ids: Any = None,
                     cal_file: Optional[Path] = None, cal_dataset: Union[None, str, Dataset] = None,
                     data_dir: Optional[Path] = None, config: Optional[Config] = None, **options: Any) -> QuantizeJob:
        """As `quantize`, but the caller steps through the layers: `for step in model.quantize_job(...)`."""
        settings = merged(config, preset, {})
        if no_rotation:
            settings.update(**_ROTATION_OFF)
        settings.update(**options)
        calibration = self._calibration(settings, cal_text, cal_ids, cal_file, cal_dataset, data_dir)
        if calibration is None and int(settings["w_bits"]) < 16 and (settings["w_awq"] or not settings["w_rtn"]):
            raise TypeError("GPTQ and AWQ need calibration text: cal_text, cal_file, cal_ids, or cal_dataset with data_dir "
                            "(or choose w_rtn=True without w_awq)")
        return QuantizeJob(self._transformed(settings, rotation), settings, calibration)

    def _transformed(self, settings: Config, rotation: Optional[Rotation]) -> Model:
        """Fused and rotated as the options say; what is done already is not done again."""
        facts = self.info
        if facts.get("quantization") or facts.get("rotations"):
            return self
        model = self
        if settings["fuse_norm"] and not facts.get("fused"):
            model = model.fuse(config=settings)
        if rotation is not None:
            return model.rotate(rotation)
        turns = settings["use_r1"] or settings["use_r2"] != "none" or settings["use_r3"] or settings["use_r4"]
        return model.rotate(config=settings) if turns else model

    def quantize(self, *, preset: Optional[str] = None, no_rotation: bool = False, rotation: Optional[Rotation] = None,
                 cal_text: Optional[str] = None, cal_ids: Any = None, cal_file: Optional[Path] = None,
                 cal_dataset: Union[None, str, Dataset] = None, data_dir: Optional[Path] = None,
                 config: Optional[Config] = None, progress: ProgressArgument = None, cancel: Optional[Cancel] = None,
                 checkpoint: Optional[Path] = None, **options: Any) -> Model:
        """Fuses norms, rotates and quantizes as `dartquant quantize` does; keyword arguments are named as its options
        (`dartquant.options()` lists them): quantize(w_bits=4, w_groupsize=128, cal_file="text.txt").

        preset        a named set of options that single ones refine, e.g. "w4a4kv4"
        no_rotation   neither fusing nor rotation, unless single options ask for them
        rotation      a Rotation to use instead of one made from the options
        cal_text, cal_ids, cal_file, cal_dataset (with data_dir)   calibration data, one of them; RTN needs none
        checkpoint    folder to keep the job's state in, layer by layer: the same call goes on from there after a crash or
                      Ctrl-C, to the same bits; the folder is removed in the end
        progress      a callable (return True to stop), True for tqdm, False for nothing
        save_qmodel_path   folder to save the result in; codes go there layer by layer instead of staying in memory

        The result's `.report` says what was done. A fused or rotated model is not fused or rotated again."""
        with self.quantize_job(preset=preset, no_rotation=no_rotation, rotation=rotation, cal_text=cal_text,
                               cal_ids=cal_ids, cal_file=cal_file, cal_dataset=cal_dataset, data_dir=data_dir,
                               config=config, **options) as job:
            if checkpoint is None:
                return job.run(progress=progress, cancel=cancel)
            if checkpoint_exists(checkpoint, context=self.context):
                job.restore(checkpoint)
            else:
                job.checkpoint(checkpoint)
            while not job.done:
                step = job.step(progress=progress, cancel=cancel)
                if not job.done and step.index < step.total:
                    job.checkpoint(checkpoint)
            result = job.result()
        checkpoint_remove(checkpoint, context=self.context)  # after the job let go of its files
        return result

    def capture(self, folder: Path, *, cal_text: Optional[str] = None, cal_ids: Any = None,
                cal_file: Optional[Path] = None, cal_dataset: Union[None, str, Dataset] = None,
                data_dir: Optional[Path] = None, config: Optional[Config] = None, progress: ProgressArgument = None,
                cancel: Optional[Cancel] = None, **options: Any) -> None:
        """Writes what rotations are learnt from to `folder`, for `Rotation.calibrate(data=folder)`. Calibration data as for
        `quantize`; options: capture_format, target, nsamples, seqlen, budget, ...
        `Tensors.open(folder + "/rows-r1.safetensors")["activation"]` are inputs of the linears that R1 turns."""
        settings = merged(config, None, options)
        text = self._calibration(settings, cal_text, cal_ids, cal_file, cal_dataset, data_dir)
        if text is None:
            raise TypeError("give calibration data: one of cal_text, cal_ids, cal_file, cal_dataset")
        same_context(self, text)
        fused = self if self.info["fused"] else self.fuse(config=settings)
        with Reporter(progress) as report:
            run_job(self._core, lambda token, on: lib.dq_model_capture(
                fused.handle, settings.handle, text.handle, os.fsencode(folder), token, on, None), report, cancel)

    # ---- measuring ----

    def perplexity(self, data: Any = None, *, text: Optional[str] = None, ids: Any = None, file: Optional[Path] = None,
                   dataset: Union[None, str, Dataset] = None, data_dir: Optional[Path] = None,
                   reference: Union[None, Model, Reference] = None, config: Optional[Config] = None,
                   progress: ProgressArgument = None, cancel: Optional[Cancel] = None, **options: Any) -> Perplexity:
        """Perplexity in windows without overlap, tail dropped, mean of the windows' means. Options: seqlen, limit, math.

        The data: text (a str), ids (a sequence, array, tensor or JSON file), file (a path), or dataset (a Dataset, or
        "wikitext2", "ptb", "c4" with data_dir). The first argument may be any of them by type.

        With `reference`, another model (measured first) or a Reference to one, the result also has kl, kl_max and
        top1_agreement: how far this model's predictions are from the other's."""
        if data is not None:
            if any(v is not None for v in (text, ids, file, dataset)):
                raise TypeError("give the data once")
            if isinstance(data, Dataset):
                dataset = data
            elif isinstance(data, str):
                text = data
            elif isinstance(data, os.PathLike):
                file = data
            else:
                ids = data
        settings = merged(config, None, options)
        found = self._dataset({"text": text, "ids": ids, "file": file, "dataset": dataset, "data_dir": data_dir,
                               "seqlen": int(settings["seqlen"])})
        if found is None:
            raise TypeError("nothing to measure on: give text, ids, file or dataset")
        if isinstance(reference, Model):
            with PerplexityJob(reference, settings, found) as job:
                job.keep()
                job.run(progress=progress, cancel=cancel)
                reference = job.take()
        with PerplexityJob(self, settings, found) as job:
            if reference is not None:
                job.compare(reference)
            return job.run(progress=progress, cancel=cancel)

    # ---- text ----

    def generator(self, *, tokenizer: bool = True, config: Optional[Config] = None, **options: Any) -> Generator:
        """A generator to step through. Options: max_tokens, temperature, top_k, top_p, seed, kv, head, ignore_eos, prefill,
        math. `tokenizer=False`: ids only, as for a model whose folder has none."""
        found = None
        if tokenizer and (self._tokenizer is not None or self.path is not None):
            try:
                found = self.tokenizer
            except errors.NotFoundError:
                pass
        return Generator(self, merged(config, None, options), found)

    def generate(self, prompt: Any, *, stop: Union[None, str, int, Sequence[Union[str, int]]] = None,
                 token: Optional[Callable[[Token], Any]] = None, cancel: Optional[Cancel] = None,
                 config: Optional[Config] = None, **options: Any) -> Union[Generation, list[Generation]]:
        """Goes on from a prompt (a str or token ids), or from a list of prompts together. `stop`: texts or ids that end a
        sequence. `token` is called for each new token; a true result cancels. Options as for `generator`."""
        with self.generator(config=config, **options) as g:
            return generate(g, prompt, stop, token, cancel)

    def logits(self, ids: Any, *, config: Optional[Config] = None, **options: Any) -> np.ndarray:
        """Logits of one causal sequence, float32 [n, vocab_size]. Option: math."""
        array, settings = token_ids(ids), merged(config, None, options)
        out = np.empty((array.size, self.vocab_size), np.float32)
        self._core.call("dq_model_logits", self.handle, pointer(array), array.size, settings.handle, pointer(out),
                        out.size)
        return out

    def codes(self, layer: int, linear: str) -> QuantizedWeight:
        """Integer codes of one linear ("q_proj", ..., "down_proj"; names as in info["linears"]) of a quantized model, with
        scales, zeros and the group of each column: the weight, as fused and rotated, is `.dequantize()`. `error` and `damping` stand in `.report`."""
        rows, cols, groups = ctypes.c_int64(), ctypes.c_int64(), ctypes.c_int64()
        name = linear.encode()
        self._core.call("dq_model_codes_shape", self.handle, layer, name, ctypes.byref(rows), ctypes.byref(cols),
                        ctypes.byref(groups), None)
        codes = np.empty((rows.value, cols.value), np.uint8)
        scale, zero = (np.empty((rows.value, groups.value), np.float32) for _ in range(2))
        g_idx = np.empty(cols.value, np.int32)
        self._core.call("dq_model_copy_codes", self.handle, layer, name, pointer(codes), pointer(scale), pointer(zero),
                        pointer(g_idx))
        return QuantizedWeight(codes, scale, zero, g_idx, float("nan"), float("nan"))

    def weight_error(self, reference: Model, layer: int, linear: str) -> WeightError:
        """How far a linear's weight is from that of `reference`, e.g. the model it was quantized from: |W - R| / |R|. Both must
        be rotated alike, or neither. AWQ's factors between v and o, up and down are undone where they explain the error."""
        same_context(self, expect(reference, Model, "reference"))
        error, rescaled = ctypes.c_double(), ctypes.c_int32()
        self._core.call("dq_model_weight_error", self.handle, reference.handle, layer, linear.encode(),
                        ctypes.byref(error), ctypes.byref(rescaled))
        return WeightError(error.value, bool(rescaled.value))

    # ---- saving ----

    def export_tensors(self, *, progress: ProgressArgument = None, cancel: Optional[Cancel] = None) -> Exported:
        """The model as NumPy arrays, what `save` would write; `from_tensors` opens them again."""
        sink = Sink(self._core)
        with Reporter(progress) as report:
            run_job(self._core, lambda token, on: lib.dq_model_save_to(
                self.handle, ctypes.byref(sink.table), token, on, None), report, cancel)
        return sink.exported()

    def export(self, path: Path, format: str, *, config: Optional[Config] = None, progress: ProgressArgument = None,
               cancel: Optional[Cancel] = None, **options: Any) -> None:
        """Writes the model for other programs into a new folder: format "gptq", "gptq_v2", "awq", "compressed-tensors",
        "compressed-tensors:int-quantized", "gguf:q4_0" and other types, "hf", "hf:bf16", "diffulex-gptq",
        "diffulex-awq". What the format cannot hold raises before anything is written. Option: part_size."""
        settings = merged(config, None, options)
        with Reporter(progress) as report:
            run_job(self._core, lambda token, on: lib.dq_model_export(
                self.handle, format.encode(), os.fsencode(path), settings.handle, token, on, None), report, cancel)
        if hasattr(self._tokenizer, "save_pretrained") and os.path.isdir(path):
            self._tokenizer.save_pretrained(pathlib.Path(os.fsdecode(path)))

    def save(self, path: Path, *, config: Optional[Config] = None, progress: ProgressArgument = None,
             cancel: Optional[Cancel] = None, **options: Any) -> None:
        """Writes the model to a folder that `open` reads to the same numbers, with its tokenizer. Option: part_size."""
        settings = merged(config, None, options)
        with Reporter(progress) as report:
            run_job(self._core, lambda token, on: lib.dq_model_save(
                self.handle, os.fsencode(path), settings.handle, token, on, None), report, cancel)
        if hasattr(self._tokenizer, "save_pretrained"):  # one of transformers; the library brings those of model files
            self._tokenizer.save_pretrained(pathlib.Path(os.fsdecode(path)))
