"""The GPU gate, for a machine whose own Python holds everything and that has no network.

python bench/gpu.py test|bench [--out FOLDER] [--ops linear,activation] [--minutes 8]

Builds the package into build/gpu-site (no download, nothing installed elsewhere), then runs the test suite or
the bench from there; ends within the minutes and writes one JSON and one table. As a pytest plugin
(`-p bench.gpu`) it orders the tests, those that need the device first, and keeps the time.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "gpu-site"
CLOSING = 25  # seconds kept back to end what is running and to write

# ---- the plugin


def pytest_addoption(parser):
    parser.addoption("--until", type=float, default=float("inf"), help="time after which no test begins")
    parser.addoption("--record", default="", help="the JSON to write")


OUTCOMES = []  # (test, outcome, seconds, why)


def pytest_collection_modifyitems(items):
    items.sort(key=_order)


def _order(item):
    """The device's kernels, then what runs anywhere, then other backends, then ahead-of-time compiles."""
    if "aot" in item.path.parts:
        return 3
    names = set(item.name.partition("[")[2].rstrip("]").split("-"))
    if names & {"triton", "cuda"}:
        return 0
    return 2 if names & {"cpp", "numba"} else 1


def pytest_runtest_setup(item):
    if time.time() > item.config.getoption("until"):
        import pytest

        pytest.skip("not run: time was up")


def pytest_runtest_logreport(report):
    if report.when == "call" or not report.passed:
        why = ""
        if report.skipped:
            why = str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)
        elif report.failed:
            why = str(report.longrepr)[-2000:]
        outcome = "not run" if "not run: time was up" in why else report.outcome
        OUTCOMES.append((report.nodeid, outcome, report.duration, why))


def pytest_sessionfinish(session):
    path = session.config.getoption("record")
    if path and not hasattr(session.config, "workerinput"):
        Path(path).write_text(json.dumps(_summary(OUTCOMES), indent=1) + "\n")


def _summary(outcomes):
    files = {}
    for nodeid, outcome, duration, _ in outcomes:
        entry = files.setdefault(nodeid.partition("::")[0], Counter())
        entry[outcome] += 1
        entry["seconds"] += duration
    reasons = Counter(
        why.removeprefix("Skipped: ") for _, outcome, _, why in outcomes if outcome == "skipped"
    )
    return {
        "counts": Counter(outcome for _, outcome, _, _ in outcomes),
        "files": {name: {k: round(v, 1) for k, v in entry.items()} for name, entry in files.items()},
        "failures": [
            {"test": test, "says": why} for test, outcome, _, why in outcomes if outcome == "failed"
        ],
        "skipped because": dict(reasons.most_common()),
        "slowest": [
            {"test": test, "seconds": round(duration, 1)}
            for test, _, duration, _ in sorted(outcomes, key=lambda o: -o[2])[:20]
        ],
    }


# ---- the command


def build():
    """The package as it would be installed, in a folder of its own; (seconds, what of it was built)."""
    start = time.time()
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # setuptools would pack what was deleted since
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(SITE), str(ROOT)]
    subprocess.run(command, check=True)
    return round(time.time() - start, 1), json.loads((SITE / "kernelzoo" / "_native.json").read_text())


def limited(command, environment, until):
    """Run; interrupt it after `until`, and kill it if that does not end it."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    for signal_to_send in (signal.SIGINT, signal.SIGKILL):
        try:
            return process.wait(timeout=max(1.0, until - time.time()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal_to_send)
            until = time.time() + CLOSING / 2
    return process.wait()


def has(module):
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True).returncode == 0


def tests(out, environment, until):
    result = out / "tests.json"
    result.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "not slow",
        "-p",
        "bench.gpu",
        "--color=no",
        "tests",
    ]
    command += [f"--until={until - CLOSING}", f"--record={result}", "--tb=short"]
    if has("xdist"):
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    if has("pytest_timeout"):
        command += ["--timeout=180"]
    code = limited(command, environment, until)
    data = json.loads(result.read_text()) if result.is_file() else {"failed": f"pytest ended with {code}"}
    return code, result, data


def tests_table(data):
    from kernelzoo.verify import table

    if "failed" in data:
        return data["failed"]
    outcomes = ("passed", "failed", "skipped", "not run", "seconds")
    rows = [(name, *(entry.get(o, 0) for o in outcomes)) for name, entry in sorted(data["files"].items())]
    rows.append(
        ("all", *(data["counts"].get(o, 0) for o in outcomes[:-1]), round(sum(row[-1] for row in rows), 1))
    )
    lines = [table(("file", *outcomes), rows), ""]
    lines += [f"skipped ({n}): {why}" for why, n in data["skipped because"].items()]
    lines += [f"FAILED {entry['test']}" for entry in data["failures"]]
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="bench/gpu.py")
    parser.add_argument("what", choices=("test", "bench"))
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--ops", default="")
    parser.add_argument("--minutes", type=float, default=7.8)
    given = parser.parse_args(arguments)
    until = time.time() + 60 * given.minutes
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    seconds, native = build()
    print(f"built in {seconds} s: {native}", flush=True)
    path = os.pathsep.join(filter(None, (str(SITE), str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    if given.what == "bench":
        environment.setdefault(
            "KERNELZOO_BACKEND", "triton"
        )  # "auto" takes torch's call until this has been seen
        left = until - time.time() - CLOSING
        command = [sys.executable, "bench/run.py", f"--out={out}", f"--limit={left - 60}"]
        return limited(command + ([f"--ops={given.ops}"] if given.ops else []), environment, until)
    code, result, data = tests(out, environment, until)
    sys.path[:0] = [str(SITE), str(ROOT)]
    from bench import machine

    data |= {"build seconds": seconds, "exit code": code, "environment": machine.describe(machine.clocks())}
    result.write_text(json.dumps(data, indent=1) + "\n")
    shown = tests_table(data)
    (out / "tests.txt").write_text(shown + "\n")
    print(shown, "", result, out / "tests.txt", sep="\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
