"""The session: ceilings, the child with kept memory, the fixtures that time a row, and what the JSON gets."""

import contextlib
import time

import pytest
import torch

import kernelzoo as kz
from kernelzoo import ceilings

from . import core, kept, machine

# in this order
OPS = (
    "linear",
    "overhead",
    "import",
    "mlp",
    "attention",
    "conv",
    "norm",
    "batch_norm",
    "pool",
    "loss",
    "glu",
    "rotary",
    "dropout",
    "embedding",
    "rnn",
    "gpt",
    "resnet",
    "softmax",
    "activation",
)
MODULES = (
    "bench_linear",
    "bench_overhead",
    "bench_mlp",
    "bench_attention",
    "bench_conv",
    "bench_norm",
    "bench_batch_norm",
    "bench_pool",
    "bench_loss",
    "bench_glue",
    "bench_rnn",
    "bench_gpt",
    "bench_resnet",
    "bench_activation",
)


def pytest_addoption(parser):
    parser.addoption("--ops", default="", help=f"only these, separated by commas: {', '.join(OPS)}")
    parser.addoption("--limit", type=float, default=None, help="seconds after which no further row is begun")


class Session:
    def __init__(self, config):
        limit = config.getoption("limit")
        self.until = time.monotonic() + limit if limit else float("inf")
        self.before = machine.clocks()
        self.ceilings = ceilings.measure(core.DEVICE)
        self.kept = None if core.GPU else kept.Child()
        self.not_timed = []

    def leave_out(self, case, why):
        self.not_timed.append({"case": case.id, "op": case.op, "why": why})

    def close(self):
        if self.kept:
            self.kept.close()
        for name, rate in ceilings.measure(core.DEVICE).items():  # the better of before and after
            self.ceilings[name] = max(rate, self.ceilings[name])


_session = pytest.StashKey[Session]()


@pytest.fixture(scope="session")
def session(request):
    found = request.config.stash[_session] = Session(request.config)
    yield found
    found.close()


@pytest.fixture
def record(benchmark, session, request):
    """record(case, rounds): run the rounds; pytest-benchmark keeps our times and the row's figures.

    Its timer is a clock that the rounds set, so that its statistics are of the same interleaved rounds as the
    peers', and of device events where there are any.
    """
    clock = benchmark._timer

    def run(case, rounds, rounds_run=None, contenders=None, note=dict, **more):
        if time.monotonic() > session.until:
            session.leave_out(case, "time was up")
            pytest.skip("time was up")
        rounds_run = rounds_run or rounds.how_many(core.SECONDS_A_ROW / (2 if case.calls else 1))
        benchmark.pedantic(
            lambda: clock.advance(rounds.seconds["ours"][-1]), setup=rounds.turn, rounds=rounds_run
        )
        contenders = contenders or {"ours": {"role": "ours", "status": "timed"}}
        for name, seconds in rounds.seconds.items():
            contenders[name].update(core.spread(seconds))
        benchmark.group = case.op
        benchmark.extra_info.update(
            case=case.id,
            op=case.op,
            dtype=case.dtype_name,
            device=core.DEVICE.type,
            bytes=case.bytes,
            flops=case.flops,
            calls=case.calls,
            contenders=contenders,
            targets=[{"metric": t.metric, "says": str(t), "promise": list(t)} for t in case.targets],
            notes=note(),
            **more,
        )
        _say(request, case, contenders)

    return run


class Clock:
    now = 0.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


@pytest.fixture
def row(record, session, request):
    """row(case): build, check every contender, weigh, and time them."""

    def run(case):
        if time.monotonic() > session.until:
            session.leave_out(case, "time was up")
            pytest.skip("time was up")
        torch._dynamo.reset()
        with kz.backend(case.backend) if case.backend else contextlib.nullcontext():
            problem = case.build()
            with kz.trace() as calls:
                contenders, right = core.contenders_of(case, problem)
            if "ours" not in right:
                session.leave_out(case, contenders["ours"]["status"])
                _say(request, case, contenders)
                pytest.fail(f"{case.id}: ours is {contenders['ours']['status']}", pytrace=False)
            if not case.calls:
                for name, step in right.items():
                    contenders[name]["peak_bytes"] = core.peak_bytes(step)
            rounds = core.Rounds({name: core.timer_of(case, step) for name, step in right.items()})
            used = list(dict.fromkeys(f"{call.backend}: {call.reason}" for call in calls))
            kept_memory = {}
            if session.kept and case.kept:
                kept_memory = session.kept.measure(request.module.__name__, case.id)
            record(case, rounds, contenders=contenders, backend=used, kept=kept_memory)

    return run


def _say(request, case, contenders):
    """One line of progress."""
    parts = [
        f"{name} {entry['median'] * 1e3:.4g} ms" if "median" in entry else f"{name} {entry['status']}"
        for name, entry in contenders.items()
    ]
    request.config.get_terminal_writer().line(f"{case.id}: {', '.join(parts)}")


def pytest_collection_modifyitems(config, items):
    wanted = [op for op in config.getoption("ops").split(",") if op]
    if unknown := set(wanted) - set(OPS):
        raise pytest.UsageError(f"--ops: unknown {', '.join(unknown)}; expected some of {', '.join(OPS)}")

    def op_of(item):
        return item.callspec.params["case"].op if "case" in item.callspec.params else "import"

    items.sort(key=lambda item: MODULES.index(item.module.__name__.rpartition(".")[2]))
    kept_items = [item for item in items if not wanted or op_of(item) in wanted]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept_items])
    items[:] = kept_items
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=Clock()))


def pytest_benchmark_group_stats(config, benchmarks, group_by):
    """No table of pytest-benchmark's own: report.py prints one."""
    return []


def pytest_benchmark_update_json(config, benchmarks, output_json):
    session = config.stash[_session]
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)  # the quartiles say it
        core.derive(entry["extra_info"], session.ceilings)
    output_json.update(
        ceilings=session.ceilings,
        kept=session.kept.how if session.kept else "not on a GPU",
        not_timed=session.not_timed,
        environment=machine.describe(session.before),
    )
