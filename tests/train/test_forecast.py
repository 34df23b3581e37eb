"""Forecasts of series: what is held out, the baseline, the picture, resumption, and what is refused."""

import io
import json

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")

from rich.console import Console

from kernelzoo import train, zoo
from kernelzoo.data import InputError, Series, load_series, split_series
from kernelzoo.train import forecast


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def wave(n=120):
    """A noisy wave with a period of 11."""
    t = np.arange(n)
    return 40 + 30 * np.sin(2 * np.pi * t / 11) + np.random.default_rng(0).normal(0, 2, n)


@pytest.fixture
def series(tmp_path):
    path = tmp_path / "wave.csv"
    rows = [f"{1900 + i},{value:.6f},{i % 3}" for i, value in enumerate(wave())]
    path.write_text("\n".join(["year,height,other", *rows]) + "\n")
    return path


def run(out, data, **how):
    console = Console(file=io.StringIO(), width=200)
    how = {"context": 11, "epochs": 3, "device": "cpu", "target": "height", **how}
    options = {"hidden_size": 8, **how.pop("options", {})}
    result = train.run(
        train.SeriesConfig("gru_forecaster", str(data), options=options, out=out, **how), console
    )
    return {**result, "printed": console.file.getvalue()}


def metrics(result, name="kernelzoo"):
    return result["results"][name]["metrics"]


def test_forecaster_beats_persistence_on_years_it_has_not_seen(tmp_path):
    pytest.importorskip("statsmodels")
    result = run(tmp_path, "sunspots", target=None, epochs=20, options={"hidden_size": 16}, lr=5e-3)
    assert result["held_out"] == {"first": 1947.0, "last": 2008.0}
    naive = result["baselines"]["persistence"]["rmse"]
    assert metrics(result)["rmse"] < 0.75 * naive
    assert f"RMSE {metrics(result)['rmse']:.2f}; persistence {naive:.2f}, which it beats" in result["printed"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.ckpt", "curves.png", "forecast.png", "metrics.json", "model.safetensors",
    }  # fmt: skip
    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["baselines"] == result["baselines"]


def test_sunspots_are_the_yearly_numbers_of_statsmodels():
    pytest.importorskip("statsmodels")
    series = load_series("sunspots")
    assert (series.times[0], series.times[-1], len(series.values)) == (1700, 2008, 309)
    assert (np.diff(series.times) == 1).all()
    assert series.values[-1] == 2.9
    with pytest.raises(InputError, match="sunspots has its own target"):
        load_series("sunspots", "YEAR")


@pytest.mark.parametrize("horizon", [1, 3])
def test_windows_are_normalised_by_training_years_and_held_out_values_are_in_none(horizon):
    values = wave()
    series = Series(np.arange(120.0), values, "height")
    data = split_series(series, 11, horizon, 0.25)
    assert data.first == 90
    assert data.normalization.target_mean == pytest.approx(values[:90].mean())
    assert data.normalization.target_std == pytest.approx(values[:90].std())
    assert data.x.shape == (90 - 11 - horizon + 1, 11, 1)
    assert data.val_x.shape == (30 - horizon + 1, 11, 1)
    for i in (0, 40, len(data.x) - 1):
        np.testing.assert_allclose(data.restored(data.x[i, :, 0]), values[i : i + 11], rtol=1e-5)
        np.testing.assert_allclose(
            data.restored(data.y[i, :, 0]), values[i + 11 : i + 11 + horizon], rtol=1e-5
        )
    for i in (0, len(data.val_x) - 1):
        np.testing.assert_allclose(data.restored(data.val_x[i, :, 0]), values[79 + i : 90 + i], rtol=1e-5)
        np.testing.assert_allclose(
            data.restored(data.val_y[i, :, 0]), values[90 + i : 90 + i + horizon], rtol=1e-5
        )
    other = values.copy()
    other[90:] *= 3
    changed = split_series(Series(series.times, other, "height"), 11, horizon, 0.25)
    assert changed.normalization == data.normalization
    assert changed.x.equal(data.x)
    assert changed.y.equal(data.y)


@pytest.mark.parametrize("horizon", [1, 3])
def test_reported_errors_are_those_of_the_written_weights_and_of_the_last_value(tmp_path, series, horizon):
    result = run(tmp_path, series, options={"horizon": horizon})
    values = np.array([float(line.split(",")[1]) for line in series.read_text().split()[1:]])
    first = 120 - 24
    model = zoo.load("gru_forecaster", tmp_path / "model.safetensors")
    mean, std = values[:first].mean(), values[:first].std()
    errors, naive = [], []
    for at in range(first, 120 - horizon + 1):
        x = torch.from_numpy((values[at - 11 : at] - mean) / std).float()[None, :, None]
        truth = values[at : at + horizon]
        errors.append(model(x)[0, :, 0].detach().double().numpy() * std + mean - truth)
        naive.append(values[at - 1] - truth)
    persistence = result["baselines"]["persistence"]
    for found, expected in ((metrics(result), errors), (persistence, naive)):
        assert found["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(expected))), rel=1e-4)
        assert found["mae"] == pytest.approx(np.mean(np.abs(expected)), rel=1e-4)
    assert result["rows"] == {"training": first - 11 - horizon + 1, "validation": 24 - horizon + 1}


def test_a_model_that_loses_is_said_to():
    result = {
        "results": {"kernelzoo": {"metrics": {"rmse": 3.0}}},
        "baselines": {"persistence": {"rmse": 2.0}},
        "held_out": {"first": 1990.0, "last": 2000.5},
    }
    said = forecast.verdict(result, Series(np.empty(0), np.empty(0), "height"), {"horizon": 4})
    assert said == (
        "height, 1990 to 2000.5, 1 to 4 values ahead: RMSE 3.00; persistence 2.00, which it does NOT beat by 50%"
    )


def test_resumed_run_ends_as_an_uninterrupted_one(tmp_path, series):
    how = {"epochs": 4, "options": {"dropout": 0.3}}
    whole = run(tmp_path / "whole", series, **how)
    run(tmp_path / "parts", series, **{**how, "epochs": 2})
    resumed = run(tmp_path / "parts", series, resume=True, **how)
    names = [folder / "model.safetensors" for folder in (tmp_path / "parts", tmp_path / "whole")]
    assert names[0].read_bytes() == names[1].read_bytes()
    assert resumed["results"]["kernelzoo"]["history"] == whole["results"]["kernelzoo"]["history"]
    with pytest.raises(InputError, match="context was 11 and is now 12"):
        run(tmp_path / "parts", series, resume=True, context=12, **how)


def test_comparison_trains_the_same_model_in_plain_torch(tmp_path, series):
    result = run(tmp_path, series, compare="torch", backend="torch")
    histories = (result["results"][name]["history"] for name in ("kernelzoo", "torch"))
    for ours, plain in zip(*histories, strict=True):
        assert ours["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-5)
        assert ours["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-5)
    assert result["largest_weight_difference"] < 1e-4 * result["largest_weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "sunspot"}, "no series is called 'sunspot'; did you mean sunspots"),
        ({"data": "digits"}, "no series is called 'digits'"),
        ({"target": None}, "say which column to predict with --target; the columns are year, height, other"),
        ({"target": "depth"}, "has no column 'depth'"),
        ({"context": 7}, "--context must be at least 8, got 7"),
        (
            {"context": 96},
            r"120 values, of which the last 24 are held out, leave 96 to train on; a window is 96",
        ),
        ({"options": {"horizon": 25}}, "25 to forecast: shorten it or change --val-fraction"),
        ({"options": {"horizon": 0}}, "horizon is 0; expected 1 or more"),
        ({"options": {"horizon": "x"}}, "horizon is 'x'; expected int"),
        ({"options": {"in_features": 2}}, "needs in_features=1; leave the option out"),
        ({"task": "regression"}, "--task: gru_forecaster forecasts a series"),
        ({"compare": "scratch"}, "--compare knows torch"),
        ({"options": {"peephole": True}}, "gru_forecaster has no option 'peephole'"),
        (
            {"options": {"layer_norm": True}, "compare": "torch"},
            "layer_norm=True is an option of kernelzoo.nn.GRU; this model is to be in plain PyTorch",
        ),
    ],
)
def test_bad_input(tmp_path, series, change, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", **{"data": series, **change})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: [rows[0], *rows[:0:-1]], "the column 'year' is read as the time and goes from 2019 to"),
        (
            lambda rows: [rows[0], *(row.split(",")[0] + ",5,1" for row in rows[1:])],
            "every row has height = 5",
        ),
        (lambda rows: [*rows[:5], "1904.5,,1", *rows[5:]], "line 6, column 'height': the target is missing"),
        (
            lambda rows: [rows[0], *(f"{1900 + i},{max(0, i - 99)},1" for i in range(120))],
            "standard deviation of 0",
        ),
    ],
    ids=["backwards", "constant", "missing", "constant-in-training"],
)
def test_bad_series(tmp_path, series, spoil, message):
    series.write_text("\n".join(spoil(series.read_text().split())) + "\n")
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", series)
    assert not (tmp_path / "out").exists()


def test_settings_that_say_nothing_to_a_series():
    with pytest.raises(
        InputError, match="--steps means nothing to gru_forecaster, which learns from a series"
    ):
        train.configure("gru_forecaster", data="sunspots", steps=3)
    config = train.configure("gru_forecaster", data="sunspots")
    assert (config.epochs, config.batch_size, config.context) == (100, 16, 33)
    assert train.configure("mlp", data="digits").epochs == 30
