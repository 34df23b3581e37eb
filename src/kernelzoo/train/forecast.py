"""What a forecast is held against, and its picture."""

from __future__ import annotations

import io
from typing import Any

import torch

from ..data import Series, SeriesSplit
from .metrics import forecast_metrics
from .report import COLORS


def baselines(data: SeriesSplit) -> dict[str, dict[str, float]]:
    """RMSE and MAE, on the same held-out values, of persistence: every value to come is the last one known."""
    metrics = forecast_metrics(data.normalization)
    metrics.update(data.val_x[:, -1:].expand_as(data.val_y), data.val_y)
    return {"persistence": {key: float(value) for key, value in metrics.compute().items()}}


def verdict(result: dict[str, Any], series: Series, options: dict[str, Any]) -> str:
    """The model's RMSE and persistence's, in a sentence."""
    ours = result["results"]["kernelzoo"]["metrics"]["rmse"]
    naive = result["baselines"]["persistence"]["rmse"]
    first, last = (f"{result['held_out'][key]:g}" for key in ("first", "last"))
    horizon = options.get("horizon", 1)
    ahead = "one value ahead" if horizon == 1 else f"1 to {horizon} values ahead"
    beats = "beats" if ours < naive else "does NOT beat"
    return (
        f"{series.target}, {first} to {last}, {ahead}: RMSE {ours:.2f}; persistence {naive:.2f}, which it {beats} "
        f"by {abs(1 - ours / naive):.0%}"
    )


def picture(model: torch.nn.Module, series: Series, data: SeriesSplit, name: str) -> bytes:
    """PNG: the held-out values, the forecasts one value ahead, persistence's, and the errors of both below.

    A thin line goes on from the last training value alone, the model reading its own forecasts.
    """
    from matplotlib.figure import Figure

    model = model.cpu().eval()
    first = data.first
    times, truth = series.times[first:], series.values[first:]
    with torch.no_grad():
        ahead = data.restored(model(data.val_x)[:, 0, 0])
        free = data.restored(model.forecast(data.val_x[:1], len(truth))[0, :, 0])
    at = slice(0, len(ahead))  # the last windows have `horizon` values to forecast as well
    last_known = series.values[first - 1 : -1]
    figure = Figure(figsize=(9, 5.4), dpi=130, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    history = slice(max(0, first - len(truth)), first + 1)
    above.plot(series.times[history], series.values[history], color="0.6", lw=1, label="training")
    above.axvspan(times[0], times[-1], color="0.95", zorder=0)
    above.plot(times, truth, color="black", lw=1.8, label="held out")
    above.plot(times, last_known, color=COLORS[1], lw=1, ls=":", label="persistence")
    above.plot(times[at], ahead, color=COLORS[0], lw=1.6, label=f"{name}, one value ahead")
    above.plot(times, free, color=COLORS[0], lw=0.9, ls="--", alpha=0.6, label=f"{name}, from the start on")
    above.set(ylabel=series.target)
    above.legend(frameon=False, fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.14))
    below.axhline(0, color="black", lw=0.8)
    below.plot(times, last_known - truth, color=COLORS[1], lw=1, ls=":")
    below.plot(times[at], ahead - truth[at], color=COLORS[0], lw=1.4)
    below.set(ylabel="error")
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
