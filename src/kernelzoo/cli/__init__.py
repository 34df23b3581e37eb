"""The `kernelzoo` command, also `python -m kernelzoo`; the commands themselves are in `commands.py`."""

from __future__ import annotations

import importlib.util
import sys


def main() -> int | None:
    """Run the command line; without typer, `env` still works and the rest says what to install."""
    if importlib.util.find_spec("typer") is not None:
        from .commands import app

        return app(prog_name="kernelzoo")
    if sys.argv[1:2] == ["env"]:
        from kernelzoo import env

        print(env.report(ceilings="--ceilings" in sys.argv[2:]))
        return 0
    print("kernelzoo: this command needs typer: pip install kernelzoo[train]", file=sys.stderr)
    return 2
