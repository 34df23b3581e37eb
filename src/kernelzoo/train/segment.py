"""What masks are held against, and their picture."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch

from ..data.photographs import IGNORED, Pictures, TileSplit, by_colour, normalised
from .loop import parts
from .metrics import segmentation_metrics

# by class, the colour that a mask is drawn in
PALETTE = (
    "#1b1b1b",
    "#dfe3ee",
    "#f28e3c",
    "#2a8c6e",
    "#4e79a7",
    "#b07aa1",
    "#edc948",
    "#e15759",
    "#9c755f",
    "#76b7b2",
)
SHOWN = 3  # photographs at most


def baselines(pictures: Pictures) -> dict[str, dict[str, float]]:
    """IoU and accuracy, on the same held-out pixels, of what each pixel's own colour says."""
    metrics = segmentation_metrics(len(pictures.classes))
    for said, picture in zip(by_colour(pictures), pictures.pictures, strict=True):
        held = np.s_[:, picture.cut :]
        metrics.update(torch.from_numpy(said[held]), torch.from_numpy(picture.labels[held]))
    return {"colour alone": {key: float(value) for key, value in metrics.compute().items()}}


def verdict(result: dict[str, Any]) -> str:
    ours = result["results"]["kernelzoo"]["metrics"]["iou"]
    colour = result["baselines"]["colour alone"]["iou"]
    beats = "above" if ours > colour else "NOT above"
    return (
        f"mean intersection over union on the held-out columns {ours:.3f}, {beats} the {colour:.3f} of what a pixel's "
        f"own colour tells; classes {result['rule']}"
    )


@torch.no_grad()
def predict(model: torch.nn.Module, pixels: np.ndarray, data: TileSplit) -> np.ndarray:
    """The class of each pixel of a whole photograph, (H, W); it is widened to whole tiles by its edge."""
    height, width = pixels.shape[:2]
    tile = data.training.tile
    wider = [(0, -side % tile) for side in (height, width)]
    x = normalised(np.pad(pixels, (*wider, (0, 0)), mode="edge")[None], data.normalization)
    return parts(model(x))[0][0].argmax(0)[:height, :width].numpy()


def picture(model: torch.nn.Module, pictures: Pictures, data: TileSplit) -> bytes:
    """PNG: each photograph, its classes, and the model's; what is held out lies right of the line."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    model = model.cpu().eval()
    shown = pictures.pictures[:SHOWN]
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(pictures.classes))]
    how = {
        "cmap": ListedColormap(colours),
        "vmin": -0.5,
        "vmax": len(colours) - 0.5,
        "interpolation": "nearest",
    }
    figure = Figure(figsize=(8.4, 1.95 * len(shown) + 0.35), dpi=80, layout="constrained")
    rows = figure.subplots(len(shown), 3, squeeze=False)
    for one, axes in zip(shown, rows, strict=True):
        axes[0].imshow(one.pixels)
        axes[1].imshow(np.ma.masked_equal(one.labels, IGNORED), **how)
        axes[2].imshow(predict(model, one.pixels, data), **how)
        for each in axes:
            each.axvline(one.cut, color="white", lw=1.5)
            each.axvline(one.cut, color="black", lw=0.7, ls="--")
            each.set_axis_off()
    for axes, title in zip(
        rows[0], ("photograph", "classes", "predicted (right of the line: held out)"), strict=True
    ):
        axes.set_title(title, fontsize=9)
    handles = [
        Patch(facecolor=c, edgecolor="0.5", label=n) for c, n in zip(colours, pictures.classes, strict=True)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(8, len(handles)), frameon=False, fontsize=8
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return _fewer_colours(buffer.getvalue())


def _fewer_colours(png: bytes) -> bytes:
    """The same picture with a palette of 128 colours, a third of the bytes."""
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(out, "png", optimize=True)
    return out.getvalue()
