#!/usr/bin/env python3
"""Trains the tiny LLaMA of tests/data/tiny on generated stories and writes it as a Hugging Face folder.

Needs torch, transformers, tokenizers, safetensors. Deterministic for given package versions; takes a few minutes.
usage: train_tiny.py OUT_DIR [STEPS]
SPDX-License-Identifier: Apache-2.0
"""
import json
import os
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tiny_text import text  # noqa: E402

out, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1500
os.makedirs(out, exist_ok=True)
torch.manual_seed(0)
torch.set_num_threads(2)
corpus = text(1, 2_000_000)

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.train_from_iterator(
    corpus[:400_000].split("\n"),
    trainers.BpeTrainer(vocab_size=512, special_tokens=["<s>", "</s>"],
                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
tokenizer.save(os.path.join(out, "tokenizer.json"))
json.dump({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True},
          open(os.path.join(out, "tokenizer_config.json"), "w"), indent=1)

config = LlamaConfig(vocab_size=512, hidden_size=64, intermediate_size=192, num_hidden_layers=4,
                     num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
                     tie_word_embeddings=True, rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=1)
model = LlamaForCausalLM(config)
ids = torch.tensor(tokenizer.encode(corpus, add_special_tokens=False).ids)
length, batch = 128, 16
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.05)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
generator = torch.Generator().manual_seed(0)
for step in range(steps):
    start = torch.randint(0, len(ids) - length, (batch,), generator=generator)
    x = torch.stack([ids[s:s + length] for s in start])
    x[:, 0] = 0  # every window begins with BOS, as evaluation does
    loss = model(input_ids=x, labels=x).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    if step % 100 == 0 or step == steps - 1:
        print(step, round(loss.item(), 4), flush=True)
model.to(torch.bfloat16).save_pretrained(out)
for name in ("generation_config.json",):
    path = os.path.join(out, name)
    if os.path.exists(path):
        os.remove(path)
