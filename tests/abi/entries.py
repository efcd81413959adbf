#!/usr/bin/env python3
"""What every public function has: the version it came with, and a first line that guards its context. Prints what is wrong.
SPDX-License-Identifier: Apache-2.0

Usage: entries.py INCLUDE MAP SOURCES, folders and file of one tree:
- The head comment of each header says "Since X.Y."; a function that came later says so in its own comment. Both agree with
  the version node (DARTQUANT_X.Y) that exports the function.
- A function that returns a status begins with DQ_ENTER, and with DQ_ENTER_CONTEXT when it takes an object of a context; one
  that frees such an object does so through dq_context_discard (docs/threading.md)."""
import pathlib
import re
import sys

# Objects that belong to no context.
FREE_STANDING = {"dq_config", "dq_cancel"}
# Entries outside api/, which take no context.
ELSEWHERE = {"dq_cancel_new", "dq_error_last"}


def nodes(text):
    """function -> version of its node"""
    found = {}
    for version, body in re.findall(r"DARTQUANT_([\d.]+)\s*\{(.*?)\}", re.sub(r"/\*.*?\*/", " ", text, flags=re.S), re.S):
        found.update({name: version for name in re.findall(r"\b(dq_\w+);", body)})
    return found


def declarations(text):
    """(function, result, parameters, comment before it)"""
    pattern = r"(/\*(?:[^*]|\*(?!/))*\*/)?\s*DQ_API\s+([^;()]*?)\b(dq_\w+)\(([^;]*)\);"
    comment = ""
    for m in re.finditer(pattern, text):
        comment = m[1] or comment  # functions that follow each other share one comment
        yield m[3], m[2].strip(), m[4], comment


def context_objects(parameters, opaque):
    return [t for t, stars in re.findall(r"\b(dq_\w+)\s*(\*+)", parameters) if t in opaque and stars == "*"]


def main(include, map_file, sources):
    problems = []
    versions = nodes(pathlib.Path(map_file).read_text())
    headers = sorted(pathlib.Path(include, "dartquant").glob("*.h"))
    every = "\n".join(h.read_text() for h in headers)
    opaque = set(re.findall(r"typedef struct (dq_\w+) \1;", every)) - FREE_STANDING
    source = "\n".join(p.read_text() for p in sorted(pathlib.Path(sources).glob("*.c")))
    count = guarded = 0
    for header in headers:
        text = header.read_text()
        head = re.search(r"Since (\d+\.\d+)\.", text[:text.index("*/")])
        if not head:
            problems.append("%s: its head comment does not say \"Since X.Y.\"" % header.name)
            continue
        for name, result, parameters, comment in declarations(text):
            count += 1
            own = re.search(r"Since (\d+\.\d+)", comment)
            said = (own or head)[1]
            if versions.get(name) != said:
                problems.append("%s: %s says it came with %s, its version node is %s"
                                % (header.name, name, said, versions.get(name)))
            objects = context_objects(parameters, opaque)
            frees = name.endswith("_free") and objects and objects != ["dq_context"]
            if name in ELSEWHERE or not (frees or result == "dq_status"):
                continue
            body = re.search(r"^[\w \*]*\b%s\((?:[^;{]*)\)\s*\{(.*?)\}\n" % name, source, re.S | re.M)
            if not body:
                problems.append("%s: no definition found" % name)
            elif result == "dq_status":
                macro = "DQ_ENTER_CONTEXT(" if objects else "DQ_ENTER("
                guarded += bool(objects)
                if macro not in body[1]:
                    problems.append("%s does not begin with %s...)" % (name, macro))
            elif "dq_context_discard(" not in body[1]:
                problems.append("%s does not go through dq_context_discard" % name)
    if count < 90 or guarded < 60:
        problems.append("only %d functions found, %d of them with objects of a context" % (count, guarded))
    for p in problems:
        print(p)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
