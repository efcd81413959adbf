"""The package as a whole: what it promises to people and type checkers. SPDX-License-Identifier: Apache-2.0"""
import ast
import importlib
import inspect
import pathlib
import subprocess
import sys

import pytest

import dartquant

FOLDER = pathlib.Path(dartquant.__file__).parent
MODULES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "__main__"))


def public(module):
    """(qualified name, function) of everything public that a module defines, properties by their getters."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            yield name, value
            for part, member in vars(value).items():
                member = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
                if inspect.isfunction(member) and (part == "__init__" or not part.startswith("_")):
                    yield "%s.%s" % (name, part), member


@pytest.mark.parametrize("module", MODULES)
def test_hints_and_docstrings(module):
    """Every argument and result has a type, everything public a docstring (a constructor has its class's)."""
    missing = []
    for name, value in public(importlib.import_module("dartquant." + module)):
        if not module.startswith("_") and not inspect.getdoc(value) and not name.endswith("__init__"):
            missing.append(name + ": docstring")
        if inspect.isfunction(value):
            names = list(inspect.signature(value).parameters)
            typed = set(value.__annotations__) | {"self", "cls"}
            missing += ["%s: type of %s" % (name, n) for n in [*names, "return"] if n not in typed]
    assert not missing, missing


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.stem)
def test_grammar_of_python_3_9(path):
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    future = any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in tree.body)
    # `X | Y` as a type is text until Python 3.10 unless annotations are not evaluated
    for node in ast.walk(tree):
        for hint in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(hint, ast.AST) and not future:
                assert not any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.BitOr) for n in ast.walk(hint))


def test_what_is_offered():
    assert (FOLDER / "py.typed").exists()
    assert sorted(dartquant.__all__) == sorted(set(dartquant.__all__))
    assert all(hasattr(dartquant, name) for name in dartquant.__all__)
    classes = {v.__name__ for v in vars(dartquant.errors).values()
               if inspect.isclass(v) and issubclass(v, dartquant.DartQuantError)}
    assert classes <= set(dartquant.__all__)


def test_hard_dependencies():
    """NumPy and the standard library alone: everything else is imported where it is used."""
    code = ("import sys, importlib.abc\n"
            "class Only(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.partition('.')[0] in %r: raise ImportError(name)\n"
            "sys.meta_path.insert(0, Only())\n"
            "import %s" % (["tqdm", "matplotlib", "torch", "transformers", "datasets", "lm_eval", "scipy", "pytest"],
                           ", ".join("dartquant." + m for m in MODULES)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
