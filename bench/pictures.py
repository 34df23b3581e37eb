"""The bench's two pictures: how many times as fast as the peers, and how near the ceilings."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .report import title

OURS, LOSS, KEPT, GREY = "#0b6e4f", "#c1666b", "#48639c", "#8a8a8a"
STYLE = {"float32": ("o", "-", "fp32"), "bfloat16": ("s", "--", "bf16")}


def _rows(data, wanted):
    return [row for row in (b["extra_info"] for b in data["benchmarks"]) if wanted(row)]


def _save(figure, axes, data, path):
    axes.set_title(title(data), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return True


def ratios(data, path):
    """A bar a row: the best of eager and torch.compile over ours; a diamond: eager over ours, memory kept."""
    rows = _rows(data, lambda row: "ratio" in row["figures"])[::-1]
    if not rows:
        return False
    figure, axes = plt.subplots(figsize=(9, 2 + 0.26 * len(rows)), layout="constrained")
    values = [row["figures"]["ratio"] for row in rows]
    kept = [(row["figures"].get("ratio, memory kept"), i) for i, row in enumerate(rows)]
    kept = [point for point in kept if point[0] is not None]
    axes.barh(
        range(len(rows)), values, color=[OURS if v >= 1 else LOSS for v in values], height=0.62, zorder=2
    )
    if kept:
        label = "eager over ours, memory kept"
        axes.scatter(
            *zip(*kept, strict=True), marker="D", s=18, color=KEPT, ec="white", zorder=5, label=label
        )
    for i, row in enumerate(rows):
        for target in row["targets"]:
            if target["metric"] == "ratio":
                axes.plot([target["promise"][1]] * 2, [i - 0.42, i + 0.42], color="black", lw=1.4, zorder=4)
        inside = {"xy": (0, i), "xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{values[i]:.2f}", **inside, fontsize=7, color="white", zorder=6)
    axes.axvline(1, color=GREY, lw=0.8, zorder=1)
    axes.plot([], [], color="black", lw=1.4, label="target")
    axes.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize=8)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlim(0, max(*values, *(v for v, _ in kept), 1) * 1.05)
    axes.set_xlabel("times as fast as the best of eager and torch.compile, forward and backward")
    figure.legend(fontsize=8, loc="outside lower center", ncols=2, frameon=False)
    return _save(figure, axes, data, path)


def roofline(data, path):
    """FLOP/s over FLOP/byte: ours filled, the best peer hollow, under the ceilings of the same run."""
    rows = _rows(data, lambda row: row["bytes"] and row["flops"])
    if not rows:
        return False
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    intensity = [row["flops"] / row["bytes"] for row in rows]
    _roofs(axes, data["ceilings"], min(*intensity, 0.1) / 2, max(*intensity, 100) * 4)
    for row, x in zip(rows, intensity, strict=True):
        marker = STYLE[row["dtype"]][0]
        contenders = row["contenders"]
        rate = row["flops"] / contenders["ours"]["median"]
        axes.plot(x, rate, marker, color=OURS, ms=5, zorder=3)
        if best := row["figures"].get("best peer"):
            theirs = row["flops"] / contenders[best]["median"]
            axes.plot(x, theirs, marker, mfc="none", mec=LOSS, ms=6, zorder=2)
            axes.plot([x, x], [rate, theirs], color=GREY, lw=0.5, zorder=1)
    for marker, _, short in STYLE.values():
        axes.plot([], [], marker, color=OURS, ms=5, label=f"ours, {short}")
        axes.plot([], [], marker, mfc="none", mec=LOSS, ms=6, label=f"the best peer, {short}")
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte that must move", ylabel="FLOP/s")
    axes.legend(fontsize=8, loc="lower right")
    return _save(figure, axes, data, path)


def _roofs(axes, ceilings, low, high):
    """Bandwidth as slopes, matrix products as flats."""
    copy = ceilings["copy"]
    top = max(rate for name, rate in ceilings.items() if name.startswith("gemm"))
    for name, (_, line, short) in STYLE.items():
        if gemm := ceilings.get(f"gemm_{name}"):
            ridge = gemm / copy
            axes.plot([low, ridge, max(high, ridge)], [low * copy, gemm, gemm], color="black", lw=1, ls=line)
            said = f"matrix product {short}, {gemm / 1e12:.3g} TFLOP/s"
            axes.annotate(said, (low, gemm), fontsize=8, va="bottom")
    if fresh := ceilings.get("copy_fresh"):
        axes.plot([low, top / fresh], [low * fresh, top], color=GREY, lw=1, ls=":")
        _along(axes, f"copy into fresh pages, {fresh / 1e9:.3g} GB/s", fresh, GREY)
    _along(axes, f"copy, {copy / 1e9:.3g} GB/s", copy, "black")
    axes.set_xlim(low, high)


def _along(axes, said, rate, colour):
    at = {"xy": (2, 2 * rate), "xytext": (4, -10), "textcoords": "offset points"}
    axes.annotate(said, **at, fontsize=8, color=colour)
