"""The tiny model, texts, and the program to compare with. SPDX-License-Identifier: Apache-2.0"""
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
BUILD = pathlib.Path(os.environ.get("DARTQUANT_TEST_BUILD", ROOT / "build"))
TINY = ROOT / "tests" / "data" / "tiny"
sys.path.insert(0, str(ROOT / "tests" / "golden"))


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """(calibration file, evaluation file)"""
    from tiny_text import text

    folder = tmp_path_factory.mktemp("texts")
    (folder / "cal.txt").write_text(text(2, 30000))
    (folder / "eval.txt").write_text(text(3, 12000))
    return folder / "cal.txt", folder / "eval.txt"


@pytest.fixture(scope="session")
def model():
    import dartquant

    return dartquant.Model.open(TINY)


@pytest.fixture(scope="session")
def small(model, texts):
    """Quantized and rotated."""
    return model.quantize(preset="w4a4kv4", cal_file=texts[0], nsamples=8, seqlen=64)


@pytest.fixture(scope="session")
def dartquant_program():
    """Runs the C program; returns its JSON."""
    program = BUILD / "bin" / "dartquant"
    if not program.exists():
        pytest.skip("the dartquant program is not built")

    def run(*words):
        done = subprocess.run([str(program), *map(str, words), "--json"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
