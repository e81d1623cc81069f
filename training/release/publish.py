"""Publish a checkpoint: `python -m training.release.publish CHECKPOINT --name N --license L --data TEXT`.

Writes these files to --out:

    NAME.onnx, NAME.safetensors    the model
    README.md                      the model card: data, licence, scores (from `tfswa-sep eval --json`)
    models.toml                    the registry entry; with --repo it names the commit

Scores must be of one of these files: publish without scores, score the file, then publish again with --scores.
The same checkpoint always gives the same files.

--repo OWNER/NAME also uploads the model and its card to Hugging Face, using `hf auth login` or HF_TOKEN.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError

from tfswa_sep.cli.terminal import print_error
from tfswa_sep.errors import InputError, ModelError, TfswaError
from tfswa_sep.evaluation.results import read_evaluation
from tfswa_sep.model.config import ModelConfig
from tfswa_sep.registry.integrity import digest
from tfswa_sep.registry.models_toml import read_models
from training.release.export import export_onnx, export_safetensors, load_checkpoint, round_to_half

BACKENDS = {"onnx": ".onnx", "torch": ".safetensors"}


@dataclass(frozen=True)
class Scores:
    """The scores of a published file."""

    means: dict[str, float]  # stem -> mean over the songs of the global SDR in dB, for models.toml
    table: str  # Markdown, with the data, the metric and how it was averaged


def read_scores(path: Path, stems: Sequence[str], files: Mapping[str, str]) -> Scores:
    """Read the scores of a published file.

    Args:
        path: A file written by `tfswa-sep eval --json`.
        stems: The model's stems.
        files: SHA-256 -> name of each published file.

    Raises:
        InputError: The file cannot be read, or has only scores of other files.
    """
    evaluation = read_evaluation(path)
    scored = next((method for method in evaluation.methods if method.sha256 in files), None)
    if scored is None:
        names = " or ".join(f"{name} (SHA-256 {sha256[:12]}...)" for sha256, name in files.items())
        raise InputError(
            f"{path} has no scores of {names}: score that file with `tfswa-sep eval --model FILE --json {path}`"
        )
    means, rows = {}, []
    official = "museval_sdr" in scored.metrics
    for stem in stems:
        mean, songs = scored.mean(stem)
        if mean is None or mean["sdr"] is None:
            continue
        means[stem] = round(mean["sdr"], 2)
        median = scored.median(stem)[0] if official else None
        official_sdr = [_decibels(median["museval_sdr"])] if median else []
        rows.append([stem, str(songs), *official_sdr, _decibels(mean["sdr"])])
    columns = ["stem", "songs", *(["SDR v4"] if official else []), "global SDR"]
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    songs = sum(not song.apart for song in scored.songs)
    protocol = "Global SDR: one ratio per song, averaged (mean) over the songs."
    if official:
        protocol = (
            "SDR v4: museval's (BSSEval v4), the median over frames of 1 s, then over the songs. " + protocol
        )
    version = evaluation.versions.get("tfswa-sep", "of an unknown version")
    setting = f"{scored.backend} {scored.precision or ''}".strip()
    return Scores(
        means,
        f"In dB, of `{files[scored.sha256 or '']}` on {evaluation.data} ({songs} songs), measured with tfswa-sep "
        f"{version} ({setting}) on {evaluation.date[:10]}. {protocol}\n\n{table}",
    )


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def write_registry_entry(
    name: str,
    config: ModelConfig,
    files: dict[str, tuple[str, Path]],
    *,
    summary: str,
    license_name: str,
    data: str,
    scores: Scores | None,
) -> str:
    """Return an entry of models.toml. `files` maps each backend to the file's final and current location."""
    quoted = json.dumps  # JSON strings and lists are valid TOML
    lines = [
        f"[models.{name}]",
        f"summary = {quoted(summary)}",
        f"stems = {quoted(list(config.stems))}",
        f"sample_rate = {config.sample_rate}",
        f"channels = {config.channels}",
        f"license = {quoted(license_name)}",
        f"training_data = {quoted(data)}",
    ]
    if scores:
        lines += ["", f"[models.{name}.scores]", *(f"{quoted(k)} = {v:.2f}" for k, v in scores.means.items())]
    for backend, (where, path) in files.items():
        lines += [
            "",
            f"[[models.{name}.files]]",
            f'backend = "{backend}"',
            f"where = {quoted(where)}",
            f'sha256 = "{digest(path)}"',
            f"bytes = {path.stat().st_size}",
        ]
    return "\n".join(lines) + "\n"


def write_model_card(
    name: str,
    config: ModelConfig,
    checkpoint: dict[str, Any],
    *,
    summary: str,
    license_name: str,
    data: str,
    scores: Scores | None,
    command: str,
    repo: str | None = None,
) -> str:
    """Return README.md with the front matter for Hugging Face; `repo` is where the model is uploaded."""
    front_matter = ModelCardData(
        license=license_name.lower(), library_name="tfswa-sep", pipeline_tag="audio-to-audio",
        tags=["music", "source-separation", "onnx", "safetensors"],
    )  # fmt: skip
    training = json.loads(checkpoint["config"])["training"] if "config" in checkpoint else {}
    recipe = ", ".join(
        f"{key} {training[key]}" for key in ("optimizer", "learning_rate", "batch_size") if key in training
    )
    return f"""---
{front_matter.to_yaml()}
---

# {name}

{summary}. Stems: {", ".join(config.stems)}; {config.sample_rate} Hz, {config.channels} channels.

```bash
pip install tfswa-sep
tfswa-sep song.mp3 --model {f"hf://{repo}/{name}.onnx" if repo else f"{name}.onnx"}
```

## Scores

{scores.table if scores else "Not measured yet."}

## Training

Data: {data}. {checkpoint["step"]} steps{f" ({recipe})" if recipe else ""}. The files were created by

```bash
{command}
```

## Licence

{license_name}
"""


@contextmanager
def report_upload_errors(repo: str) -> Iterator[None]:
    """Turn server and network errors into a ModelError."""
    try:
        yield
    except (HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"cannot upload to {repo}: {reason} (is HF_TOKEN set, and does it have write access?)"
        ) from error


def publish(options: argparse.Namespace, *, command: str) -> None:
    """Write the files, and upload them with --repo. Raises TfswaError."""
    out, name = options.out, options.name
    network, checkpoint = load_checkpoint(options.checkpoint)
    config = network.config
    if options.repo:  # first, so that a wrong token is reported at once
        with report_upload_errors(options.repo):
            HfApi().create_repo(options.repo, private=options.private, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    round_to_half(network)
    paths = {backend: out / f"{name}{suffix}" for backend, suffix in BACKENDS.items()}
    difference = export_onnx(network, paths["onnx"], name=name, license_name=options.license)
    export_safetensors(network, paths["torch"], name=name, license_name=options.license)
    print(f"{paths['onnx']}: step {checkpoint['step']}, differs from torch by {difference:.1e}")
    scores = None
    if options.scores:
        names = {digest(path): path.name for path in paths.values()}
        scores = read_scores(options.scores, config.stems, names)
    facts = {
        "summary": options.summary,
        "license_name": options.license,
        "data": options.data,
        "scores": scores,
    }
    card = write_model_card(name, config, checkpoint, command=command, repo=options.repo, **facts)
    (out / "README.md").write_text(card, encoding="utf-8")
    where = {backend: path.name for backend, path in paths.items()}
    if options.repo:
        with report_upload_errors(options.repo):
            uploaded = HfApi().upload_folder(
                repo_id=options.repo, folder_path=out, allow_patterns=[*where.values(), "README.md"]
            )
        commit = str(uploaded.oid)
        where = {backend: f"hf://{options.repo}@{commit}/{file}" for backend, file in where.items()}
        print(f"https://huggingface.co/{options.repo}/tree/{commit}")
    files = {backend: (location, paths[backend]) for backend, location in where.items()}
    entry = out / "models.toml"
    entry.write_text(write_registry_entry(name, config, files, **facts), encoding="utf-8")
    read_models(entry)  # checks that the registry can read it
    print(f"{entry}: add these lines to models.toml to use `--model {name}`")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.release.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--name", required=True, help="model name: letters, digits, - and _")
    parser.add_argument(
        "--license", required=True, help="licence of the weights, an SPDX identifier such as cc-by-4.0"
    )
    parser.add_argument("--data", required=True, help="what the model was trained on")
    parser.add_argument("--summary", default="Separates a song into its stems")
    parser.add_argument(
        "--scores", type=Path, help="scores written by `tfswa-sep eval --model OUT/NAME.onnx --json FILE`"
    )
    parser.add_argument("--out", type=Path, default=Path("published"))
    parser.add_argument("--repo", help="Hugging Face repository to upload to, OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    if not options.name.replace("-", "").replace("_", "").isalnum():
        parser.error(f"--name {options.name!r} may hold letters, digits, - and _ only")
    try:
        publish(options, command=f"python -m training.release.publish {shlex.join(arguments)}")
    except (TfswaError, ValueError) as error:
        print_error(str(error))
        return error.exit_code if isinstance(error, TfswaError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
