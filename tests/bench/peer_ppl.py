#!/usr/bin/env python3
"""Peer: perplexity with transformers (SDPA attention), windows of --seqlen, on ids given as JSON. Prints one JSON line.

usage: peer_ppl.py --model FILE.gguf|DIR --ids F.json [--dtype f32|bf16] [--seqlen 2048] [--limit N] [--threads 2]
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import os
import time

import torch
from transformers import AutoModelForCausalLM

p = argparse.ArgumentParser(description=__doc__)
p.add_argument("--model", required=True)
p.add_argument("--ids", required=True)
p.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
p.add_argument("--seqlen", type=int, default=2048)
p.add_argument("--limit", type=int, default=0)
p.add_argument("--threads", type=int, default=2)
p.add_argument("--repeat", type=int, default=1)
a = p.parse_args()
torch.set_num_threads(a.threads)
where = {} if os.path.isdir(a.model) else {"gguf_file": os.path.basename(a.model)}
model = AutoModelForCausalLM.from_pretrained(
    a.model if not where else os.path.dirname(os.path.abspath(a.model)),
    dtype=torch.float32 if a.dtype == "f32" else torch.bfloat16, attn_implementation="sdpa", **where).eval()
ids = torch.tensor(json.load(open(a.ids)))
windows = len(ids) // a.seqlen
if a.limit:
    windows = min(windows, a.limit)
seconds = []
with torch.no_grad():
    for _ in range(a.repeat):
        start, losses = time.perf_counter(), []
        for w in range(windows):
            x = ids[w * a.seqlen:(w + 1) * a.seqlen][None]
            logits = model(x, use_cache=False).logits[0, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, x[0, 1:]).item())
        seconds.append(time.perf_counter() - start)
nll = sum(losses) / len(losses)
best = sorted(seconds)[len(seconds) // 2]
print(json.dumps({"peer": f"transformers {a.dtype}", "torch": torch.__version__, "ppl": float(torch.tensor(nll).exp()),
                  "nll": nll, "windows": windows, "seconds": best, "tokens_per_second": windows * a.seqlen / best}))
