"""Puts libdartquant.so into the package and names the wheel after the platform instead of a Python version.

The library comes from DARTQUANT_BUILD (a built one, as `make wheel` gives it), or is compiled from `native/`, the C sources
that the source distribution carries. SPDX-License-Identifier: Apache-2.0
"""
import os
import pathlib
import shutil
import subprocess

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

HERE = pathlib.Path(__file__).resolve().parent
NAME = "libdartquant.so.1"


class WithLibrary(build_py):
    """Copies or compiles the library."""

    def run(self):
        super().run()
        if self.editable_mode:  # found in the source tree's build folder
            return
        target = pathlib.Path(self.build_lib, "dartquant", NAME)
        shutil.copyfile(self._library(), target)
        strip = shutil.which("strip")
        if strip:
            subprocess.run([strip, "--strip-unneeded", str(target)], check=True)

    @staticmethod
    def _library():
        given = os.environ.get("DARTQUANT_BUILD")
        if given:
            return pathlib.Path(given, NAME).resolve(strict=True)
        if not (HERE / "native" / "Makefile").exists():
            raise SystemExit("no library: run `make wheel` in the source tree, or set DARTQUANT_BUILD to its build folder")
        subprocess.run(["make", "-C", str(HERE / "native"), "-j%d" % (os.cpu_count() or 1), "BUILD=build", "shared"],
                       check=True)
        return HERE / "native" / "build" / NAME


class PlatformWheel(bdist_wheel):
    """One wheel for every Python 3, for this platform."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    """Says that the wheel is not pure."""

    def has_ext_modules(self):
        return True


setup(cmdclass={"build_py": WithLibrary, "bdist_wheel": PlatformWheel}, distclass=BinaryDistribution)
