#!/usr/bin/env python3
"""Files that a rotation or captured inputs could be mistaken for, made without PyTorch: hostile pickles, archives of other
things, matrices that are no rotations. usage: bad_files.py DIR N LAYERS. SPDX-License-Identifier: Apache-2.0"""
import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile

# The names that a real archive calls, as stand-ins that only pickle looks at.
torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
for name in ("FloatStorage", "LongStorage"):
    setattr(torch, name, type(name, (), {"__module__": "torch"}))


def _rebuild_tensor_v2(*args):
    raise AssertionError("only written")


_rebuild_tensor_v2.__module__ = "torch._utils"
_rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
utils._rebuild_tensor_v2 = _rebuild_tensor_v2
sys.modules.update({"torch": torch, "torch._utils": utils})


class Tensor:
    """Values of one tensor; `kind` is the storage's class, `code` how struct packs an element."""

    def __init__(self, values, shape, kind="FloatStorage", code="f"):
        self.data = struct.pack(f"<{len(values)}{code}", *values)
        self.count, self.shape, self.kind = len(values), shape, kind

    def __reduce__(self):
        strides = [1] * len(self.shape)
        for i in range(len(strides) - 2, -1, -1):
            strides[i] = strides[i + 1] * self.shape[i + 1]
        return _rebuild_tensor_v2, (Storage(self), 0, tuple(self.shape), tuple(strides), False,
                                    collections.OrderedDict())


class Storage:
    def __init__(self, tensor):
        self.tensor = tensor


class Pickler(pickle.Pickler):
    def __init__(self, out):
        super().__init__(out, protocol=2)
        self.stored = []

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        self.stored.append(obj.tensor.data)
        return "storage", getattr(torch, obj.tensor.kind), str(len(self.stored) - 1), "cpu", obj.tensor.count


def archive(path, obj):
    out = io.BytesIO()
    p = Pickler(out)
    p.dump(obj)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as z:
        z.writestr("R/data.pkl", out.getvalue())
        z.writestr("R/version", "3\n")
        for i, data in enumerate(p.stored):
            z.writestr(f"R/data/{i}", data)


class Runs:
    """A pickle that would run a command in whoever loads it blindly."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def identity(n, change=()):
    values = [float(i // n == i % n) for i in range(n * n)]
    for place, value in change:
        values[place] = value
    return Tensor(values, (n, n))


def main():
    folder, n, layers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    at = lambda name: os.path.join(folder, name)
    touch = "touch " + at("owned")
    archive(at("good.pt"), {"R1": identity(n)})
    archive(at("system.pt"), Runs(os.system, touch))
    archive(at("beside.bin"), {"R1": identity(n), "extra": Runs(os.system, touch)})
    archive(at("eval.pt"), {"R1": Runs(eval, f"__import__('os').system({touch!r})")})
    with open(at("bare.pt"), "wb") as f:
        pickle.dump(Runs(os.system, touch), f, protocol=4)
    archive(at("weights.bin"), collections.OrderedDict([("model.norm.weight", Tensor([1.0] * n, (n,))),
                                                       ("lm_head.weight", Tensor([0.5] * n * n, (n, n)))]))
    archive(at("numbers.pt"), {"epoch": 3, "loss": 0.25, "names": ["a", "b"]})
    archive(at("integers.pt"), {"R1": Tensor([int(i // n == i % n) for i in range(n * n)], (n, n), "LongStorage", "q")})
    archive(at("small.pt"), {"R1": identity(n // 2)})
    archive(at("skew.pt"), {"R1": identity(n, [(1, 0.25)])})
    archive(at("nan.pt"), {"R1": identity(n, [(n + 1, float("nan"))])})
    archive(at("deep.pt"), {f"model.layers.{i}.self_attn.R2": identity(16) for i in range(layers + 1)})
    archive(at("shallow.pt"), {f"model.layers.{i}.self_attn.R2": identity(16) for i in range(layers - 1)})
    with open(at("text.pt"), "w", encoding="utf-8") as f:
        f.write("import os; os.system('true')\n")
    open(at("empty.bin"), "wb").close()
    os.makedirs(at("hostile/r1_train"))
    os.makedirs(at("hostile/r2_train"))
    archive(at("hostile/r1_train/sample_0_layer_0_self_attn_q_proj.pt"), Runs(os.system, touch))
    archive(at("hostile/r2_train/layer_0_self_attn_o_proj.pt"), Runs(os.system, touch))
    os.makedirs(at("none/r1_train"))
    archive(at("none/r1_train/sample_0_layer_0_self_attn_q_proj.pt"), Tensor([], (0, n)))


if __name__ == "__main__":
    main()
