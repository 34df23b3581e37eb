"""The table and the pictures of a result's JSON: python bench/report.py bench.json

Writes table.txt, ratios.png and roofline.png beside it, and prints the table. Nothing is measured here.
"""

import json
import sys
from pathlib import Path

from kernelzoo.verify import table

OURS, PEER, KEPT, GREY = "#0b6e4f", "#c1666b", "#48639c", "#8a8a8a"


def time_of(seconds, row):
    return f"{seconds * 1e6:.2f}us" if row["calls"] else f"{seconds * 1e3:.4g}"


def _number(value, form="{:.2f}"):
    return "" if value is None else form.format(value)


def verdict_of(row):
    """The targets beside the row: 'ratio ≥ 1.12: 1.31 met'."""
    said = {True: "met", False: "MISSED", None: "not measured"}
    return "; ".join(
        f"{t['says']}: {_number(t['value'], '{:.3g}')} {said[t['met']]}".strip() for t in row["targets"]
    )


HEAD = (
    "row", "backend", "ours", "iqr", "eager", "compile", "ratio", "eager kept", "ratio kept",
    "rate", "of ceiling", "peak MB", "eager's", "target",
)  # fmt: skip


def cells(row):
    """One row of the table; times in ms (us a call in the rows of call overhead)."""
    contenders, figures, kept = row["contenders"], row["figures"], row.get("kept") or {}

    def median(name):
        entry = contenders.get(name)
        if entry is None:
            return ""
        return time_of(entry["median"], row) if "median" in entry else entry["status"].partition(":")[0]

    ours = contenders["ours"]
    gemm = figures.get("bound by") == "gemm"
    rate = figures.get("TFLOP/s" if gemm else "GB/s")
    share = figures.get("share of ceiling")
    return (
        row["case"],
        ", ".join(dict.fromkeys(used.partition(":")[0] for used in row.get("backend", []))),
        median("ours"),
        f"{ours['iqr'] / ours['median']:.0%}",
        median("eager"),
        median("compile"),
        _number(figures.get("ratio")),
        time_of(kept["eager"]["median"], row) if "eager" in kept else "",
        _number(figures.get("ratio, memory kept")),
        _number(rate, "{:.3g} TFLOP/s" if gemm else "{:.3g} GB/s"),
        _number(share, "{:.0%}"),
        _number(ours.get("peak_bytes"), "{:,.0f}") and f"{ours['peak_bytes'] / 1e6:,.1f}",
        f"{contenders['eager']['peak_bytes'] / 1e6:,.1f}"
        if "peak_bytes" in contenders.get("eager", {})
        else "",
        verdict_of(row),
    )


def others(rows):
    """A line for each contender beside eager and torch.compile, and for each that was not timed."""
    silent = {}
    for row in rows:
        for name, entry in row["contenders"].items():
            if "median" in entry and name not in ("ours", "eager", "compile"):
                ratio = row["figures"][f"ratio to {name}"]
                yield f"{row['case']}: {name} {time_of(entry['median'], row)} ({ratio:.2f} of ours)"
            elif "median" not in entry:
                silent.setdefault(f"{name} {entry['status']}", []).append(row["case"])
        for name, value in row.get("notes", {}).items():
            yield f"{row['case']}: {name} {value:.3g} s"
    for what, where in silent.items():
        yield f"{what} ({where[0] if len(where) == 1 else f'{len(where)} rows'})"


def head_of(data):
    facts = data["environment"]
    device = (
        facts["gpus"][0]["name"]
        if facts["gpus"]
        else f"{facts['cpu']['model']}, {facts['cpu']['cores']} cores"
    )
    yield f"{device}; commit {facts['commit'][:12]}{'+changes' * facts['commit'].endswith('+changes')}; {facts['when']}"
    yield ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    rates = {
        n: f"{r / 1e9:.1f} GB/s" if n.startswith("copy") else f"{r / 1e12:.3g} TFLOP/s"
        for n, r in data["ceilings"].items()
    }
    yield "ceilings: " + ", ".join(f"{name} {rate}" for name, rate in rates.items())
    yield f"threads: {facts['threads']}, load average at the end: {facts['load'] and round(facts['load'][0], 1)}"


def text(data):
    """The whole report as text."""
    rows = [b["extra_info"] for b in data["benchmarks"]]
    shown = list(HEAD)
    body = [cells(row) for row in rows]
    filled = [i for i in range(len(shown)) if any(line[i] for line in body)]
    lines = [*head_of(data), ""]
    lines.append(table([shown[i] for i in filled], [[line[i] for i in filled] for line in body]))
    lines += [
        "",
        "Times are medians in ms (us a call where marked); ratio: the best of eager and compile over ours;",
    ]
    lines.append(f"kept: both in a process whose allocator keeps memory ({data['kept']});")
    lines.append(
        "of ceiling: the time that the bytes or the products need at the measured ceiling, over ours."
    )
    lines += ["", *others(rows)]
    lines += [f"not timed: {entry['case']}: {entry['why']}" for entry in data["not_timed"]]
    targets = [t for row in rows for t in row["targets"]]
    missed = sum(t["met"] is False for t in targets)
    unknown = sum(t["met"] is None for t in targets)
    lines.append(
        f"targets: {len(targets)}, met {len(targets) - missed - unknown}, missed {missed}, not measured {unknown}"
    )
    return "\n".join(lines)


def draw_ratios(data, path):
    """A bar a row: the best of eager and torch.compile over ours, and eager over ours with memory kept."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [
        r for r in (b["extra_info"] for b in data["benchmarks"]) if "ratio" in r["figures"] and not r["calls"]
    ]
    if not rows:
        return False
    rows.reverse()
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.26 * len(rows)), layout="constrained")
    places = range(len(rows))
    values = [r["figures"]["ratio"] for r in rows]
    axes.barh(places, values, color=[OURS if v >= 1 else PEER for v in values], height=0.62, zorder=2)
    kept = [
        (i, r["figures"]["ratio, memory kept"])
        for i, r in enumerate(rows)
        if "ratio, memory kept" in r["figures"]
    ]
    if kept:
        axes.scatter(*zip(*[(v, i) for i, v in kept], strict=True), marker="D", s=16, color=KEPT, zorder=3,
                     label="eager / ours, memory kept")  # fmt: skip
    for i, row in enumerate(rows):
        for target in row["targets"]:
            if target["metric"] == "ratio":
                axes.plot([target["promise"][1]] * 2, [i - 0.4, i + 0.4], color="black", lw=1.2, zorder=4)
        axes.annotate(f"{values[i]:.2f}", (values[i], i), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=7)  # fmt: skip
    axes.axvline(1, color=GREY, lw=0.8, zorder=1)
    axes.set_yticks(places, [r["case"] for r in rows], fontsize=8)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlim(0, max([*values, *(v for _, v in kept), 1]) * 1.12)
    axes.set_xlabel("times as fast as the best of eager and torch.compile (bars; black tick: the target)")
    axes.set_title(next(head_of(data)), fontsize=9)
    if kept:
        axes.legend(fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return True


def draw_roofline(data, path):
    """FLOP/s over FLOP/byte: ours filled, the best peer hollow, under the ceilings measured in the same run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in (b["extra_info"] for b in data["benchmarks"]) if r["bytes"] and r["flops"]]
    if not rows:
        return False
    roofs = data["ceilings"]
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    intensity = [r["flops"] / r["bytes"] for r in rows]
    low, high = min(*intensity, 0.05) / 2, max(*intensity, 10) * 4
    dtypes = {"float32": ("o", "fp32"), "bfloat16": ("s", "bf16")}
    for (name, (_, short)), style in zip(dtypes.items(), ("-", "--"), strict=True):
        if gemm := roofs.get(f"gemm_{name}"):
            ridge = gemm / roofs["copy"]
            axes.plot([low, min(ridge, high), high], [low * roofs["copy"], min(gemm, high * roofs["copy"]), gemm],
                      color="black", lw=1, ls=style)  # fmt: skip
            axes.annotate(f"matrix product {short}: {gemm / 1e12:.3g} TFLOP/s", (high, gemm), ha="right", va="bottom",
                          fontsize=8)  # fmt: skip
    if "copy_fresh" in roofs:
        top = max(r for n, r in roofs.items() if n.startswith("gemm"))
        end = min(high, top / roofs["copy_fresh"])
        axes.plot(
            [low, end], [low * roofs["copy_fresh"], end * roofs["copy_fresh"]], color=GREY, lw=1, ls=":"
        )
        axes.annotate(f"copy into fresh pages: {roofs['copy_fresh'] / 1e9:.3g} GB/s", (low, low * roofs["copy_fresh"]),
                      xytext=(6, -12), textcoords="offset points", fontsize=8, color=GREY)  # fmt: skip
    axes.annotate(f"copy: {roofs['copy'] / 1e9:.3g} GB/s", (low, low * roofs["copy"]), xytext=(6, 12),
                  textcoords="offset points", fontsize=8)  # fmt: skip
    for row, x in zip(rows, intensity, strict=True):
        marker = dtypes.get(row["dtype"], ("^", ""))[0]
        rate = row["flops"] / row["contenders"]["ours"]["median"]
        axes.plot(x, rate, marker, color=OURS, ms=5, zorder=3)
        if best := row["figures"].get("best peer"):
            peer = row["flops"] / row["contenders"][best]["median"]
            axes.plot(x, peer, marker, mfc="none", mec=PEER, ms=6, zorder=2)
            axes.plot([x, x], [rate, peer], color=GREY, lw=0.5, zorder=1)
    for label, marker, face, edge in (
        ("ours fp32", "o", OURS, OURS), ("ours bf16", "s", OURS, OURS),
        ("best peer fp32", "o", "none", PEER), ("best peer bf16", "s", "none", PEER),
    ):  # fmt: skip
        axes.plot([], [], marker, mfc=face, mec=edge, ms=5, label=label)
    axes.set(
        xscale="log", yscale="log", xlim=(low, high), xlabel="FLOP a byte that must move", ylabel="FLOP/s"
    )
    axes.set_title(next(head_of(data)), fontsize=9)
    axes.legend(fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return True


def main(path):
    path = Path(path)
    data = json.loads(path.read_text())
    report = text(data)
    (path.parent / "table.txt").write_text(report + "\n")
    show(data, report)
    written = [path, path.parent / "table.txt"]
    try:
        pictures = ((draw_ratios, "ratios.png"), (draw_roofline, "roofline.png"))
        written += [path.parent / name for draw, name in pictures if draw(data, path.parent / name)]
    except ImportError as missing:
        print(f"no pictures: {missing}")
    print("\n" + "\n".join(str(p) for p in written))
    return 0


def show(data, report):
    """Print the report; in colour where rich is here and the terminal has colours."""
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        print(report)
        return
    console = Console()
    shown = Text(report)
    shown.highlight_regex(r"(?<= )met\b", "green")
    shown.highlight_regex(r"MISSED|\bwrong\b|\bfailed\b", "bold red")
    console.print(shown, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
