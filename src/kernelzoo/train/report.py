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

COLORS = {"kernelzoo": "#0b6fb8", "torch": "#e4572e"}


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
    return [key for key in fit.history[-1] if not key.endswith("_loss")]


def result_table(fits: dict[str, Fit]) -> RichTable:
    """Validation metrics, losses and step time, one column a contender."""
    table = RichTable()
    table.add_column("validation")
    for name in fits:
        table.add_column(name, justify="right")

    def row(label: str, values: list[str]) -> None:
        table.add_row(label, *values)

    everyone = list(fits.values())
    for key in metric_names(everyone[0]):
        row(key, [_number(f.history[f.best][key]) for f in everyone])
    row("loss", [f"{f.history[f.best]['val_loss']:.4f}" for f in everyone])
    row("training loss", [f"{f.history[f.best]['train_loss']:.4f}" for f in everyone])
    row("epoch", [f"{f.best + 1} of {len(f.history)}" for f in everyone])
    quartiles = [f.step_quartiles_ms for f in everyone]
    row("median step, ms", [f"{median:.3f}" for _, median, _ in quartiles])
    row("quartiles, ms", [f"{low:.3f} - {high:.3f}" for low, _, high in quartiles])
    row("steps timed", [str(len(f.step_ms)) for f in everyone])
    return table


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.2f}"


def summary(fits: dict[str, Fit], run: dict[str, Any]) -> dict[str, Any]:
    """The run and every contender's figures, ready for JSON (a number that is not finite becomes null)."""
    out = {**run, "results": {}}
    for name, fit in fits.items():
        out["results"][name] = {
            "metrics": {key: fit.history[fit.best][key] for key in metric_names(fit)},
            "val_loss": fit.history[fit.best]["val_loss"],
            "train_loss": fit.history[fit.best]["train_loss"],
            "epoch": fit.best + 1,
            "epochs": len(fit.history),
            "median_step_ms": fit.step_quartiles_ms[1],
            "step_quartiles_ms": fit.step_quartiles_ms,
            "steps_timed": len(fit.step_ms),
            "history": fit.history,
        }
    if len(fits) == 2:
        a, b = fits.values()
        out["largest_weight_difference"] = largest_difference(a.weights, b.weights)
        out["largest_weight"] = max(w.abs().max().item() for w in b.weights.values())
    return _finite(out)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def curves(fits: dict[str, Fit], title: str, main: str) -> bytes:
    """PNG: training and validation loss and the main metric by epoch; a dot marks the epoch that is kept."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    loss_axes, metric_axes = figure.subplots(1, 2)
    for name, fit in fits.items():
        epochs = range(1, len(fit.history) + 1)
        # the peer is drawn wide and pale underneath: where both agree, both stay visible
        first = name == next(iter(fits))
        style = {
            "color": COLORS[name],
            "lw": 1.4 if first else 5,
            "alpha": 1 if first else 0.35,
            "zorder": 3 - (not first),
        }
        for axes, key, label, line in (
            (loss_axes, "train_loss", f"{name}, training", "--"),
            (loss_axes, "val_loss", f"{name}, validation", "-"),
            (metric_axes, main, name, "-"),
        ):
            values = [row[key] for row in fit.history]
            axes.plot(epochs, values, line, label=label, **style)
            if key != "train_loss":
                axes.plot(
                    fit.best + 1,
                    values[fit.best],
                    "o",
                    color=COLORS[name],
                    ms=5,
                    zorder=4,
                    alpha=style["alpha"],
                )
    losses = [row[key] for fit in fits.values() for row in fit.history for key in ("train_loss", "val_loss")]
    if min(losses) > 0 and max(losses) > 20 * min(losses):
        loss_axes.set_yscale("log")
    loss_axes.set(xlabel="epoch", ylabel="loss", title="loss")
    metric_axes.set(xlabel="epoch", ylabel=main, title=f"validation {main}")
    for axes in (loss_axes, metric_axes):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
