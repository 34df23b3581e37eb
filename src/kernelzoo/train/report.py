"""What a run shows: a progress bar, the table at the end, the curves, the numbers as JSON."""

from __future__ import annotations

import io
import math
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from .engine import Fit

COLORS = ("#0b6fb8", "#e4572e")  # the run, its peer


def progress(name: str, unit: str, console: Console) -> Progress:
    """One line: how far, the latest result (field `result`), time left; silent where there is no terminal."""
    return Progress(
        TextColumn(f"{name:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[result]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """max |a - b| over all weights."""
    return max(((a[key].double() - b[key].double()).abs().max().item() for key in a), default=0.0)


def metric_names(fit: Fit) -> list[str]:
    others = ("step", "gradient_norm", *fit.losses)
    return [key for key in fit.history[-1] if key not in others]


def result_table(fits: dict[str, Fit], baselines: dict[str, dict[str, float]] | None = None) -> RichTable:
    """Validation metrics, losses and step time, one column a contender; baselines have metrics only."""
    baselines = baselines or {}
    table = RichTable()
    table.add_column("validation")
    for name in (*fits, *baselines):
        table.add_column(name, justify="right")

    def row(label: str, values: list[str]) -> None:
        table.add_row(label, *values, *[""] * (len(fits) + len(baselines) - len(values)))

    everyone = list(fits.values())
    for key in metric_names(everyone[0]):
        values = [f.history[f.best][key] for f in everyone] + [b[key] for b in baselines.values()]
        row(key, [_number(value) for value in values])
    for key, name in everyone[0].losses.items():
        label = "loss" if key == "val_loss" else f"{name} loss"
        row(label, [f"{f.history[f.best][key]:.4f}" for f in everyone])
    if "step" in everyone[0].history[-1]:
        row("step", [f"{f.history[f.best]['step']}" for f in everyone])
    else:
        row("epoch", [f"{f.best + 1} of {len(f.history)}" for f in everyone])
    quartiles = [f.step_quartiles_ms for f in everyone]
    row("median step, ms", [f"{median:.3f}" for _, median, _ in quartiles])
    row("quartiles, ms", [f"{low:.3f} - {high:.3f}" for low, _, high in quartiles])
    row("steps timed", [str(len(f.step_ms)) for f in everyone])
    if everyone[0].tokens:
        row("tokens/s", [f"{f.tokens_per_s:.0f}" for f in everyone])
    return table


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.2f}"


def summary(fits: dict[str, Fit], run: dict[str, Any]) -> dict[str, Any]:
    """The run and every contender's figures, ready for JSON (a number that is not finite becomes null)."""
    out = {**run, "results": {}}
    for name, fit in fits.items():
        out["results"][name] = {
            "metrics": {key: fit.history[fit.best][key] for key in metric_names(fit)},
            **{key: fit.history[fit.best][key] for key in fit.losses},
            **_progress(fit),
            "median_step_ms": fit.step_quartiles_ms[1],
            "step_quartiles_ms": fit.step_quartiles_ms,
            "steps_timed": len(fit.step_ms),
            "history": fit.history,
        }
    if "torch" in fits:
        a, b = fits.values()
        out["largest_weight_difference"] = largest_difference(a.weights, b.weights)
        out["largest_weight"] = max(w.abs().max().item() for w in b.weights.values())
    return _finite(out)


def _progress(fit: Fit) -> dict[str, Any]:
    if "step" in fit.history[fit.best]:
        speed = {"tokens_per_s": fit.tokens_per_s} if fit.tokens else {}
        return {"step": fit.history[fit.best]["step"], **speed}
    return {"epoch": fit.best + 1, "epochs": len(fit.history)}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def curves(fits: dict[str, Fit], title: str, main: str | None) -> bytes:
    """PNG: training and validation loss, and the main metric if there is one, by epoch or step.

    A dot marks the weights that are kept.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9 if main else 6, 3.6), dpi=130, layout="constrained")
    axes_of = figure.subplots(1, 2 if main else 1, squeeze=False)[0]
    losses = next(iter(fits.values())).losses
    lines = [
        (key, f"{{}}, {label}", "-" if i == 0 else "--") for i, (key, label) in enumerate(losses.items())
    ]
    if main:
        lines.append((main, "{}", "-"))
    unit = "step" if "step" in next(iter(fits.values())).history[-1] else "epoch"
    for i, (name, fit) in enumerate(fits.items()):
        at = [row.get("step", n) for n, row in enumerate(fit.history, 1)]
        # plain PyTorch is drawn wide and pale underneath: where both agree, both stay visible
        pale = name == "torch"
        style = {
            "color": COLORS[i],
            "lw": 5 if pale else 1.4,
            "alpha": 0.35 if pale else 1,
            "zorder": 2 if pale else 3,
        }
        for key, label, line in lines:
            axes = axes_of[1] if key == main else axes_of[0]
            values = [row[key] for row in fit.history]
            axes.plot(at, values, line, label=label.format(name), **style)
            if line == "-":
                dot = (at[fit.best], values[fit.best], "o")
                axes.plot(*dot, color=COLORS[i], ms=5, zorder=4, alpha=style["alpha"])
    values = [row[key] for fit in fits.values() for row in fit.history for key in losses]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes_of[0].set_yscale("log")
    axes_of[0].set(xlabel=unit, ylabel="loss", title="loss" if main else None)
    if main:
        axes_of[1].set(xlabel=unit, ylabel=main, title=f"validation {main}")
    for axes in axes_of:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
