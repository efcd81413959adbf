#!/usr/bin/env python3
"""Makes tests/data/tokenizers: small tokenizers trained on text generated here, and what the `tokenizers` package
(PyPI, Apache-2.0) makes of a list of texts with each of them; two of them also as vocabularies of GGUF files (written
with the `gguf` package, MIT). Run: python tests/golden/make_tokenizers.py
SPDX-License-Identifier: Apache-2.0"""
import copy
import json
import pathlib
import random
import re

import gguf
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

OUT = pathlib.Path(__file__).resolve().parent.parent / "data" / "tokenizers"

NAMES = "Mara Oskar Lena Timo Ines Bruno Vera Anton Greta Milo".split()
THINGS = "lantern river basket window hammer garden letter engine bridge violin pebble kettle".split()
VERBS = "carries repairs forgets paints measures lifts finds hides weighs follows".split()
PLACES = ["behind the mill", "near the harbour", "under the stairs", "in the old library", "across the valley"]
FOREIGN = ["Größe und Maß", "déjà vu à Orléans", "мост через реку", "γέφυρα και ποτάμι", "橋を渡る人", "城市 的 桥",
           "गाँव का पुल", "مكتبة قديمة", "한국어 문장", "Việt Nam"]


def corpus():
    rng = random.Random(7)
    for i in range(1500):
        line = f"{rng.choice(NAMES)} {rng.choice(VERBS)} the {rng.choice(THINGS)} {rng.choice(PLACES)}"
        if i % 3 == 0:
            line += f", and it isn't {rng.randrange(2000)} steps away; we'll see"
        if i % 7 == 0:
            line += f" ({rng.choice(FOREIGN)})"
        if i % 11 == 0:
            line = f"    for {rng.choice(THINGS)} in range({rng.randrange(99)}):\n        print('{line}')"
        yield line + rng.choice([".", "!", "?", "...", "\n", "\n\n"])


TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n", "\n ", "a", " a", "a ", "  a  b  ",
    "Mara carries the lantern behind the mill.", " Mara  carries   the lantern ", "MARA CARRIES THE LANTERN",
    "Oskar isn't here; we'll see, they've gone, I'm late, you'd know, it's fine",
    "ISN'T WE'LL I'M IT'S THEY'VE 'S'T'RE'", "don\u2019t we\u2019ll",
    "3 33 333 3333 33333 1234567890 3.14 1,000,000 \u0663\u0664 \u2167 \u00bd \u00b2",
    "x=1;y+=2;if(a&&b){return!c;}//!?\n\t\tz<<=3\n\n\n  done\n",
    "    for basket in range(9):\n        print('Lena finds the pebble')\n",
    "Gr\u00f6\u00dfe und Ma\u00df, d\u00e9j\u00e0 vu \u00e0 Orl\u00e9ans",
    "\u043c\u043e\u0441\u0442 \u0447\u0435\u0440\u0435\u0437 \u0440\u0435\u043a\u0443, \u03b3\u03ad\u03c6\u03c5\u03c1\u03b1",
    "\u6a4b\u3092\u6e21\u308b\u4eba\u3002\u57ce\u5e02\u7684\u6865\uff01", "\ud55c\uad6d\uc5b4 \ubb38\uc7a5",
    "\u0917\u093e\u0901\u0935 \u0915\u093e \u092a\u0941\u0932", "\u0645\u0643\u062a\u0628\u0629 \u0642\u062f\u064a\u0645\u0629",
    "\U0001f600 \U0001f680\U0001f680 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f",
    "e\u0301 o\u0308 n\u0303 a\u030a\u0327 \u212b \u1e69 s\u0323\u0307 \ufb01 \uff21 \u2460 \u00c5",
    "\u1112\u1161\u11ab \u0958 \u2126 \u0344", "\u0130stanbul \u01c5 \u1e9e \u03a3\u03a3",
    "\u00a0nbsp\u2003em\u3000wide\u200bzero\u2028line\u0085next", "\x00nul\x01\x7f\x1b[0m",
    "\u2581low\u2581line \u2581 \u2581\u2581x", "<0x41> <0xFF> <unk> <s> </s>",
    "<|endoftext|>", "a<|endoftext|>b <|endoftext|> <|endoftext|><|endoftext|>", "<|end", "<|left|> x <|left|>",
    "x <|right|>  y <|right|>\n z", "word wordy sword word. (word) word_ \u00e9word", "tool TOOL Tool tools",
    "\ufffd \ufeffbom \ue000 \U0010ffff", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "the" * 12, "!" * 9 + "\n" * 7 + " " * 20 + "x", "a_b-c.d/e\\f", "\u00e9" * 9 + "\u0301" * 4,
]
# Bytes that are not UTF-8; what is expected is the result for errors="replace".
BROKEN = ["ff", "61ff62", "c3", "e28281e282", "f09f98", "eda080", "c080", "f8888080", "61e4b8", "f4908080", "80bf41"]

GPT4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def added(i, content, special=True, lstrip=False, rstrip=False, single_word=False, normalized=False):
    return {"id": i, "content": content, "single_word": single_word, "lstrip": lstrip, "rstrip": rstrip,
            "normalized": normalized, "special": special}


def specials(first):
    return [added(first, "<|endoftext|>"), added(first + 1, "<|left|>", lstrip=True),
            added(first + 2, "<|right|>", rstrip=True), added(first + 3, "word", special=False, single_word=True),
            added(first + 4, "tool", special=False, normalized=True)]


def byte_level(size):
    t = tokenizers.Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=size, show_progress=False,
                          initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    t.decoder = decoders.ByteLevel()
    d = json.loads(t.to_str())
    d["added_tokens"] = specials(len(d["model"]["vocab"]))
    return d


def sentencepiece(size):
    """A trained BPE over the metaspace alphabet, behind <unk> <s> </s> and the 256 byte tokens as SentencePiece has it."""
    t = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=size, show_progress=False, limit_alphabet=90))
    d = json.loads(t.to_str())
    pieces = sorted(d["model"]["vocab"], key=d["model"]["vocab"].get)
    head = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    d["model"].update(vocab={p: i for i, p in enumerate(head + pieces)}, byte_fallback=True, fuse_unk=True,
                      unk_token="<unk>")
    first = len(head) + len(pieces)
    d["added_tokens"] = [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")] + specials(first)
    d["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}
    d["pre_tokenizer"] = None
    d["post_processor"] = template("<s>", 1)
    d["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    return d


def template(name, i, after=None):
    single = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    table = {name: {"id": name, "ids": [i], "tokens": [name]}}
    if after:
        single.append({"SpecialToken": {"id": after[0], "type_id": 0}})
        table[after[0]] = {"id": after[0], "ids": [after[1]], "tokens": [after[0]]}
    pair = single + [{"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": table}


def bytelevel(prefix=False, regex=True):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def split(regex, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def variants():
    b, s = byte_level(380), sentencepiece(250)
    eot = b["added_tokens"][0]["id"]

    def make(base, **changes):
        d = copy.deepcopy(base)
        model = changes.pop("model", {})
        d.update(changes)
        d["model"].update(model)
        return d

    legacy = [" ".join(m) if isinstance(m, list) else m for m in b["model"]["merges"]]
    lists = [m.split(" ") if isinstance(m, str) else m for m in s["model"]["merges"]]
    yield "gpt2", make(b, pre_tokenizer=bytelevel(), post_processor=bytelevel(), model={"merges": legacy})
    yield "roberta", make(b, pre_tokenizer=bytelevel(prefix=True), post_processor={
        "type": "RobertaProcessing", "sep": ["<|right|>", eot + 2], "cls": ["<|endoftext|>", eot], "trim_offsets": True,
        "add_prefix_space": True})
    yield "llama3", make(b, pre_tokenizer=sequence(split(GPT4 % r"\p{N}{1,3}"), bytelevel(regex=False)),
                         post_processor={"type": "Sequence", "processors": [bytelevel(), template("<|endoftext|>", eot)]},
                         model={"ignore_merges": True})
    yield "qwen2", make(b, normalizer={"type": "NFC"}, pre_tokenizer=sequence(split(GPT4 % r"\p{N}"), bytelevel(regex=False)))
    yield "smollm", make(b, pre_tokenizer=sequence({"type": "Digits", "individual_digits": True}, bytelevel()))
    yield "o200k", make(b, pre_tokenizer=sequence(split(O200K), bytelevel(regex=False)))
    yield "deepseek", make(b, normalizer={"type": "Sequence", "normalizers": []}, pre_tokenizer=sequence(
        split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
        {"type": "Digits", "individual_digits": False}, bytelevel(regex=False)))
    yield "llama2", make(s, model={"merges": lists})
    for scheme, cut in (("first", True), ("never", True), ("always", False)):
        yield f"metaspace-{scheme}{'' if cut else '-whole'}", make(
            s, normalizer=None, pre_tokenizer={"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": cut},
            decoder={"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Metaspace", "replacement": "\u2581",
                     "prepend_scheme": scheme, "split": cut}]}, post_processor=template("<s>", 1, ("</s>", 2)))
    yield "words", make(s, normalizer={"type": "Sequence", "normalizers": [
        {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}]},
        pre_tokenizer=sequence({"type": "Whitespace"}, {"type": "Punctuation", "behavior": "Isolated"}),
        model={"byte_fallback": False, "fuse_unk": False}, decoder=None)
    yield "splits", make(s, normalizer={"type": "NFKC"}, pre_tokenizer=sequence(
        split(r"[,;]", "MergedWithPrevious"), split(r"\(", "MergedWithNext"), split("!", "Contiguous"),
        {"type": "WhitespaceSplit"}, split(r"\w+|[^\w\s]", "Removed", True),
        {"type": "Split", "pattern": {"String": "-"}, "behavior": "Removed", "invert": False}),
        model={"byte_fallback": False})
    yield "byte-normalizer", make(b, normalizer={"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "ByteLevel"}]},
                                  pre_tokenizer=None)


def gguf_writer(name, model, tokens, types, pre=None):
    w = gguf.GGUFWriter(OUT / name, "llama")
    w.add_tokenizer_model(model)
    if pre:
        w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types(types)
    return w


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def by_id(d):
    tokens = {i: t for t, i in d["model"]["vocab"].items()}
    tokens.update({a["id"]: a["content"] for a in d["added_tokens"]})
    return [tokens[i] for i in range(len(tokens))]


def token_types(d):
    """1 normal, 3 control, 4 user defined, 6 byte"""
    kinds = {a["id"]: 3 if a["special"] else 4 for a in d["added_tokens"]}
    return [kinds.get(i, 6 if re.fullmatch("<0x..>", t) else 1) for i, t in enumerate(by_id(d))]


def plain_added(d):
    """llama.cpp's matching of special tokens: no trimming, no word rule."""
    for a in d["added_tokens"]:
        a.update(lstrip=False, rstrip=False, single_word=False, normalized=False)
    return d


def spm_merge(text, scores):
    """The rule of llama.cpp's SentencePiece tokenizer, the slow way: join the pair with the best score, leftmost first."""
    parts = list(text)
    while True:
        best = None
        for i in range(len(parts) - 1):
            score = scores.get(parts[i] + parts[i + 1])
            if score is not None and (best is None or score > best[0]):
                best = (score, i)
        if best is None:
            return parts
        parts[best[1]:best[1] + 2] = [parts[best[1]] + parts[best[1] + 1]]


def spm_encode(text, d, scores, parse_special):
    ids = {t: i for i, t in enumerate(by_id(d))}
    found = [a["content"] for a in d["added_tokens"] if parse_special or not a["special"]]
    pieces = re.split("(" + "|".join(map(re.escape, sorted(found, key=len, reverse=True))) + ")", text)
    out = []
    for piece in pieces:
        if piece in found:
            out.append(ids[piece])
        elif piece:
            for part in spm_merge("\u2581" + piece.replace(" ", "\u2581"), scores):
                out += [ids[part]] if part in ids else [ids[f"<0x{b:02X}>"] for b in part.encode()]
    return out


def gguf_variants(texts):
    """name, [ids with BOS and special tokens, ids of plain text]"""
    b, s = (plain_added(copy.deepcopy(dict(variants())[name])) for name in ("smollm", "llama2"))
    w = gguf_writer("smollm.gguf", "gpt2", by_id(b), token_types(b), "smollm")
    w.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in b["model"]["merges"]])
    w.add_bos_token_id(b["added_tokens"][0]["id"])
    finish(w)
    t = tokenizers.Tokenizer.from_str(json.dumps(b))

    def bpe(text, parse_special):
        t.encode_special_tokens = not parse_special
        return t.encode(text, add_special_tokens=False).ids

    yield "smollm.gguf", [[bpe(x, flag) for x in texts] for flag in (True, False)]
    rng = random.Random(3)
    tokens = by_id(s)
    values = [0.0 if i < 259 or i >= len(s["model"]["vocab"]) else -float(i // 2 + rng.randrange(9)) for i in range(len(tokens))]
    w = gguf_writer("llama.gguf", "llama", tokens, token_types(s))
    w.add_token_scores(values)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    finish(w)
    scores = dict(zip(tokens, values))
    yield "llama.gguf", [[[1] * flag + spm_encode(x, s, scores, flag) for x in texts] for flag in (True, False)]


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    texts = [t.encode() for t in TEXTS] + [bytes.fromhex(h) for h in BROKEN]
    golden = {"made_with": f"tokenizers {tokenizers.__version__}", "texts": [t.hex() for t in texts], "variants": {}}
    for name, data in variants():
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        (OUT / f"{name}.json").write_text(text, encoding="utf-8")
        t = tokenizers.Tokenizer.from_str(text)
        result = {"ids": [], "plain": [], "text": [], "all": []}
        for raw in texts:
            s = raw.decode("utf-8", errors="replace")
            t.encode_special_tokens = False
            ids = t.encode(s).ids
            result["ids"].append(ids)
            result["text"].append(t.decode(ids, skip_special_tokens=True).encode().hex())
            result["all"].append(t.decode(ids, skip_special_tokens=False).encode().hex())
            t.encode_special_tokens = True
            result["plain"].append(t.encode(s, add_special_tokens=False).ids)
        # most texts come out alike: keep what differs
        result["plain"] = {i: p for i, p in enumerate(result["plain"]) if p != result["ids"][i]}
        result["all"] = {i: a for i, a in enumerate(result["all"]) if a != result["text"][i]}
        result["text"] = {i: a for i, a in enumerate(result["text"]) if a != texts[i].hex()}
        golden["variants"][name] = result
    decoded = [raw.decode("utf-8", errors="replace") for raw in texts]
    golden["gguf"] = {name: dict(zip(("ids", "plain"), ids)) for name, ids in gguf_variants(decoded)}
    (OUT / "golden.json").write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    print(sum(p.stat().st_size for p in OUT.iterdir()), "bytes in", OUT)


main()
