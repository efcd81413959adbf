"""Reads the functions and structs that the public C headers declare. Standard library only.

`python headers.py --table` prints the rows for dartquant/_ffi.py.
SPDX-License-Identifier: Apache-2.0
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[3]
INCLUDE = ROOT / "include" / "dartquant"
SCALARS = {
    "dq_status": "I32", "dq_dtype": "I32", "int32_t": "I32", "int": "INT", "int64_t": "I64", "uint32_t": "U32",
    "uint64_t": "U64", "size_t": "SIZE", "double": "F64", "float": "F32", "uint8_t": "U8", "int8_t": "I8",
    "int16_t": "I16", "uint16_t": "U16",
}


def _text(path):
    return re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.S)


def _headers():
    return sorted(INCLUDE.glob("*.h"))


def callbacks():
    """Names of the function pointer typedefs."""
    return {n for h in _headers() for n in re.findall(r"typedef\s+\w+\s*\**\s*\(\*(dq_\w+)\)", _text(h))}


def structs():
    """Names of the structs whose members a program fills or reads: name -> file name. Those of backend.h, for people who
    write a backend in C, count as opaque here."""
    return {n: h.name for h in _headers() if h.name != "backend.h" for n in re.findall(r"typedef struct (dq_\w+)\s*\{", _text(h))}


def _kind(declaration, functions, open_structs):
    words = re.sub(r"\b(const|struct)\b", " ", declaration).strip()
    stars = words.count("*")
    base = words.replace("*", " ").split()[0]
    if base in functions:
        return "FN(%s)" % base
    if base == "void":
        return {0: "None", 1: "VOID", 2: "PTR(VOID)"}[stars]
    if base == "char":
        return {1: "STR", 2: "PTR(STR)"}[stars]
    if base in SCALARS:
        kind = SCALARS[base]
        for _ in range(stars):
            kind = "PTR(%s)" % kind
        return kind
    if base in open_structs:
        kind = "STRUCT(%s)" % base
        for _ in range(stars):
            kind = "PTR(%s)" % kind
        return kind
    if base.startswith("dq_") and stars:
        return {1: "HANDLE", 2: "PTR(HANDLE)"}[stars]
    raise ValueError("no rule for C type %r" % declaration)


def functions():
    """name -> (header, result kind, [argument kinds])."""
    found = {}
    fns, opens = callbacks(), structs()
    for header in _headers():
        for result, name, arguments in re.findall(r"DQ_API\s+([^;()]*?)\b(dq_\w+)\s*\(([^;]*?)\)\s*;", _text(header)):
            kinds = [] if arguments.strip() == "void" else [_kind(a, fns, opens) for a in arguments.split(",")]
            found[name] = (header.name, _kind(result, fns, opens), kinds)
    return found


def exported():
    """Names in the linker's version script."""
    text = re.sub(r"/\*.*?\*/", " ", (ROOT / "libdartquant" / "dartquant.map").read_text(), flags=re.S)
    return set(re.findall(r"^\s+(dq_\w+);", text, flags=re.M))


def constants():
    """name -> value of every enumerator and integer macro."""
    found = {}
    for header in _headers():
        if header.name == "backend.h":
            continue
        text = _text(header)
        for body in re.findall(r"enum\s*\w*\s*\{(.*?)\}", text, flags=re.S):
            for name, value in re.findall(r"(DQ_\w+)\s*=\s*(-?\w+)", body):
                found[name] = int(value, 0)
        for name, value in re.findall(r"#define\s+(DQ_\w+)\s+(\d+)u?\s", text):
            found[name] = int(value)
    return found


if __name__ == "__main__" and "--table" in sys.argv:
    last = None
    for name, (header, result, arguments) in sorted(functions().items(), key=lambda x: x[1][0]):
        if header != last:
            print("    # %s" % header)
            last = header
        row = '    "%s": (%s, [%s]),' % (name, result, ", ".join(arguments))
        print(re.sub(r"STRUCT\((\w+)\)", lambda m: "".join(p.title() for p in m[1][3:].split("_")),
                     re.sub(r"FN\((\w+)\)", lambda m: m[1][3:].upper(), row)))
