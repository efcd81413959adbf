#!/usr/bin/env python3
"""Peer: llama.cpp (the copy inside the xllamacpp wheel, called through ctypes): one batch of 2048 tokens a window on the
GGUF as it is, logits of all positions, mean loss computed by NumPy outside the timing. Prints one JSON line.

The wheel has no stable C header: parameter structs are taken from the library's own defaults and handed back whole; only
the first three fields of the context parameters (n_ctx, n_batch, n_ubatch) are set.

usage: peer_llamacpp.py --model FILE.gguf --ids F.json [--seqlen 2048] [--limit N] [--threads 2] [--new N]
With --new: the first seqlen ids as a prompt, then N greedy tokens one by one; rates of both, as dartquant generate reports them.
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import ctypes as c
import glob
import importlib.util
import json
import os
import time

import numpy as np

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--model", required=True)
p.add_argument("--ids", required=True)
p.add_argument("--seqlen", type=int, default=2048)
p.add_argument("--limit", type=int, default=0)
p.add_argument("--threads", type=int, default=2)
p.add_argument("--new", type=int, default=0)
a = p.parse_args()

folder = os.path.dirname(importlib.util.find_spec("xllamacpp").origin)
lib = c.CDLL(glob.glob(os.path.join(folder, "*.so"))[0])


class Params(c.Structure):  # larger than any parameter struct; passed in memory like them
    _fields_ = [("words", c.c_uint32 * 256)]


class Batch(c.Structure):
    _fields_ = [("n_tokens", c.c_int32), ("token", c.POINTER(c.c_int32)), ("embd", c.c_void_p),
                ("pos", c.POINTER(c.c_int32)), ("n_seq_id", c.POINTER(c.c_int32)),
                ("seq_id", c.POINTER(c.POINTER(c.c_int32))), ("logits", c.POINTER(c.c_int8))]


silent = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)(lambda level, text, user: None)
lib.llama_log_set(silent, None)
lib.llama_backend_init()
for name in ("llama_model_default_params", "llama_context_default_params"):
    getattr(lib, name).restype = Params
lib.llama_model_load_from_file.restype = c.c_void_p
lib.llama_model_load_from_file.argtypes = [c.c_char_p, Params]
lib.llama_init_from_model.restype = c.c_void_p
lib.llama_init_from_model.argtypes = [c.c_void_p, Params]
lib.llama_set_n_threads.argtypes = [c.c_void_p, c.c_int32, c.c_int32]
lib.llama_batch_init.restype = Batch
lib.llama_batch_init.argtypes = [c.c_int32, c.c_int32, c.c_int32]
lib.llama_decode.argtypes = [c.c_void_p, Batch]
lib.llama_get_logits.restype = c.POINTER(c.c_float)
lib.llama_get_logits.argtypes = [c.c_void_p]
lib.llama_get_memory.restype = c.c_void_p
lib.llama_get_memory.argtypes = [c.c_void_p]
lib.llama_memory_clear.argtypes = [c.c_void_p, c.c_bool]
lib.llama_model_get_vocab.restype = c.c_void_p
lib.llama_model_get_vocab.argtypes = [c.c_void_p]
lib.llama_vocab_n_tokens.argtypes = [c.c_void_p]

model = lib.llama_model_load_from_file(a.model.encode(), lib.llama_model_default_params())
params = lib.llama_context_default_params()
for field in range(3):
    params.words[field] = a.seqlen + a.new
context = lib.llama_init_from_model(model, params)
if not context:
    raise SystemExit("llama.cpp refused the model")
lib.llama_set_n_threads(context, a.threads, a.threads)
vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
ids = json.load(open(a.ids))
windows = len(ids) // a.seqlen
if a.limit:
    windows = min(windows, a.limit)


def take(tokens, first):
    """Feeds tokens from position `first` on; returns the most likely next one."""
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, first + i, 1, i == len(tokens) - 1
        batch.seq_id[i][0] = 0
    if lib.llama_decode(context, batch) != 0:
        raise SystemExit("llama_decode failed")
    return int(np.ctypeslib.as_array(lib.llama_get_logits(context), (1, vocab))[0].argmax())


batch = lib.llama_batch_init(a.seqlen, 0, 1)
if a.new:
    take(ids[:8], 0)  # pages in the weights
    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    start = time.perf_counter()
    token = take(ids[:a.seqlen], 0)
    middle = time.perf_counter()
    for n in range(a.new - 1):
        token = take([token], a.seqlen + n)
    end = time.perf_counter()
    print(json.dumps({"peer": "llama.cpp", "prompt_tokens_per_second": a.seqlen / (middle - start),
                      "decode_tokens_per_second": (a.new - 1) / (end - middle)}))
    raise SystemExit
batch.n_tokens = a.seqlen
seconds, losses = 0.0, []
for w in range(windows):
    x = ids[w * a.seqlen:(w + 1) * a.seqlen]
    for i, token in enumerate(x):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    start = time.perf_counter()
    if lib.llama_decode(context, batch) != 0:
        raise SystemExit("llama_decode failed")
    logits = np.ctypeslib.as_array(lib.llama_get_logits(context), (a.seqlen, vocab))
    seconds += time.perf_counter() - start
    l = logits[:-1].astype(np.float64)
    top = l.max(1)
    losses.append(float((np.log(np.exp(l - top[:, None]).sum(1)) + top - l[np.arange(len(l)), x[1:]]).mean()))
nll = sum(losses) / len(losses)
print(json.dumps({"peer": "llama.cpp", "ppl": float(np.exp(nll)), "nll": nll, "windows": windows, "seconds": seconds,
                  "tokens_per_second": windows * a.seqlen / seconds}))
