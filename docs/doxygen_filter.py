#!/usr/bin/env python3
"""Turns the plain comments of a header into ones that doxygen reads. SPDX-License-Identifier: Apache-2.0

Usage: doxygen_filter.py FILE, result on standard output. Rules, as the headers are written:
the first comment and comments before a blank line speak of the file; a comment behind code speaks of that line; any other
speaks of what follows, and of the functions and constants after it up to the next comment or blank line. Members without a
comment are those that the comment of their struct or enum explains; functions, types and macros must have one."""
import re
import sys

TOKEN = re.compile(r"/\*.*?\*/", re.S)


def escape(body):
    """Text without markup; doxygen has a command character, tags and links of its own."""
    return re.sub(r"([\\@<>#&%$])", r"\\\1", body)


def block(comment, opening):
    return opening + escape(comment[2:-2]) + "*/"


def convert(text):
    out, end, first = [], 0, True
    for m in TOKEN.finditer(text):
        out.append(text[end : m.start()])
        end = m.end()
        line_before = text[text.rfind("\n", 0, m.start()) + 1 : m.start()]
        rest = text[m.end() :]
        comment = m.group()
        if first:
            out.append(block(comment, "/** @file\n@brief"))
            first = False
        elif line_before.lstrip().startswith("#"):
            out.append(comment)
        elif line_before.strip():
            out.append(block(comment, "/**<"))
        elif comment.startswith("/* ----") or re.match(r"/\* \d+\.\.\d+ ", comment):
            out.append(comment)
        elif re.match(r"[ \t]*\n[ \t]*\n", rest):
            out.append(block(comment, "/** @file\n@details"))
        else:
            out.append(block(comment, "/**"))
    out.append(text[end:])
    return "".join(out)


def members(text):
    """Points from members without a comment to the comment of their struct or enum."""
    result, inside, covered, open_comment = [], False, False, False
    for line in text.split("\n"):
        s = line.strip()
        if re.match(r"(typedef )?(struct|enum)\b[^;]*\{$", s):
            inside = True
        elif inside and s.startswith("}"):
            inside = False
        elif inside and (open_comment or s.startswith("/*")):
            covered = covered or s.startswith("/**")
            open_comment = "*/" not in s
        elif inside and s:
            ends = "/**<" in s or s.endswith((";", ",")) or s.count("(") == s.count(")")
            covered = covered or "/**<" in s
            open_comment = "/*" in s and "*/" not in s
            if ends and not covered:
                line += " /**< See the description above. */"
            if ends:
                covered = False
        result.append(line)
    return "\n".join(result)


def share(text):
    """Gives the comment before a run of one-line declarations to each of the run."""
    result, last, inside = [], "", False
    for line in text.split("\n"):
        s = line.strip()
        starts_declaration = re.match(r"DQ_API |#define DQ_[A-Z_]+ ", s) and not inside
        if s.startswith("/**") and not s.startswith("/**<"):
            last, open_comment = s, not s.endswith("*/")
            fresh = True
            inside = open_comment
        elif inside and (s.endswith("*/") or s.endswith(";")):
            if s.endswith("*/"):
                last += " " + s
            inside = False
        elif inside:
            last += " " + s
        elif s == "":
            last = ""
        elif starts_declaration:
            if last and not fresh:
                line = re.sub(r" \* ", " ", last) + " " + line
            fresh = False
            # A declaration over several lines: what follows up to ';' is no new one and has no comment of its own.
        result.append(line)
    return "\n".join(result)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as f:
        sys.stdout.write(members(share(convert(f.read()))))
