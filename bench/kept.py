"""The same step where memory costs nothing: a child process whose allocator keeps what was freed.

A CPU speed-up that vanishes here was only an allocation. tcmalloc serves where it is installed, otherwise
glibc is told to keep the heap and to ask for huge pages (page faults of a 4096x4096 GELU, forward and
backward: 32,770 a step before, 0 after). The child answers one JSON line a case.
"""

import ctypes.util
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GLIBC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
SECONDS_A_ROW = 1.5


def environment():
    """(how memory is kept, the variables that do it), or (why it cannot be, None)."""
    if not sys.platform.startswith("linux"):
        return "not here: only on Linux", None
    for name in ("tcmalloc_minimal", "tcmalloc"):
        if library := ctypes.util.find_library(name):
            return f"{library} preloaded", {"LD_PRELOAD": library}
    return "glibc keeps its heap, in huge pages", GLIBC


class Child:
    """One process for the session, asked for a case at a time while nothing else runs."""

    def __init__(self):
        self.how, variables = environment()
        self.process = None
        if variables:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.kept"],
                cwd=ROOT,
                env={**os.environ, **variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    def measure(self, module, case_id):
        """{"ours": spread, "eager": spread}, or {"failed": why}."""
        if self.process is None:
            return {}
        try:
            self.process.stdin.write(json.dumps([module, case_id]) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        return json.loads(answer) if answer else {"failed": "the child process ended"}

    def close(self):
        if self.process:
            self.process.stdin.close()
            self.process.wait(timeout=30)


def _measure(module, case_id):
    from bench.core import Rounds, spread, timer_of

    case = next(c for c in importlib.import_module(module).CASES if c.id == case_id)
    problem = case.build()
    rounds = Rounds({name: timer_of(case, problem.steps[name]) for name in ("ours", "eager")})
    for _ in range(rounds.how_many(SECONDS_A_ROW)):
        rounds.turn()
    return {name: spread(seconds) for name, seconds in rounds.seconds.items()}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not be taken for an answer
    for line in sys.stdin:
        try:
            answer = _measure(*json.loads(line))
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
