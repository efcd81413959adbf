#!/usr/bin/env python3
"""The interface table against the C headers, the linker's list and a C compiler. Standard library only; prints
"ok NAME" / "not ok NAME". SPDX-License-Identifier: Apache-2.0
"""
import ctypes
import importlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
import types

import headers

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "dartquant"


def part(name):
    """A module of the package, without running its __init__ (which needs NumPy)."""
    if "dartquant" not in sys.modules:
        package = types.ModuleType("dartquant")
        package.__path__ = [str(PACKAGE)]
        sys.modules["dartquant"] = package
    return importlib.import_module("dartquant." + name)


def kind(text, c):
    names = {k: getattr(c, k) for k in dir(c) if k.isupper() or k in ("I8", "I16")}
    names.update(STRUCT=lambda n: c.STRUCTS[n][0], FN=lambda n: c.CALLBACKS[n])
    names["None"] = None
    names.update({n: n for n in list(c.STRUCTS) + list(c.CALLBACKS)})
    return eval(text, {"__builtins__": {}}, names)


def test_symbols():
    """The table binds every exported function and no other."""
    table, exported = set(part("_ffi").TABLE), headers.exported()
    assert len(exported) > 90
    assert table == exported, "table and version script differ: %s" % sorted(table ^ exported)
    assert table == set(headers.functions()), sorted(table ^ set(headers.functions()))


def test_signatures():
    """Each result and argument has the type that its header declares."""
    c, table = part("_ctypes"), part("_ffi").TABLE
    bad = []
    for name, (header, result, arguments) in headers.functions().items():
        wanted = (kind(result, c), [kind(a, c) for a in arguments])
        if (table[name][0], list(table[name][1])) != wanted:
            bad.append("%s: %s has %s(%s)" % (name, header, result, ", ".join(arguments)))
    assert not bad, "\n".join(bad)


def test_callbacks():
    """Every callback typedef and every open struct is bound."""
    c = part("_ctypes")
    assert set(c.CALLBACKS) == headers.callbacks()
    assert set(c.STRUCTS) == set(headers.structs())


def test_structs():
    """Sizes and offsets are those a C compiler gives."""
    c = part("_ctypes")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        print("note: no C compiler, offsets not compared")
        return
    lines, wanted = [], []
    for name, (struct, size) in c.STRUCTS.items():
        assert ctypes.sizeof(struct) == size, name
        lines.append('printf("%%s %%zu\\n", "%s", sizeof(%s));' % (name, name))
        wanted.append("%s %d" % (name, size))
        for field, _ in struct._fields_:
            lines.append('printf("%%s %%zu\\n", "%s.%s", offsetof(%s, %s));' % (name, field, name, field))
            wanted.append("%s.%s %d" % (name, field, getattr(struct, field).offset))
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "layout.c")
        source.write_text("#include <dartquant.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {%s return 0;}\n"
                          % "\n".join(lines))
        subprocess.run([compiler, "-I", str(headers.INCLUDE.parent), str(source), "-o", folder + "/layout"], check=True)
        found = subprocess.run([folder + "/layout"], check=True, capture_output=True, text=True).stdout.split("\n")
    assert found[:-1] == wanted, [x for x in zip(found, wanted) if x[0] != x[1]]


def test_constants():
    """Status codes, interface versions and the package's version are the header's."""
    numbers, errors, ffi = headers.constants(), part("errors"), part("_ffi")
    statuses = {v for k, v in numbers.items() if k.startswith("DQ_E_")}
    assert statuses == set(errors.CLASSES)
    for name, value in numbers.items():
        if name.startswith("DQ_E_"):
            assert ffi.lib.dq_status_name(value).decode() == name
    assert numbers["DQ_ABI_VERSION"] == ffi.ABI_VERSION == ffi.lib.dq_abi_version()
    version = tuple(numbers["DQ_VERSION_" + k] for k in ("MAJOR", "MINOR", "PATCH"))
    assert part("_version").__version__ == "%d.%d.%d" % version == ffi.lib.dq_version_string().decode()
    text = (PACKAGE / "tensors.py").read_text()
    order = [k[3:] for k, v in sorted(numbers.items(), key=lambda x: x[1]) if k[3:] in
             ("F32", "F64", "F16", "BF16", "U8", "I8", "I16", "I32", "I64", "U16", "U32", "U64", "BOOL", "F8_E4M3",
              "F8_E5M2", "BLOCK")]
    found = eval(text[text.index("DTYPES = ") + 9:text.index(")", text.index("DTYPES = ")) + 1])
    assert list(found[:16]) == order and numbers["DQ_DTYPE_OTHER"] == 16


def test_wrong_struct_size():
    """The library refuses a struct of a size it does not know."""
    ffi, c = part("_ffi"), part("_ctypes")
    row = c.OptionInfo(struct_size=3)
    assert ffi.lib.dq_option_get(0, ctypes.byref(row)) == -1


if __name__ == "__main__":
    status = 0
    for name, function in sorted(globals().copy().items()):
        if name.startswith("test_"):
            try:
                function()
                print("ok python_parity_" + name[5:])
            except Exception as error:
                print("not ok python_parity_%s: %s: %s" % (name[5:], type(error).__name__, error))
                status = 1
    sys.exit(status)
