"""What the suite and the benchmark of a card share: clocks and driver, JSON that is whole at any moment, codes of two models.
SPDX-License-Identifier: Apache-2.0
"""
import glob
import json
import os
import struct
import subprocess

FIELDS = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"


def our_env(extra=None):
    """For our own programs: with the libraries of a kit, which Python itself must not load."""
    env = dict(os.environ, **(extra or {}))
    mine = env.get("DQ_LIBRARY_PATH", "")
    if mine:
        env["LD_LIBRARY_PATH"] = mine + (":" + env["LD_LIBRARY_PATH"] if env.get("LD_LIBRARY_PATH") else "")
    return env


def backend_of_programs(backend, build):
    """What programs that hold the library call the backend: no plug-in is beside them, so a name becomes its file."""
    name, colon, options = backend.partition(":")
    path = os.path.abspath(os.path.join(build, "dartquant", "backends-1", "libdartquant-%s.so" % name))
    return path + colon + options if os.path.exists(path) else backend


def nvidia_smi():
    try:
        r = subprocess.run(["nvidia-smi", "--query-gpu=" + FIELDS, "--format=csv,noheader"], stdout=subprocess.PIPE,
                           stderr=subprocess.DEVNULL, text=True, timeout=20)
        return dict(zip(FIELDS.split(","), r.stdout.strip().split("\n")[0].split(", "))) if r.returncode == 0 else {}
    except (OSError, subprocess.TimeoutExpired):
        return {}


def write_json(path, what):
    """All or nothing."""
    with open(path + ".new", "w", encoding="utf-8") as f:
        json.dump(what, f, indent=1)
    os.replace(path + ".new", path)


def tail(text, lines):
    return "\n".join(line[:400] for line in text.strip().splitlines()[-lines:])


def integers(folder):
    """Name -> bytes of all integer tensors of a saved model."""
    found = {}
    for path in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        with open(path, "rb") as f:
            size = struct.unpack("<Q", f.read(8))[0]
            header = json.loads(f.read(size))
            for name, t in header.items():
                if name != "__metadata__" and t["dtype"] in ("U8", "I8", "I32", "U32"):
                    first, end = t["data_offsets"]
                    f.seek(8 + size + first)
                    found[name] = f.read(end - first)
    return found


def codes_that_differ(a, b):
    """Of two models with packed codes of 4 bits: how many differ, of how many."""
    left, right = integers(a), integers(b)
    if not left or left.keys() != right.keys():
        raise RuntimeError("%s and %s do not hold the same codes" % (a, b))
    differ = total = 0
    for name, x in left.items():
        y = right[name]
        total += 2 * len(x)
        if x != y:
            differ += sum((p ^ q) & 15 != 0 for p, q in zip(x, y)) + sum((p ^ q) >> 4 != 0 for p, q in zip(x, y))
    return differ, total
