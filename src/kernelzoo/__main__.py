"""The `kernelzoo` command, also `python -m kernelzoo`."""

from __future__ import annotations

import sys


def main() -> int | None:
    """Run the command line; `env` works with the core dependencies alone, the rest needs an extra."""
    try:
        import typer  # noqa: F401
    except ImportError:
        if sys.argv[1:2] == ["env"]:
            from kernelzoo import env

            print(env.report(ceilings="--ceilings" in sys.argv[2:]))
            return 0
        print("kernelzoo: this command needs the extra: pip install 'kernelzoo[train]'", file=sys.stderr)
        return 2
    from kernelzoo.cli import app

    return app(prog_name="kernelzoo")


if __name__ == "__main__":
    sys.exit(main())
