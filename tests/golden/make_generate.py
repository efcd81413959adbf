#!/usr/bin/env python3
"""Makes tests/data/generate/greedy.json: greedy continuations of the tiny models by transformers in float64.

Needs torch, transformers, safetensors. A continuation ends before the first token whose logit leads by less than a hundredth,
so that rounding cannot change it. With a GGUF file and a prompt as arguments it prints that model's continuation instead
(fp32), for comparison by hand.
SPDX-License-Identifier: Apache-2.0
"""
import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

DATA = pathlib.Path(__file__).resolve().parents[1] / "data"
PROMPTS = {
    "tiny": [[11, 5, 300, 42, 7], [446, 296, 260], [80], list(range(20, 60))],
    "models/gqa": [[1, 2, 3, 4, 5, 6], [90]],
    "models/tied": [[7, 8, 9], [50, 40, 30, 20, 10, 5, 2]],
    "models/bias": [[12, 34, 56]],
    "models/window": [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [8, 9]],
    "models/qwen2": [[9, 8, 7, 6], [44]],
    "models/qwen3": [[5, 9, 33, 2, 81], [7]],
    "models/opt": [[2, 17, 72, 8, 32, 15], [2, 63, 57]],
}
NEW, MARGIN = 24, 1e-2


def greedy(model, prompt, new, margin):
    ids = list(prompt)
    for _ in range(new):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        top = logits.topk(2).values
        if float(top[0] - top[1]) < margin:
            break
        ids.append(int(logits.argmax()))
    return ids[len(prompt):]


def main():
    if len(sys.argv) == 4:
        path = pathlib.Path(sys.argv[1])
        folder, name = str(path.parent), path.name
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
        prompt = tokenizer(sys.argv[2], return_tensors="pt")
        out = model.generate(**prompt, max_new_tokens=int(sys.argv[3]), do_sample=False, eos_token_id=None)
        print(json.dumps(out[0, prompt.input_ids.shape[1]:].tolist()))
        return
    cases = []
    for name, prompts in PROMPTS.items():
        model = AutoModelForCausalLM.from_pretrained(DATA / name, dtype=torch.float64, attn_implementation="eager").eval()
        for prompt in prompts:
            new = greedy(model, prompt, NEW, MARGIN)
            assert len(new) >= 4, (name, prompt, len(new))
            cases.append({"model": name, "prompt": prompt, "new": new})
    out = DATA / "generate"
    out.mkdir(exist_ok=True)
    lines = ",\n ".join(json.dumps(c) for c in cases)
    (out / "greedy.json").write_text("[" + lines + "]\n")


if __name__ == "__main__":
    main()
