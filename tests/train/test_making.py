"""Training in steps on images to make, on sound and on a game: figures, resumption, what is refused."""

import io
import struct
import wave

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")

from rich.console import Console

from kernelzoo import train, zoo
from kernelzoo.data import InputError
from kernelzoo.data.audio import load_audio, mu_law, mu_law_inverse, read_wav, wav_bytes


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_wav(path, samples, rate=8000, width=2, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def tune(seconds=0.25, rate=8000):
    t = np.arange(round(seconds * rate)) / rate
    return np.round(20000 * np.sin(2 * np.pi * 440 * t)).astype("<i2")


@pytest.fixture
def sound(tmp_path):
    return write_wav(tmp_path / "tune.wav", tune())


GAN = {"width": 4, "latent_size": 6}
WAVENET = {"residual_channels": 8, "gate_channels": 8, "skip_channels": 8, "layers": 3, "stacks": 1}
KINDS = {
    "dcgan": ({"data": "digits", "batch_size": 16}, GAN),
    "wavenet": ({"context": 64, "batch_size": 2, "sample_seconds": 0.01}, WAVENET),
    "dqn": ({"env": "cartpole", "batch_size": 8, "eval_every": 3}, {"hidden": (8,)}),
}
FILES = {"dcgan": {"samples.png"}, "wavenet": {"sample.wav"}, "dqn": set()}


@pytest.fixture
def short(monkeypatch):
    """A game whose moves are learnt from at once, and that few episodes judge."""
    pytest.importorskip("gymnasium")
    from kernelzoo.train import play

    for name, value in (
        ("WATCHED", 20),
        ("GREEDY_AFTER", 60),
        ("JUDGED", 2),
        ("FINAL", 3),
        ("TARGET_EVERY", 7),
    ):
        monkeypatch.setattr(play, name, value)


def run(out, model, sound=None, **how):
    console = Console(file=io.StringIO(), width=300)
    settings, options = KINDS[model]
    settings = {**settings, **({"data": str(sound)} if model == "wavenet" else {})}
    how = {"steps": 6, "device": "cpu", **settings, **how}
    options = {**options, **how.pop("options", {})}
    result = train.run(train.configure(model, options=options, out=out, **how), console)
    return {**result, "printed": console.file.getvalue()}


@pytest.mark.parametrize("model", KINDS)
def test_resumed_run_ends_as_an_uninterrupted_one(tmp_path, sound, short, model):
    whole = run(tmp_path / "whole", model, sound)
    # between two rows of the history
    assert run(tmp_path / "parts", model, sound, stop_at=4)["stopped"]
    with pytest.raises(InputError, match="unfinished run; --resume continues it"):
        run(tmp_path / "parts", model, sound)
    resumed = run(tmp_path / "parts", model, sound, resume=True)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("parts", "whole")]
    assert weights[0] == weights[1]
    assert resumed["results"]["kernelzoo"]["history"] == whole["results"]["kernelzoo"]["history"]
    assert len(whole["results"]["kernelzoo"]["history"]) > 1
    assert resumed["results"]["kernelzoo"]["steps_timed"] == 6
    files = {"checkpoint.ckpt", "curves.png", "metrics.json", "model.safetensors"} | FILES[model]
    assert {path.name for path in (tmp_path / "parts").iterdir()} == files
    for name in FILES[model]:
        parts, alone = ((tmp_path / part / name).read_bytes() for part in ("parts", "whole"))
        assert parts == alone
    with pytest.raises(InputError, match=r"lr was .* and is now 0\.5"):
        run(tmp_path / "parts", model, sound, resume=True, lr=0.5)


def test_player_that_has_learnt_nothing_yet_resumes(tmp_path, short, monkeypatch):
    from kernelzoo.train import play

    monkeypatch.setattr(play, "WATCHED", 60)
    whole = run(tmp_path / "whole", "dqn", steps=9)
    assert run(tmp_path / "parts", "dqn", steps=9, stop_at=1)["stopped"]
    assert not torch.load(tmp_path / "parts" / "checkpoint.ckpt", weights_only=True)["optimizer"]
    resumed = run(tmp_path / "parts", "dqn", steps=9, resume=True)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("parts", "whole")]
    assert weights[0] == weights[1]
    history = whole["results"]["kernelzoo"]["history"]
    assert resumed["results"]["kernelzoo"]["history"] == history
    assert history[-1]["train_loss"] > 0


@pytest.mark.parametrize("model", KINDS)
def test_comparison_trains_the_same_model_in_plain_torch(tmp_path, sound, short, model):
    result = run(tmp_path, model, sound, compare="torch", backend="torch", steps=4)
    assert result["largest_weight_difference"] < 1e-4 * result["largest_weight"]
    assert "same seed, batches and loop" in result["printed"]


def test_judge_tells_real_images_from_noise_and_from_one_image():
    from kernelzoo.data import load_images
    from kernelzoo.train.gan import Judge, frechet

    images = load_images("digits")
    x = 2 * images.pictures(np.arange(1797)) - 1
    judge = Judge(x[:1000], images.y[:1000], x[1000:], images.y[1000:])
    assert judge.accuracy > 0.85
    real, noise = judge.real(), judge.figures(torch.rand(500, 1, 8, 8) * 2 - 1)
    one = judge.figures(x[:1].expand(500, -1, -1, -1) + 0.01 * torch.randn(500, 1, 8, 8))
    assert real["frechet"] < 0.1 * min(noise["frechet"], one["frechet"])
    assert real["class_score"] > 5
    assert one["class_score"] < 1.1
    assert one["nearest"] < 0.2 * real["nearest"]
    a = torch.randn(4000, 2, dtype=torch.float64).numpy()
    # of two Gaussians: the squared distance of the means and of the standard deviations
    assert frechet(a, 3 * a + [1.0, 0.0]) == pytest.approx(1 + 2 * 2**2, rel=0.1)


def test_gan_learns_to_make_what_no_noise_is(tmp_path):
    result = run(tmp_path, "dcgan", steps=100, lr=2e-3, batch_size=32, eval_every=20, options={"width": 8})
    first, *_, last = result["results"]["kernelzoo"]["history"]
    assert last["frechet"] < 0.7 * first["frechet"]
    assert result["baselines"]["real, held out"]["frechet"] < last["frechet"]
    made = zoo.load("dcgan", tmp_path / "model.safetensors")(torch.randn(2, 6))
    assert made.shape == (2, 1, 8, 8)


def test_mu_law_is_its_formula_and_comes_back():
    x = np.linspace(-1, 1, 2001)
    codes = mu_law(x)
    assert (codes[0], codes[1000], codes[-1]) == (0, 128, 255)
    assert (np.diff(codes.astype(int)) >= 0).all()
    expected = (np.sign(x) * np.log1p(255 * abs(x)) / np.log(256) + 1) / 2 * 255
    np.testing.assert_array_equal(codes, np.floor(expected + 0.5))
    # half a code, on a scale where the step grows with the sample
    assert (abs(mu_law_inverse(codes) - x) <= (abs(x) + 1 / 255) * 0.5 * 2 / 255 * np.log(256) * 1.02).all()


def riff(path, kind, bits, data, rate=8000, extensible=False):
    """A wav file as other programs write them: a chunk before the sound, the extensible head, an odd chunk behind."""
    head = struct.pack("<HHIIHH", 0xFFFE if extensible else kind, 1, rate, rate * bits // 8, bits // 8, bits)
    if extensible:
        head += struct.pack("<HHIH", 22, bits, 4, kind) + bytes.fromhex("000000001000800000aa00389b71")
    chunks = [(b"LIST", b"odd"), (b"fmt ", head), (b"data", data), (b"id3 ", b"x")]
    body = b"".join(n + struct.pack("<I", len(c)) + c + b"\0" * (len(c) % 2) for n, c in chunks)
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body)
    return path


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(("kind", "bits"), [(1, 24), (1, 32), (3, 32), (3, 64)])
def test_wav_files_of_24_and_32_bits_and_of_floats(tmp_path, kind, bits, extensible):
    x = np.array([0, 0.5, -0.25, -1, 1 - 2.0**-23])
    if kind == 3:
        data = x.astype(f"<f{bits // 8}").tobytes()
    else:
        wide = np.round(x * 2.0 ** (bits - 1)).astype("<i4")
        data = b"".join(int(v).to_bytes(4, "little", signed=True)[: bits // 8] for v in wide)
    rate, found = read_wav(riff(tmp_path / "a.wav", kind, bits, data, extensible=extensible))
    assert rate == 8000
    np.testing.assert_array_equal(found, x)


def test_wav_file_whose_length_was_not_known_reaches_to_its_end(tmp_path, sound):
    content = sound.read_bytes()
    at = content.index(b"data") + 4
    (tmp_path / "b.wav").write_bytes(content[:at] + b"\xff" * 4 + content[at + 4 :])
    np.testing.assert_array_equal(read_wav(tmp_path / "b.wav")[1], read_wav(sound)[1])


def test_sound_of_other_rates_is_resampled(tmp_path, sound):
    write_wav(tmp_path / "zz.wav", tune(rate=24000), rate=24000)
    audio = load_audio(str(tmp_path), 0.5, 64, sample_rate=12000)
    assert audio.rate == 12000
    first, second = (
        mu_law_inverse(np.concatenate(parts)) for parts in zip(audio.training, audio.held_out, strict=True)
    )
    assert len(first) == len(second) == 3000
    inside = slice(200, -200)  # the filters' ends differ
    assert (
        abs(first - second)[inside].max() < 0.04
    )  # of a tune of 440 Hz and height 0.61, in codes of up to 0.014


def test_corrupt_sounds_are_named_and_left_out_only_when_asked(tmp_path, sound):
    folder = tmp_path / "sounds"
    folder.mkdir()
    sound.rename(folder / "good.wav")
    (folder / "bad.wav").write_bytes(b"RIFF")
    with pytest.raises(
        InputError, match=r"bad\.wav is not a wav file.*leave such files out with --skip-corrupt"
    ):
        run(tmp_path / "out", "wavenet", folder)
    result = run(tmp_path / "out", "wavenet", folder, skip_corrupt=True)
    assert result["files"] == ["good.wav"]
    assert "skipped: " in result["printed"]
    (folder / "good.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"none of its 2 wav files can be read; the first: .*bad"):
        load_audio(str(folder), 0.1, 64, skip_corrupt=True)


def test_wav_files_of_8_and_16_bits_and_several_channels(tmp_path):
    samples = tune()
    rate, x = read_wav(write_wav(tmp_path / "a.wav", samples))
    assert rate == 8000
    np.testing.assert_array_equal(x, samples / 32768)
    both = np.stack([samples, -samples // 2], 1)
    np.testing.assert_allclose(
        read_wav(write_wav(tmp_path / "b.wav", both, channels=2))[1], both.mean(1) / 32768
    )
    eight = np.array([0, 128, 255], np.uint8)
    np.testing.assert_array_equal(
        read_wav(write_wav(tmp_path / "c.wav", eight, width=1))[1], [-1, 0, 127 / 128]
    )
    codes = mu_law(x)
    (tmp_path / "d.wav").write_bytes(wav_bytes(codes, 8000))
    again = read_wav(tmp_path / "d.wav")[1]
    np.testing.assert_array_equal(mu_law(again), codes)


def test_windows_stay_within_a_file_and_held_out_parts_are_in_none(tmp_path):
    for i in range(3):
        write_wav(
            tmp_path / f"{i}.wav",
            np.full(100 + 50 * i, 1000 * (i + 1), "<i2") + np.arange(100 + 50 * i, dtype="<i2"),
        )
    audio = load_audio(str(tmp_path), 0.3, 40)
    assert audio.names == ("0.wav", "1.wav", "2.wav")
    assert [len(part) for part in audio.training] == [70, 105, 140]
    batch = audio.batch(0, 3, 500).input_ids
    assert batch.equal(audio.batch(0, 3, 500).input_ids)
    assert not batch.equal(audio.batch(0, 4, 500).input_ids)
    wholes = [part.astype(np.int64) for part in audio.training]
    for row in batch[:50].numpy():
        assert any(
            (np.lib.stride_tricks.sliding_window_view(part, 40) == row).all(1).any() for part in wholes
        )
    # of 31, 66 and 101 places
    starts = [int((batch[:, 0] == part[0]).sum()) for part in wholes]
    assert all(starts)
    windows = audio.validation(100).input_ids
    assert windows.shape == (2, 40)
    assert audio.by_frequency() < 8


def test_wavenet_beats_frequencies_on_a_tone(tmp_path, sound):
    result = run(tmp_path / "out", "wavenet", sound, steps=40, batch_size=4, lr=2e-2)
    bits = result["results"]["kernelzoo"]["metrics"]["bits_per_sample"]
    history = result["results"]["kernelzoo"]["history"]
    assert bits < result["baselines"]["by frequency"]["bits_per_sample"] - 0.5
    assert history[-1]["bits_per_sample"] == pytest.approx(history[-1]["val_loss"] / np.log(2))
    rate, made = read_wav(tmp_path / "out" / "sample.wav")
    assert (rate, len(made)) == (8000, 80)


def test_minutes_are_turned_into_steps_once(tmp_path, sound):
    whole = run(tmp_path, "wavenet", sound, steps=None, minutes=0.005, stop_at=1, options={"layers": 1})
    assert whole == {"stopped": True, "printed": whole["printed"]}
    steps = int(whole["printed"].split("stopped after step 1 of ")[1].split(";")[0])
    again = run(tmp_path, "wavenet", sound, steps=None, minutes=0.005, resume=True, options={"layers": 1})
    assert again["steps"] == again["results"]["kernelzoo"]["step"] == steps > 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda p: p.write_bytes(b"ID3 and so on"),
            r"tune\.wav is not a wav file: it does not begin with RIFF",
        ),
        (
            lambda p: p.write_bytes(p.read_bytes()[:40]),
            r"tune\.wav is not a whole wav file: it ends before its data",
        ),
        (lambda p: p.write_bytes(b""), r"tune\.wav is not a wav file"),
        (
            lambda p: p.write_bytes(p.read_bytes()[:-100]),
            r"tune\.wav is truncated: its head says 2000 samples",
        ),
        (lambda p: riff(p, 1, 20, b"12345"), r"tune\.wav holds sound of format 1 with 20 bits a sample; PCM"),
        (lambda p: riff(p, 2, 4, b"adpcm"), r"tune\.wav holds sound of format 2 with 4 bits a sample; PCM"),
        (lambda p: riff(p, 3, 32, b"\xff" * 800), r"tune\.wav holds samples that are NaN or infinite"),
        (
            lambda p: write_wav(p, tune(0.01)),
            "of the longest file 72 samples are trained on|8 samples are held out",
        ),
        (lambda p: write_wav(p, np.zeros(2000, "<i2")), "is silent where it is trained on"),
        (lambda p: p.unlink(), "no such wav file or folder"),
    ],
    ids=["foreign", "head", "empty", "truncated", "20-bit", "adpcm", "nan", "short", "silent", "missing"],
)
def test_bad_sound(tmp_path, sound, spoil, message):
    spoil(sound)
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", "wavenet", sound)
    assert not (tmp_path / "out").exists()


def test_bad_folders_of_sound(tmp_path, sound):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.wav file"):
        load_audio(str(tmp_path / "empty"), 0.1, 64)
    write_wav(tmp_path / "zz.wav", tune(), rate=16000)
    with pytest.raises(
        InputError, match=r"tune\.wav has 8000 samples a second but .*zz\.wav has 16000; --sample-rate N"
    ):
        load_audio(str(tmp_path), 0.1, 64)


def test_player_remembers_the_latest_moves_and_what_ended_by_itself(short):
    from kernelzoo.train.play import Memory

    memory = Memory((2,), np.dtype(np.float32), capacity=4)
    for i in range(6):
        memory.add(seen=[i, i], then=[i + 1, i + 1], action=i % 2, reward=1.0, over=i == 5)
    assert len(memory) == 4
    drawn = memory.draw(200, np.random.default_rng(0))
    assert drawn["seen"][:, 0].unique().tolist() == [2, 3, 4, 5]
    assert drawn["over"].equal((drawn["seen"][:, 0] == 5).float())
    assert drawn["then"].equal(drawn["seen"] + 1)
    again = Memory((2,), np.dtype(np.float32), capacity=4)
    again.restore(memory.state())
    again.add(seen=[9, 9], then=[9, 9], action=0, reward=0, over=True)
    memory.add(seen=[9, 9], then=[9, 9], action=0, reward=0, over=True)
    assert all((again.parts[name] == memory.parts[name]).all() for name in memory.parts)


def test_episodes_side_by_side_are_those_played_alone(short):
    from kernelzoo.train.play import play

    model = zoo.create("dqn", num_actions=2, observation=4, hidden=(8,)).eval()
    together = play(model, "cartpole", 3, 0, 4)
    assert together.tolist() == [play(model, "cartpole", 3, i, 1)[0] for i in range(4)]


def test_game_is_won_early_and_the_best_weights_are_kept(tmp_path, short, monkeypatch):
    from kernelzoo.train import play

    scores = iter([10.0, 40.0, 480.0])
    judged = play.play
    monkeypatch.setattr(
        play, "play", lambda *how: np.full(2, next(scores)) if how[3] == play.FAR else judged(*how)
    )
    result = run(tmp_path, "dqn", steps=30, eval_every=1)
    ours = result["results"]["kernelzoo"]
    assert [row["return"] for row in ours["history"]] == [10.0, 40.0, 480.0]
    assert (ours["step"], ours["metrics"]["return"]) == (3, 480.0)
    assert result["episodes"]["count"] == 3
    assert "mean return" in result["printed"]


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("dcgan", {"data": "nowhere"}, "no images are called 'nowhere'"),
        ("dcgan", {"options": {"image_size": 16}}, "needs image_size=8; leave the option out"),
        ("dcgan", {"options": {"widht": 3}}, "dcgan has no option 'widht'"),
        ("dcgan", {"epochs": 3}, "--epochs means nothing to dcgan, which learns from images"),
        ("dcgan", {"task": "classify"}, "--task: dcgan makes images and has no other task"),
        ("wavenet", {"sample_rate": 0}, "--sample-rate must be at least 1 a second, got 0"),
        ("dcgan", {"sample_rate": 8000}, "--sample-rate means nothing to dcgan"),
        ("wavenet", {"minutes": 1}, "--steps and --minutes both"),
        ("wavenet", {"batch_size": 3, "accumulate": 2}, "--batch-size 3 .* does not split"),
        ("wavenet", {"options": {"layers": 0}}, "wavenet: layers is 0; expected 1 or more"),
        ("dqn", {"env": "CartPol-v1"}, "--env CartPol-v1: "),
        ("dqn", {"env": "Pendulum-v1"}, "takes Box.*; expected a Box and a Discrete"),
        ("dqn", {"options": {"observation": 5}}, "needs observation=4; leave the option out"),
        ("dqn", {"compare": "scratch"}, "--compare knows torch, got 'scratch'"),
    ],
)
def test_bad_input(tmp_path, sound, short, model, change, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", model, sound, **change)
    assert not (tmp_path / "out").exists()
