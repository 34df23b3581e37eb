"""A case, its contenders, and how they are checked, timed and weighed.

Every contender's outputs and gradients are judged by kernelzoo.verify's rule before it is timed. Rounds are
interleaved: each runs every contender once, the order turning from round to round, so that what else the
machine does falls on all alike. Time on a GPU comes from device events with a cold L2.
"""

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

import kernelzoo as kz
from kernelzoo.verify import judge

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GPU = DEVICE.type == "cuda"
COPY, GEMM = "copy", "gemm"  # what bounds a row
BASELINES = ("eager", "compile")  # the targets' ratios are to the best of these

FLUSH_BYTES = 256 << 20  # several times the largest L2
HEAD_START = 4_000_000  # cycles, about 2 ms: the host has queued a whole step before the device begins it
MIN_ROUNDS, MAX_ROUNDS = 9, 200
LONG_ROUND, FEW_ROUNDS = 10.0, 3  # seconds; a peer without instructions for a dtype takes minutes a row
SECONDS_A_ROW = 1.0 if GPU else 3.0


class NotHere(Exception):
    """A contender cannot run here; the text is the reason."""


class Target(NamedTuple):
    """A figure the project has promised: `metric` (of `derive`) at least, or at most, `bound`."""

    metric: str
    bound: float
    at_least: bool = True

    def met(self, value):
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self):
        return f"{self.metric} {'≥' if self.at_least else '≤'} {self.bound:g}"


class Problem(NamedTuple):
    """steps: contender -> a function that does one step and returns its results, or the reason why it is not
    here. oracle: the results in fp64. floors: steps that do only a part of the work (a bare product): timed
    to compare with, not checked."""

    steps: dict[str, Callable | str]
    oracle: Callable
    floors: dict[str, Callable]


@dataclass(frozen=True)
class Case:
    """One row of the bench. `build()` gives its `Problem`, on DEVICE.

    bytes: the fewest the step must move (each input read once, each result written once); flops: what it must
    compute. results: the results' names. calls: how many calls one timing holds, by the host's clock, for
    what a call costs the host (0: time one step, on the device where there is one).
    """

    id: str
    op: str
    dtype: torch.dtype
    build: Callable[[], Problem]
    results: tuple[str, ...]
    bytes: float = 0
    flops: float = 0
    targets: tuple[Target, ...] = ()
    calls: int = 0
    kept: bool = True  # whether the child process with kept memory times it too
    backend: str | None = None  # ours runs on this one whatever the user chose

    @property
    def dtype_name(self):
        return str(self.dtype).removeprefix("torch.")


def op_case(id, op, dtype, make, ours, eager, results, *, peers=None, floors=None, backward=True, **more):
    """A Case of a function. make(generator) gives its tensors (fp64, on DEVICE), `ours` and `eager` take
    them; peers: contender -> function or reason; floors: name -> function of the tensors."""

    def build():
        generator = torch.Generator(DEVICE).manual_seed(1)
        tensors = [t.to(dtype).requires_grad_(backward) for t in make(generator)]
        with torch.no_grad():
            dy = [torch.empty_like(y) for y in results_of(eager(*tensors))]  # in the results' layouts
        seeded = torch.Generator(DEVICE).manual_seed(2)
        for one in dy:
            one.copy_(torch.randn(one.shape, generator=seeded, device=DEVICE))

        def step(function, tensors=tensors, dy=dy):
            if not backward:
                return lambda: results_of(function(*tensors))

            def run():
                y = results_of(function(*tensors))
                return *y, *torch.autograd.grad(y, tensors, dy)

            return run

        functions = {"ours": ours, "eager": eager, "compile": torch.compile(eager), **(peers or {})}
        steps = {name: f if isinstance(f, str) else step(f) for name, f in functions.items()}

        def oracle():
            exact = [t.detach().double().requires_grad_(backward) for t in tensors]
            return step(eager, exact, [one.double() for one in dy])()

        return Problem(steps, oracle, {name: step_of(f, tensors) for name, f in (floors or {}).items()})

    return Case(id, op, dtype, build, results if backward else results[:1], **more)


def results_of(y):
    return y if isinstance(y, tuple) else (y,)


def step_of(function, tensors):
    detached = [t.detach() for t in tensors]
    return lambda: (function(*detached),)


# ---- correctness


def first_run(name, step):
    """The results of a contender's first call; what is missing on this machine is told from what fails."""
    try:
        return step()
    except kz.BackendUnavailable as reason:
        raise NotHere(str(reason)) from None
    except Exception as error:
        if name == "compile" and any(word in str(error) for word in ("C++ compiler", "No such file", "g++")):
            text = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            raise NotHere(f"torch.compile needs a C++ compiler ({text})") from None
        raise


def check(case, found, theirs, oracle):
    """(what is wrong with a contender's results or None, their largest error), by the rule."""
    worst = 0.0
    for result, ours, their, exact in zip(case.results, found, theirs, oracle, strict=True):
        verdict = judge(ours, their, exact)
        if verdict.problem:
            return f"{result}: {verdict.problem}", verdict.error
        worst = max(worst, verdict.error)
    return None, worst


def contenders_of(case, problem):
    """{name: what the row says of it} after the check, and {name: step} of those that may be timed."""
    said, right = {}, {}
    theirs = problem.steps["eager"]()
    oracle = problem.oracle()
    for name, step in problem.steps.items():
        entry = said[name] = {"role": "ours" if name == "ours" else "peer"}
        if isinstance(step, str):
            entry["status"] = f"not here: {step}"
            continue
        try:
            found = theirs if name == "eager" else first_run(name, step)
            wrong, entry["error"] = check(case, found, theirs, oracle)
        except NotHere as reason:
            entry["status"] = f"not here: {reason}"
        except Exception as error:
            entry["status"] = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        else:
            entry["status"] = f"wrong: {wrong}" if wrong else "timed"
            entry["result_bytes"] = sum(t.nbytes for t in found)
            if not wrong:
                right[name] = step
    for name, step in problem.floors.items():
        said[name], right[name] = {"role": "floor", "status": "timed"}, step
    return said, right


# ---- time


def host_timer(step, calls=0):
    """Seconds of one step, results dropped inside; or of one call of many."""

    def seconds():
        if calls:
            start = time.perf_counter()
            for _ in range(calls):
                step()
            elapsed = time.perf_counter() - start
            if GPU:
                torch.cuda.synchronize()
            return elapsed / calls
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    return seconds


def device_timer(step):
    """Seconds of one step between two device events, after a flush of the L2."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=DEVICE)

    def seconds():
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(HEAD_START)
        flush.zero_()
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return seconds


def timer_of(case, step):
    return device_timer(step) if GPU and not case.calls else host_timer(step, case.calls)


class Rounds:
    """`turn()` runs one round: every timer once, in another order each time, so that each runs as often behind every
    other: what the one before leaves in the caches counts too."""

    def __init__(self, timers):
        self.timers = timers
        self.seconds = {name: [] for name in timers}
        self.done = 0

    def turn(self):
        names = list(self.timers)
        first = self.done % len(names)
        order = names[first:] + names[:first]
        for name in reversed(order) if self.done % 2 else order:
            self.seconds[name].append(self.timers[name]())
        self.done += 1

    def how_many(self, budget=SECONDS_A_ROW):
        """Warm up with three rounds, or one that is long, then say how many fit the budget."""
        start, before = time.perf_counter(), self.done
        a_round = 0.0
        while self.done < before + 3 and a_round < LONG_ROUND:
            self.turn()
            a_round = (time.perf_counter() - start) / (self.done - before)
        self.seconds = {name: [] for name in self.timers}
        if a_round >= LONG_ROUND:
            return FEW_ROUNDS
        return max(MIN_ROUNDS, min(MAX_ROUNDS, int(budget / a_round)))


def spread(seconds):
    """Median, quartiles and minimum of a list of times."""
    q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
    return {
        "median": median,
        "q1": q1,
        "q3": q3,
        "iqr": q3 - q1,
        "min": min(seconds),
        "rounds": len(seconds),
    }


# ---- memory


def peak_bytes(step):
    """The most that torch's allocator held during a step, results included, above what it held before."""
    if GPU:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    found = []
    # in a thread of its own, whose kept workspace is empty: scratch counts in the step that first needs it
    thread = threading.Thread(target=lambda: found.append(_profiled_peak(step)))
    thread.start()
    thread.join()
    return found[0] if found else None


def _profiled_peak(step):
    """From the profiler's allocation events: the process's own peak would hide what malloc had kept."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = [e for e in events if e.get("name") == "[memory]" and e["args"].get("Device Type") == 0]
    held = peak = 0
    for event in sorted(memory, key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


# ---- what the figures say


def derive(row, ceilings):
    """Ratios, rates, shares of the ceilings and the targets' verdicts, put into the row."""
    # What a call costs the host is the least that was seen: everything above it is the machine's other work.
    statistic = "min" if row["calls"] else "median"
    times = {name: c[statistic] for name, c in row["contenders"].items() if statistic in c}
    ours = times["ours"]
    peers = {n: s for n, s in times.items() if n != "ours" and row["contenders"][n]["role"] == "peer"}
    figures = {}
    if peers and not row["calls"]:
        best = min(peers, key=peers.get)
        figures["best peer"] = best
        figures["ratio to best peer"] = peers[best] / ours
    baselines = [peers[n] for n in BASELINES if n in peers]
    if baselines and not row["calls"]:
        figures["ratio"] = min(baselines) / ours
    for name, seconds in times.items():
        if name != "ours":
            figures[f"ratio to {name}"] = seconds / ours
    if row.get("kept", {}).get("eager"):
        figures["ratio, memory kept"] = row["kept"]["eager"]["median"] / row["kept"]["ours"]["median"]
    spare = {
        n: c["peak_bytes"] - c["result_bytes"]
        for n, c in row["contenders"].items()
        if c.get("peak_bytes") and "result_bytes" in c
    }
    if spare.get("eager") and "ours" in spare:  # beyond the results, which every contender must hold
        figures["temporary memory to eager"] = spare["ours"] / spare["eager"]
    if row["calls"] and "eager" in times:
        figures["added us"] = (ours - times["eager"]) * 1e6
    if row["op"] == "import":
        figures["added s"] = ours
    if row["bytes"]:
        figures["GB/s"] = row["bytes"] / ours / 1e9
        figures["TFLOP/s"] = row["flops"] / ours / 1e12
        floors = {COPY: row["bytes"] / ceilings["copy"]}
        if gemm := ceilings.get(f"gemm_{row['dtype']}"):
            floors[GEMM] = row["flops"] / gemm
        bound = max(floors, key=floors.get)
        figures["bound by"] = bound
        figures["share of ceiling"] = floors[bound] / ours
        if bound == COPY and "copy_fresh" in ceilings:
            figures["share of fresh copy"] = row["bytes"] / ceilings["copy_fresh"] / ours
    row["figures"] = figures
    for target in row["targets"]:
        value = figures.get(target["metric"])
        target["value"] = value
        target["met"] = None if value is None else Target(*target["promise"]).met(value)
    return row
