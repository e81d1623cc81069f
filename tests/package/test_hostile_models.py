"""Hostile models and lists of models: each ends in one clear line and exit code 4, quickly, and not obeyed.

The table runs the real command, see faults.py.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import Call, Fault, song

pytest.importorskip("torch")

from tfswa_sep.errors import ModelError
from tfswa_sep.inference.torch_backend import load_network
from tfswa_sep.model.config import BRANCHES, ModelConfig

MODEL = ModelConfig(
    features="complex",
    masks="complex",
    tdfs=(),
    branches=BRANCHES,
    dims=(8, 8),
    convs=(1, 1),
    attentions=(0, 0),
    head_dim=8,
)
METADATA: dict[str, Any] = {
    "format": 2,
    "name": "tiny",
    "architecture": "tiny",
    "license": "MIT",
    "stems": list(MODEL.stems),
    "sample_rate": MODEL.sample_rate,
    "channels": 2,
    "n_fft": MODEL.n_fft,
    "hop": MODEL.hop,
    "segment_samples": MODEL.segment_samples,
    "margin_samples": MODEL.margin_samples,
}


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file from its parts, whatever they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def with_model(name: str, content: bytes) -> Callable[[Path], None]:
    """A row's `prepare`: a song, and this file as the model."""

    def prepare(folder: Path) -> None:
        song()(folder)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return prepare


def with_list(text: str) -> Callable[[Path], None]:
    """A row's `prepare`: a song, and this models.toml in the folder for settings."""

    def prepare(folder: Path) -> None:
        song()(folder)
        (folder / "models.toml").write_text(text, encoding="utf-8")

    return prepare


def fault(name: str, model: str, content: bytes, *says: str) -> Fault:
    typed = ["song.wav", "--model", model]
    return Fault(name=name, prepare=with_model(model, content), typed=typed, code=4, says=[model, *says])


def toml_fault(name: str, text: str, *says: str) -> Fault:
    return Fault(
        name=name,
        prepare=with_list(text),
        typed=["song.wav"],
        code=4,
        says=["models.toml", *says],
        env={"TFSWA_CONFIG": "."},
    )


def entry(**changes: str) -> str:
    """A models.toml with one model, some of whose lines are changed."""
    model = {"summary": '"x"', "stems": '["vocals"]', "sample_rate": "44100", "channels": "2",
             "license": '"MIT"', "training_data": '"none"'}  # fmt: skip
    file = {"backend": '"onnx"', "where": '"a.onnx"', "sha256": f'"{"0" * 64}"', "bytes": "5"}
    lines = ["[models.mine]", *(f"{key} = {changes.get(key, value)}" for key, value in model.items())]
    lines += ["[[models.mine.files]]", *(f"{key} = {changes.get(key, value)}" for key, value in file.items())]
    return "\n".join(lines)


def address_fault(name: str, address: str, *says: str, code: int = 4, offline: bool = False) -> Fault:
    typed = ["song.wav", "--model", address, *(["--offline"] if offline else [])]
    env = {"TFSWA_CONFIG": "settings", "TFSWA_CACHE": "cache", "no_proxy": "127.0.0.1"}
    return Fault(name=name, prepare=song(), typed=typed, code=code, says=says, env=env)


class Bomb:
    """A pickle that would leave a file behind if anything unpickled it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("obeyed", "w")


ROWS = [
    fault("pickle", "m.safetensors", pickle.dumps(Bomb()), "pickle", "not opened"),
    fault("torch's zip", "m.onnx", b"PK\x03\x04 archive/data.pkl", "pickle", "not opened"),
    fault("a .pt", "m.pt", b"PK\x03\x04", "can run code"),
    fault("an empty model", "m.onnx", b"", "is not a valid .onnx file"),
    fault("half a protobuf", "m.onnx", b"\x08\x08\x12\x07pytorch\x3a\xff\xff\xff\xff\x0f", "damaged"),
    fault(
        "header of 8 EiB", "m.safetensors", safetensors({}, length=1 << 63), "not a valid .safetensors file"
    ),
    fault(
        "header of 50 MB",
        "m.safetensors",
        safetensors(b'{"a":' + b" " * 50_000_000),
        "not a valid .safetensors file",
    ),
    fault("header that is no JSON", "m.safetensors", safetensors(b"{" * 1000), "damaged"),
    fault("no metadata", "m.safetensors", safetensors({}), "not a tfswa-sep model"),
    fault(
        "weights beyond the end",
        "m.safetensors",
        safetensors({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
        "damaged",
    ),
    Fault(
        name="a folder as model",
        prepare=with_model("m.onnx/inside", b""),
        typed=["song.wav", "--model", "m.onnx"],
        code=4,
        says=["no such model file", "m.onnx"],
    ),
    toml_fault("a list that is no TOML", "[models", "cannot read"),
    toml_fault("a list that never ends", "a = " + "[" * 20_000, "cannot read"),
    toml_fault("a list of 2 MB", "#" * (2 << 20), "larger than 1 MB"),
    toml_fault("a path that climbs", entry(where='"../../etc/a.onnx"'), "must not contain '..'"),
    toml_fault("a server's share", entry(where='"//evil/share/a.onnx"'), "network share"),
    toml_fault("an escape sequence", entry(summary=r'"\u001b]0;owned\u0007"'), "control characters"),
    toml_fault("a backend of its own", entry(backend='"python"'), "unknown backend"),
    toml_fault("a plain http address", entry(where='"http://example.org/a.onnx"'), "https://"),
    address_fault("an unknown model", "smal", "did you mean 'small'?"),
    address_fault("no network allowed", "hf://org/repo", "offline mode is on", offline=True),
    address_fault("no server there", "http://127.0.0.1:1/a.onnx", "is this machine online?"),
    address_fault("an address on disk", "file:///etc/a.onnx", "must begin with https:// or hf://"),
    address_fault("a hash that is none", "https://example.org/a.onnx#sha256=1", "64 lower-case hex digits"),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ROWS, ids=str)
def test_a_hostile_model_is_reported_in_one_line(fault: Fault, tmp_path: Path, call: Call) -> None:
    if "cache" in fault.env.values():  # the lock file of a download remains
        fault = Fault(**{**vars(fault), "env": {**fault.env, "TFSWA_CACHE": f"{tmp_path}-cache"}})
    fault.check(tmp_path, call)


# --- weights that are well-formed, and yet no model


def write_weights(path: Path, weights: dict[str, Any], **changes: Any) -> Path:
    from safetensors.numpy import save_file

    fields = METADATA | {"config": MODEL.to_json()} | changes
    save_file(weights, path, {"tfswa_sep": json.dumps(fields)})
    return path


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    from tfswa_sep.model.unet import TfswaUNet

    return {key: value.numpy().copy() for key, value in TfswaUNet(MODEL).state_dict().items()}


def test_good_weights_are_loaded(weights: dict[str, Any], tmp_path: Path) -> None:
    network, metadata = load_network(write_weights(tmp_path / "m.safetensors", weights))
    assert metadata.stems == MODEL.stems
    for key, value in network.state_dict().items():
        assert np.array_equal(value.numpy(), weights[key])


@pytest.mark.parametrize(
    "change",
    [
        {"dims": [8, 1 << 40]},
        {"dims": [10_000_000, 10_000_000]},
        {"dims": []},
        {"dims": ["8", "8"]},
        {"dims": [-8, -8]},
        {"dims": 8},
        {"convs": [1, 1_000_000_000]},
        {"convs": [1, 5]},
        {"attentions": [1_000_000, 1_000_000]},
        {"bands": [{"start": 0, "stop": 1024, "stride": 0}]},
        {"bands": [{"start": 0, "stop": 1024, "stride": 2, "run": "rm"}]},
        {"bands": [{"start": 0, "stop": 1024, "stride": 2, "taps": 2}]},
        {"bands": [{"start": 0, "stop": 1024, "stride": 2, "taps": 1 << 40}]},
        {"bands": [{"start": 0, "stop": 1024, "stride": 2, "taps": -1}]},
        {"bands": [[]]},
        {"tdfs": [8]},
        {"tdfs": [1 << 40, 8]},
        {"tdfs": [-1, 8]},
        {"bands": None},
        {"head_dim": 1 << 50},
        {"stems": ["vocals"] * 100_000},
        {"split": "hash"},
        {"n_fft": 512},
        {"unknown": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_hostile_architecture_is_refused(
    weights: dict[str, Any], tmp_path: Path, change: dict[str, Any]
) -> None:
    path = write_weights(tmp_path / "m.safetensors", weights, config=MODEL.to_json() | change)
    with pytest.raises(ModelError, match=r"m\.safetensors is damaged") as caught:
        load_network(path)
    assert "\n" not in str(caught.value)


def test_hostile_weights_are_refused(weights: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    name = next(key for key, value in weights.items() if value.ndim > 1)
    for bad in (np.nan, np.inf):
        wrong = {key: value.copy() for key, value in weights.items()}
        wrong[name].flat[3] = bad
        with pytest.raises(ModelError, match="NaN or infinite"):
            load_network(write_weights(path, wrong))
    missing = {key: value for key, value in weights.items() if key != name}
    for wrong in (
        missing,
        weights | {"extra": np.zeros(1, np.float32)},
        weights | {name: weights[name].T.copy()},
    ):
        with pytest.raises(ModelError, match="do not match"):
            load_network(write_weights(path, wrong))
    for change in ({"stems": ["vocals"]}, {"sample_rate": 48_000}, {"segment_samples": 1 << 24, "hop": 16}):
        with pytest.raises(ModelError, match=r"m\.safetensors"):
            load_network(write_weights(path, weights, **change))


def test_an_onnx_model_reads_no_file_beside_it(onnx_model: Callable[..., Path], tmp_path: Path) -> None:
    """ONNX weights may lie in another file; ONNX Runtime refuses those outside of the model's folder."""
    import onnx

    from tfswa_sep.inference.onnx_backend import OnnxBackend

    model = onnx.load(onnx_model())
    (tmp_path / "secret").write_bytes(np.full(4, 0.25, np.float32).tobytes())
    (shares,) = (tensor for tensor in model.graph.initializer if tensor.name == "shares")
    shares.ClearField("float_data")
    shares.data_location = onnx.TensorProto.EXTERNAL
    for place in ("../secret", str(tmp_path / "secret")):
        del shares.external_data[:]
        for key, value in {"location": place, "offset": "0", "length": "16"}.items():
            field = shares.external_data.add()
            field.key, field.value = key, value
        path = tmp_path / "inside" / "m.onnx"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match=r"m\.onnx is damaged"):
            OnnxBackend(path)
