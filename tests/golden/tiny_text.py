#!/usr/bin/env python3
"""Generates simple English stories from a small grammar: the text that the tiny model of tests/data/tiny is trained on.

Standard library only, so that the demo can make calibration and evaluation text anywhere.
usage: tiny_text.py SEED BYTES > FILE
SPDX-License-Identifier: Apache-2.0
"""
import random
import sys

NAMES = ["Mira", "Tom", "Ada", "Ben", "Lina", "Otto", "Ruth", "Hugo", "Nora", "Emil"]
ANIMALS = ["fox", "owl", "bear", "hen", "goat", "hare", "crow", "mole", "duck", "wolf"]
PLACES = ["the river", "the old mill", "the forest", "the market", "the hill", "the lake", "the barn", "the bridge"]
THINGS = ["a red kite", "a brass key", "a round stone", "a blue cup", "a long rope", "a warm coat", "a small drum",
          "a loaf of bread", "a broken clock", "a yellow lamp"]
ADJECTIVES = ["quiet", "bright", "heavy", "strange", "pretty", "simple", "dusty", "soft"]
FEELINGS = ["happy", "tired", "proud", "afraid", "curious", "sad", "hungry", "glad"]
WEATHER = ["It was raining", "The sun was warm", "A cold wind blew", "Snow fell all night", "The sky was clear"]
MOTIONS = ["walked", "ran", "went", "hurried", "climbed"]


def sentence(r, hero, friend, thing, place):
    noun = thing.split(" ", 1)[1]
    return r.choice([
        f"{r.choice(WEATHER)}, and {hero} {r.choice(MOTIONS)} to {place}.",
        f"{hero} found {thing} near {place}.",
        f"\"Is this {noun} yours?\" asked the {friend}.",
        f"\"No,\" said {hero}, \"but I would like to keep the {noun}.\"",
        f"The {friend} was {r.choice(FEELINGS)} because the {noun} looked so {r.choice(ADJECTIVES)}.",
        f"So {hero} and the {friend} {r.choice(MOTIONS)} back to {place} together.",
        f"They put the {noun} under a {r.choice(ADJECTIVES)} tree and waited until it was {r.choice(['noon', 'dark', 'morning', 'evening'])}.",
        f"{hero} counted to {r.choice(['three', 'five', 'ten', 'twenty'])} and opened the {r.choice(['door', 'box', 'gate'])}.",
        f"Nobody knew that the {friend} had seen {thing} before.",
        f"\"Please help me,\" said the {friend}. \"I am {r.choice(FEELINGS)} and I cannot find {place}.\"",
    ])


def story(r):
    hero, friend = r.choice(NAMES), r.choice(ANIMALS)
    thing, place = r.choice(THINGS), r.choice(PLACES)
    noun = thing.split(" ", 1)[1]
    lines = [f"Once there was a {r.choice(ADJECTIVES)} {friend} who lived near {place}."]
    lines += [sentence(r, hero, friend, thing, place) for _ in range(r.randint(4, 9))]
    lines.append(r.choice([
        f"In the end {hero} gave the {noun} to the {friend}, and both were {r.choice(FEELINGS)}.",
        f"That night the {friend} slept well, and {hero} was {r.choice(FEELINGS)}.",
        f"From that day on {hero} and the {friend} were friends.",
    ]))
    return " ".join(lines)


def text(seed, size):
    r = random.Random(seed)
    parts, total = [], 0
    while total < size:
        parts.append(story(r))
        total += len(parts[-1]) + 1
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.stdout.write(text(int(sys.argv[1]), int(sys.argv[2])))
