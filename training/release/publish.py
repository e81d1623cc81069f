"""Publish a checkpoint: `python -m training.release.publish CHECKPOINT --name N --license L --data TEXT`.

Writes these files to --out; nothing is uploaded without --repo:

    NAME.onnx, NAME.safetensors    the model, both compared as in training.release.export
    README.md                      the model card: data, licence, scores (from `tfswa-sep eval --json`)
    models.toml                    the registry entry; with --repo it names the commit

Scores must be those of a published file: publish without scores, score the file, then publish again with
--scores. The same checkpoint always gives the same files; scores of any other file are rejected.

--repo OWNER/NAME uploads the files and the card to Hugging Face, using `hf auth login` or HF_TOKEN.
"""

from __future__ import annotations

import argparse
import hashlib
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
from tfswa_sep.registry.models_toml import read_models
from training.release.export import export_onnx, export_safetensors, load_checkpoint, round_to_half

BACKENDS = {"onnx": ".onnx", "torch": ".safetensors"}


@dataclass(frozen=True)
class Scores:
    """What one evaluation found for one of the files."""

    means: dict[str, float]  # stem -> mean over the songs of the global SDR, dB: what models.toml holds
    table: str  # Markdown, with the songs, the metric and how it was averaged


def read_scores(path: Path, stems: Sequence[str], files: Mapping[str, str]) -> Scores:
    """The scores that `tfswa-sep eval --json` gave to one of `files`.

    Args:
        path: The record.
        stems: The model's.
        files: SHA-256 -> file name, of what is published.

    Raises:
        InputError: The file is no such record, or one of other models only.
    """
    evaluation = read_evaluation(path)
    scored = next((method for method in evaluation.methods if method.sha256 in files), None)
    if scored is None:
        wanted = " or ".join(f"{name} (SHA-256 {digest[:12]}...)" for digest, name in files.items())
        raise InputError(
            f"{path} holds no scores of {wanted}: score that file with `tfswa-sep eval --model FILE --json {path}`"
        )
    means, rows = {}, []
    official = "museval_sdr" in scored.metrics
    for stem in stems:
        mean, songs = scored.mean(stem)
        if mean is None or mean["sdr"] is None:
            continue
        means[stem] = round(mean["sdr"], 2)
        median = scored.median(stem)[0] if official else None
        rows.append(
            [
                stem,
                str(songs),
                *([_decibels(median["museval_sdr"])] if median else []),
                _decibels(mean["sdr"]),
            ]
        )
    columns = ["stem", "songs", *(["SDR v4"] if official else []), "global SDR"]
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    counted = sum(not song.apart for song in scored.songs)
    protocol = "Global SDR: one ratio per song, averaged (mean) over the songs."
    if official:
        protocol = (
            "SDR v4: museval's (BSSEval v4), the median over frames of 1 s, then over the songs. " + protocol
        )
    version = evaluation.versions.get("tfswa-sep", "of an unknown version")
    computed = f"{scored.backend} {scored.precision or ''}".strip()
    return Scores(
        means,
        f"In dB, of `{files[scored.sha256 or '']}` on {evaluation.data} ({counted} songs), measured with tfswa-sep "
        f"{version} ({computed}) on {evaluation.date[:10]}. {protocol}\n\n{table}",
    )


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def registry_entry(
    name: str,
    config: ModelConfig,
    files: dict[str, tuple[str, Path]],
    *,
    summary: str,
    license_name: str,
    data: str,
    scores: Scores | None,
) -> str:
    """The lines of models.toml. files: backend -> where the file will be, and where it is now."""
    quoted = json.dumps  # JSON's strings and lists of strings are TOML's too
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
        content = path.read_bytes()
        lines += [
            "",
            f"[[models.{name}.files]]",
            f'backend = "{backend}"',
            f"where = {quoted(where)}",
            f'sha256 = "{hashlib.sha256(content).hexdigest()}"',
            f"bytes = {len(content)}",
        ]
    return "\n".join(lines) + "\n"


def model_card(
    name: str,
    config: ModelConfig,
    checkpoint: dict[str, Any],
    *,
    summary: str,
    license_name: str,
    data: str,
    scores: Scores | None,
    command: str,
) -> str:
    """README.md with the head that Hugging Face reads."""
    head = ModelCardData(
        license=license_name.lower(), library_name="tfswa-sep", pipeline_tag="audio-to-audio",
        tags=["music", "source-separation", "onnx", "safetensors"],
    )  # fmt: skip
    training = json.loads(checkpoint["config"])["training"] if "config" in checkpoint else {}
    recipe = ", ".join(
        f"{key} {training[key]}" for key in ("optimizer", "learning_rate", "batch_size") if key in training
    )
    return f"""---
{head.to_yaml()}
---

# {name}

{summary}. Stems: {", ".join(config.stems)}; {config.sample_rate} Hz, {config.channels} channels.

```bash
pip install tfswa-sep
tfswa-sep song.mp3 --model {name}.onnx
```

## Scores

{scores.table if scores else "Not measured yet."}

## Training

Data: {data}. {checkpoint["step"]} steps{f" ({recipe})" if recipe else ""}. Files were made by

```bash
{command}
```

## Licence

{license_name}
"""


@contextmanager
def told_plainly(repo: str) -> Iterator[None]:
    """Turns what the server or the network says against an upload into a ModelError."""
    try:
        yield
    except (HfHubHTTPError, OSError) as error:
        words = " ".join(str(error).split())
        raise ModelError(
            f"cannot upload to {repo}: {words} (is HF_TOKEN set, and does it have write access?)"
        ) from error


def publish(options: argparse.Namespace, *, command: str) -> None:
    """Write the files, and push them if asked to. Raises TfswaError."""
    out, name = options.out, options.name
    network, checkpoint = load_checkpoint(options.checkpoint)
    config = network.config
    if options.repo:  # before the work, so that a wrong token is told at once
        with told_plainly(options.repo):
            HfApi().create_repo(options.repo, private=options.private, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    round_to_half(network)
    paths = {backend: out / f"{name}{suffix}" for backend, suffix in BACKENDS.items()}
    difference = export_onnx(network, paths["onnx"], name=name, license_name=options.license)
    export_safetensors(network, paths["torch"], name=name, license_name=options.license)
    print(f"{paths['onnx']}: step {checkpoint['step']}, differs from torch by {difference:.1e}")
    scores = None
    if options.scores:
        digests = {hashlib.sha256(path.read_bytes()).hexdigest(): path.name for path in paths.values()}
        scores = read_scores(options.scores, config.stems, digests)
    facts = {
        "summary": options.summary,
        "license_name": options.license,
        "data": options.data,
        "scores": scores,
    }
    card = model_card(name, config, checkpoint, command=command, **facts)
    (out / "README.md").write_text(card, encoding="utf-8")
    where = {backend: path.name for backend, path in paths.items()}
    if options.repo:
        names = [*where.values(), "README.md"]
        with told_plainly(options.repo):
            commit = str(
                HfApi().upload_folder(repo_id=options.repo, folder_path=out, allow_patterns=names).oid
            )
        where = {backend: f"hf://{options.repo}@{commit}/{file}" for backend, file in where.items()}
        print(f"https://huggingface.co/{options.repo}/tree/{commit}")
    files = {backend: (place, paths[backend]) for backend, place in where.items()}
    entry = out / "models.toml"
    entry.write_text(registry_entry(name, config, files, **facts), encoding="utf-8")
    read_models(entry)  # raises where the registry would not understand it
    print(f"{entry}: add these lines to models.toml to use `--model {name}`")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, and publish; returns the exit code."""
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
