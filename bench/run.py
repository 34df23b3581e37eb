"""Run the bench: one JSON, one table, two pictures.

python bench/run.py [--ops linear,activation] [--backend numba] [--out FOLDER] [--limit SECONDS] [-k WORDS]
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="bench", description="Our kernels beside their peers.")
    parser.add_argument("--ops", default="", help="only these, separated by commas: OPS of bench/conftest.py")
    parser.add_argument("--backend", default="", help="the backend ours runs on (auto unless given)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="folder for the results")
    parser.add_argument("--limit", type=float, help="seconds after which no further row is begun")
    parser.add_argument("-k", default="", help="only rows whose name holds this (pytest's -k)")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    result = given.out.resolve() / "bench.json"
    result.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        "bench/pytest.ini",
        "bench",
        f"--benchmark-json={result}",
    ]
    command += [f"--ops={given.ops}"] if given.ops else []
    command += [f"--limit={given.limit}"] if given.limit else []
    command += ["-k", given.k] if given.k else []
    environment = {"KINETO_LOG_LEVEL": "9", **os.environ}  # the profiler that weighs memory is talkative
    if given.backend:
        environment["KERNELZOO_BACKEND"] = given.backend
    code = subprocess.call(command, cwd=ROOT, env=environment)
    if not result.is_file() or not result.stat().st_size:
        print("bench: no row was timed", file=sys.stderr)
        return code or 1
    return subprocess.call([sys.executable, str(ROOT / "bench" / "report.py"), str(result)]) or code


if __name__ == "__main__":
    sys.exit(main())
