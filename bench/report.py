"""The table and the pictures of a result's JSON: python bench/report.py bench.json

Writes table.txt, ratios.png and roofline.png beside it, and prints the table. Nothing is measured here.
"""

import json
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import machine
from bench.core import GEMM
from kernelzoo.verify import table

HEAD = (
    "row", "backend", "ours", "iqr", "eager", "compile", "ratio", "eager kept", "ratio kept", "added",
    "rate", "of ceiling", "peak MB", "eager's", "target",
)  # fmt: skip
LEGEND = """\
ours, eager, compile: median ms of a step; us of a call (the least of its batches). iqr: of ours.
ratio: the best of eager and torch.compile over ours. kept: eager, and eager over ours, in a process whose
allocator keeps memory ({kept}): a speed-up that vanishes there was only an allocation.
of ceiling: the time that the step's bytes or products need at the ceilings of this run, over ours.
peak MB: the most that torch's allocator held during a step, results included."""
SAID = {True: "met", False: "MISSED", None: "not measured"}


def time_of(entry, row):
    return f"{entry['min'] * 1e6:.2f}us" if row["calls"] else f"{entry['median'] * 1e3:.4g}"


def _number(value, form="{:.2f}"):
    return "" if value is None else form.format(value)


def _megabytes(entry):
    return f"{entry['peak_bytes'] / 1e6:,.1f}" if entry.get("peak_bytes") is not None else ""


def _targets(row):
    """'ratio ≥ 1.12: 1.31 met'."""
    said = (f"{t['says']}: {_number(t['value'], '{:.3g}')} {SAID[t['met']]}" for t in row["targets"])
    return "; ".join(said)


def _cells(row):
    contenders, figures, kept = row["contenders"], row["figures"], row.get("kept") or {}

    def time(name):
        entry = contenders.get(name)
        if entry is None:
            return ""
        return time_of(entry, row) if "median" in entry else entry["status"].partition(":")[0]

    ours = contenders["ours"]
    gemm = figures.get("bound by") == GEMM
    return (
        row["case"],
        ", ".join(dict.fromkeys(used.partition(":")[0] for used in row.get("backend", []))),
        time("ours"),
        f"{ours['iqr'] / ours['median']:.0%}",
        time("eager"),
        time("compile"),
        _number(figures.get("ratio")),
        time_of(kept["eager"], row) if "eager" in kept else "",
        _number(figures.get("ratio, memory kept")),
        _number(figures.get("added us"), "{:+.2f}us"),
        _number(figures.get("TFLOP/s" if gemm else "GB/s"), "{:.3g} TFLOP/s" if gemm else "{:.3g} GB/s"),
        _number(figures.get("share of ceiling"), "{:.0%}"),
        _megabytes(ours),
        _megabytes(contenders.get("eager", {})),
        _targets(row),
    )


def _others(rows):
    """A line for each contender beside eager and torch.compile, and for each that was not timed."""
    silent = {}
    for row in rows:
        for name, entry in row["contenders"].items():
            if "median" not in entry:
                silent.setdefault(f"{name} {entry['status']}", []).append(row["case"])
            elif name not in ("ours", "eager", "compile"):
                ratio = row["figures"][f"ratio to {name}"]
                yield f"{row['case']}: {name} {time_of(entry, row)}, {ratio:.2f} of ours"
        if "failed" in (row.get("kept") or {}):
            silent.setdefault(f"memory kept: {row['kept']['failed']}", []).append(row["case"])
        for name, value in row.get("notes", {}).items():
            yield f"{row['case']}: {name} {value:.3g} s"
    for what, where in silent.items():
        yield f"{what} ({where[0] if len(where) == 1 else f'{len(where)} rows'})"


def title(data):
    facts = data["environment"]
    commit, changed = facts["commit"].partition("+")[::2]
    device = facts["gpus"][0]["name"] if facts["gpus"] else machine.cpu(facts)
    return f"{device}; commit {commit[:12]}{changed and ' with changes'}; {facts['when']}"


def _head(data):
    facts = data["environment"]
    yield title(data)
    yield ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    rates = (
        f"{name} {rate / 1e9:.1f} GB/s" if name.startswith("copy") else f"{name} {rate / 1e12:.3g} TFLOP/s"
        for name, rate in data["ceilings"].items()
    )
    yield "ceilings: " + ", ".join(rates)
    load = f"; load average at the end {facts['load'][0]:.1f}" if facts["load"] else ""
    yield "threads: " + ", ".join(f"{name} {n}" for name, n in facts["threads"].items()) + load


def text(data):
    """The whole report."""
    rows = [b["extra_info"] for b in data["benchmarks"]]
    body = [_cells(row) for row in rows]
    filled = [i for i in range(len(HEAD)) if any(line[i] for line in body)]
    shown = table([HEAD[i] for i in filled], [[line[i] for i in filled] for line in body])
    targets = [t["met"] for row in rows for t in row["targets"]]
    counts = ", ".join(f"{targets.count(met)} {said.lower()}" for met, said in SAID.items())
    return "\n".join(
        [
            *_head(data),
            "",
            shown,
            "",
            LEGEND.format(kept=data["kept"]),
            "",
            *_others(rows),
            *(f"not timed: {entry['case']}: {entry['why']}" for entry in data["not_timed"]),
            f"targets: {counts}",
        ]
    )


def show(report):
    """Print; in colour where rich is here and the terminal has colours."""
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        print(report)
        return
    shown = Text(report)
    shown.highlight_regex(r"(?<= )met\b", "green")
    shown.highlight_regex(r"MISSED|\bwrong\b|\bfailed\b", "bold red")
    Console(soft_wrap=True).print(shown)


def main(path):
    data = json.loads(path.read_text())
    report = text(data)
    (path.parent / "table.txt").write_text(report + "\n")
    show(report)
    written = [path, path.parent / "table.txt"]
    try:
        from bench import pictures
    except ImportError as missing:
        print(f"no pictures: {missing}")
    else:
        for draw, name in ((pictures.ratios, "ratios.png"), (pictures.roofline, "roofline.png")):
            if draw(data, path.parent / name):
                written.append(path.parent / name)
    print("", *written, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
