"""`python -m dartquant`: pictures of results, and lm-evaluation-harness. SPDX-License-Identifier: Apache-2.0"""
from __future__ import annotations

import argparse
import json
import sys
from typing import Optional, Sequence

from . import __version__, library_path, library_version


def _plot(arguments: argparse.Namespace) -> int:
    from . import plot

    reports = []
    for name in arguments.files:
        with open(name, encoding="utf-8") as file:
            try:
                value = json.load(file)
            except ValueError as error:
                raise ValueError("%s is no JSON: %s" % (name, error)) from None
        reports.extend(value if isinstance(value, list) else [value])
    try:
        panels = plot.draw(reports, arguments.output)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not what `dartquant ... --json` prints: %r" % error) from None
    for panel in panels:
        print("%s: %s" % (arguments.output, panel))
    return 0


def main(words: Optional[Sequence[str]] = None) -> int:
    """Runs a subcommand."""
    words = list(sys.argv[1:] if words is None else words)
    if words[:1] == ["lm_eval"]:
        try:
            from lm_eval.__main__ import cli_evaluate
        except ImportError as error:
            print("dartquant: lm-evaluation-harness is missing (%s): pip install dartquant[lm_eval]" % error, file=sys.stderr)
            return 1
        from . import lm_eval  # noqa: F401  registers the model

        sys.argv = ["lm_eval"] + words[1:]
        cli_evaluate()
        return 0
    parser = argparse.ArgumentParser(prog="python -m dartquant", description=__doc__)
    parser.add_argument("--version", action="version",
                        version="dartquant %s (%s, %s)" % (__version__, library_version, library_path))
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("plot", help="draw the JSON of `dartquant ppl`, `quantize`, `calibrate` and `compare`")
    draw.add_argument("files", nargs="+", metavar="FILE.json")
    draw.add_argument("-o", "--output", default="dartquant.png", help="image file (default dartquant.png)")
    draw.set_defaults(run=_plot)
    commands.add_parser("lm_eval", help="run lm-evaluation-harness with the model `dartquant` registered")
    arguments = parser.parse_args(words)
    try:
        return arguments.run(arguments)
    except (OSError, ValueError, ImportError) as error:
        print("dartquant: %s" % error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
