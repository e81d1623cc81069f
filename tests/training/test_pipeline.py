"""The commands of training as their users meet them: whole processes, killed and resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

pytest.importorskip("torch")
pytest.importorskip("hydra")
pytest.importorskip("lightning_fabric")
pytest.importorskip("onnxscript")

from fake_hub import Hub, fake_hub
from train_process import TrainingProcess

from tfswa_sep.evaluation.metrics import sdr
from training.configuration import load_config
from training.release import publish
from training.train import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning"),  # of musdb and stempeg
]
ROOT = Path(__file__).resolve().parents[2]
RATE = 44_100
STEMS = ("drums", "bass", "other", "vocals")


def made_up_song(seed: int, seconds: float) -> dict[str, NDArray[np.float32]]:
    """Four stems (n, 2) that sound a little like theirs: bursts, a low line, chords, a wavering voice."""
    random, n = np.random.default_rng(seed), round(seconds * RATE)
    t, beat = np.arange(n) / RATE, 60 / random.uniform(90, 140)
    place = np.arange(n) % round(beat * RATE) / RATE
    note = np.repeat(random.choice([0, 2, 4, 7, 9], round(seconds / beat) + 1), round(beat * RATE))[:n]
    drums = random.standard_normal(n) * np.exp(-place * 30)
    bass = np.sign(np.sin(2 * np.pi * np.cumsum(55 * 2 ** (note / 12)) / RATE)) * 0.5
    chord = sum(np.sin(2 * np.pi * np.cumsum(f * 2 ** (note / 12)) / RATE) for f in (330, 415, 495))
    pitch = 700 * 2 ** ((note[::-1] + 0.4 * np.sin(2 * np.pi * 5.5 * t)) / 12)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 6))
    waves = {"drums": drums, "bass": bass, "other": chord / 2, "vocals": voice}
    return {
        name: (0.1 * np.stack([w, w * random.uniform(0.7, 1)], axis=1)).astype(np.float32)
        for name, w in waves.items()
    }


def write_musdb(root: Path, *, is_wav: bool, seconds: float = 10.0) -> None:
    """Three songs to train on, one that validates by the official split, and one held out."""
    names = [*("One", "Two", "Three"), "Actions - One Minute Smile"]
    for seed, (subset, name) in enumerate([*(("train", name) for name in names), ("test", "Held out")]):
        waves = made_up_song(seed, seconds)
        folder = root / subset
        if is_wav:
            (folder / name).mkdir(parents=True)
            mixture = np.sum(list(waves.values()), axis=0)
            for stem, wave in {"mixture": mixture, **waves}.items():
                soundfile.write(folder / name / f"{stem}.wav", wave, RATE)
        else:
            import stempeg

            folder.mkdir(parents=True, exist_ok=True)
            streams = np.stack([sum(waves.values()), *waves.values()])
            stempeg.write_stems(str(folder / f"{name}.stem.mp4"), streams, sample_rate=RATE)


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "TFSWA_CACHE": os.devnull, "PYTHONPATH": str(ROOT)}


def run(words: list[str]) -> None:
    """Run to the end."""
    done = subprocess.run(words, cwd=ROOT, check=False, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]


def losses(out: Path) -> dict[int, float]:
    """Step -> loss, as TensorBoard has it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    record.Reload()
    return {event.step: event.value for event in record.Scalars("train/loss")}


@pytest.fixture
def musdb(tmp_path: Path) -> Path:
    """A folder for MUSDB18, where what reads it is installed."""
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        pytest.skip("musdb wants ffmpeg")
    return tmp_path / "musdb"


@pytest.mark.longest
def test_a_killed_run_resumes_bit_for_bit(musdb: Path, tmp_path: Path, tiny: None) -> None:
    write_musdb(musdb, is_wav=True, seconds=3.0)

    def words(out: Path) -> list[str]:
        return [
            "data=musdb18hq", f"data.root={musdb}", f"data.cache={tmp_path}/cache", "data.seconds=0.5",
            "data.build_workers=1", "training=debug", "training.precision=32-true", "training.threads=1",
            "training.accelerator=cpu", "training.log_every=1", "training.steps=8", "training.save_every=2",
            "training.validate_every=100", f"out={out}",
        ]  # fmt: skip

    train(load_config([*words(tmp_path / "whole"), "training.workers=0"]))
    whole = losses(tmp_path / "whole")
    assert sorted(whole) == list(range(1, 9))
    first, second = sorted(np.random.default_rng().choice(range(3, 8), size=2, replace=False).tolist())
    for kill_at in (first, second, None):
        with TrainingProcess(words(tmp_path / "parts"), environment={"TFSWA_CACHE": os.devnull}) as training:
            for line in training.output:
                if kill_at is not None and line.startswith(f"step {kill_at} loss"):
                    training.send_signal(signal.SIGKILL)
                    break
            said = training.output.read()
        assert training.exit_code == (0 if kill_at is None else -signal.SIGKILL), said
    assert losses(tmp_path / "parts") == whole, f"killed at {first} and {second}"


@pytest.mark.longest
def test_a_small_run_beats_the_mixture(musdb: Path, tmp_path: Path) -> None:
    """MUSDB18's own files; the model is published, and separates with the command."""
    write_musdb(musdb, is_wav=False, seconds=3.0)
    words = [
        sys.executable, "-m", "training.train", "training=debug", "data=musdb18", f"data.root={musdb}",
        "data.seconds=0.7", f"data.cache={tmp_path / 'cache'}", f"out={tmp_path / 'run'}",
        "model.changes.dims=[8,12,16,16]", "model.changes.convs=[1,1,1,1]", "model.changes.attentions=[0,0,0,1]",
        "model.changes.heads=2", "model.changes.head_dim=8", "model.changes.segment_samples=31744",
        "model.changes.margin_samples=4096", "training.learning_rate=1.0e-2", "training.precision=32-true",
        "training.threads=1", "training.workers=0", "training.steps=36", "training.validate_every=36",
    ]  # fmt: skip
    run(words)
    published = [str(tmp_path / "run/last.ckpt"), "--name", "tried", "--license", "cc0-1.0"]
    published += ["--data", "made-up songs", "--out", str(tmp_path / "published")]
    assert publish.main(published) == 0
    truth = made_up_song(4, 3.0)  # as the held-out song is; AAC took a little
    mixture = np.sum(list(truth.values()), axis=0)
    soundfile.write(tmp_path / "song.wav", mixture, RATE, subtype="FLOAT")
    separate = [str(Path(sys.executable).parent / "tfswa-sep"), str(tmp_path / "song.wav"), "--quiet"]
    separate += ["--model", str(tmp_path / "published/tried.onnx"), "--out", str(tmp_path / "stems")]
    run(separate)
    gains = {}
    for stem in STEMS:
        estimate, _ = soundfile.read(tmp_path / "stems/song" / f"{stem}.wav", dtype="float32")
        reached, before = sdr(truth[stem].T, estimate.T), sdr(truth[stem].T, mixture.T)
        quarter = sdr(truth[stem].T, mixture.T / 4)  # what a network that knows nothing gives
        assert reached is not None and before is not None and quarter is not None
        gains[stem] = reached - max(before, quarter)
    assert min(gains.values()) > 3 and np.mean(list(gains.values())) > 5, gains


def commands_of(page: str) -> str:
    """The blocks of commands, in order; what a paragraph "(Laptop: ...)" sets replaces or follows the block above."""
    script: list[str] = []
    for fenced, laptop in re.findall(r"^```bash\n(.*?)^```$|^\(Laptop: (.*?)(?=\n\n)", page, re.M | re.S):
        script += fenced.splitlines()
        for code in re.findall(r"`([^`]+)`", laptop):
            name, equals, _ = code.partition("=")
            if equals and name.isupper():
                places = [place for place, line in enumerate(script) if line.startswith(f"{name}=")]
                script[places[-1]] = code
            elif code.startswith("python "):
                script.append(code)
    return "\n".join(script)


@pytest.mark.proof
def test_the_page_on_training_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """In an environment of its own, which pip fills, with made-up songs and a hub on this machine."""
    checkout = tmp_path / "checkout"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    debug = checkout / "training/configs/training/debug.yaml"
    debug.write_text(debug.read_text().replace("steps: 60", "steps: 4").replace("every: 30", "every: 2"))
    write_musdb(checkout / "musdb18", is_wav=False, seconds=7.0)  # so that musdb downloads nothing
    servers = [
        'tensorboard() { timeout 20 tensorboard --port 0 "$@" || [ $? = 124 ]; }',
        "hf() { true; }",  # logs in
    ]
    page = commands_of((ROOT / "docs/training.md").read_text("utf-8")).replace("OWNER/NAME", "org/tried")
    (tmp_path / "page.sh").write_text("\n".join([*servers, "set -eux", page]))
    own = {"PIP_CONSTRAINT": str(ROOT / "constraints/torch213.txt"), "OMP_NUM_THREADS": "1"}
    own["TFSWA_CACHE"] = str(tmp_path / "cache")
    with fake_hub(tmp_path / "home") as environment:
        inherited = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        done = subprocess.run(
            ["bash", str(tmp_path / "page.sh")], cwd=checkout, env=inherited | environment | own
        )
    shutil.rmtree(checkout / ".venv", ignore_errors=True)  # a gigabyte, which pytest would keep
    assert done.returncode == 0
    assert json.loads((checkout / "runs/debug/run.json").read_text())[0]["processes"] == 2
    assert "global SDR" in (checkout / "published/README.md").read_text()
    assert {"mine.onnx", "mine.safetensors", "README.md"} == set(Hub.files)
