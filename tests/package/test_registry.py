"""models.toml is read strictly, and no file is handed out that is not the one on record."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from model_server import BODY, COMMIT, SHA256
from platformdirs.api import PlatformDirsABC
from platformdirs.macos import MacOS
from platformdirs.unix import Unix

from tfswa_sep import registry
from tfswa_sep.errors import ModelError, OutputError, UsageError
from tfswa_sep.registry import ModelFile, ModelInfo, addresses, folders
from tfswa_sep.registry.models_toml import is_allowed_url

ENTRY = f"""
[models.tiny]
summary = "for tests"
stems = ["vocals", "other"]
sample_rate = 44100
channels = 2
license = "MIT"
training_data = "none"
default = true

[models.tiny.scores]
vocals = 6

[[models.tiny.files]]
backend = "onnx"
where = "tiny.onnx"
sha256 = "{SHA256}"
bytes = {len(BODY)}
"""


OUR_LIST = registry.PACKAGE.parent / "models.toml"


def model_of(where: str, *, sha256: str = SHA256, size: int = len(BODY)) -> ModelInfo:
    small = registry.default_model()
    return replace(small, name="tiny", files=(ModelFile("onnx", where, sha256, size),))


def write_registry(folder: Path, text: str = ENTRY) -> Path:
    path = folder / "models.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- reading models.toml


def test_our_own_registry_lists_the_bundled_default_and_its_file_is_whole() -> None:
    models = registry.load_registry()
    default = next(iter(models.values()))
    assert default.name == "small" and default.default
    assert default.stems == ("vocals", "drums", "bass", "other")
    for model in models.values():  # only models that exist are listed
        for file in model.files:
            if file.where.startswith("bundled:"):
                alone = replace(model, files=(file,))
                assert registry.fetch(alone, file.backend).parent == registry.WEIGHTS


def test_a_precision_chooses_among_a_models_files() -> None:
    small = model_of("bundled:tiny.onnx")
    wide, torch = (replace(small.files[0], backend=b, precision="fp32") for b in ("onnx", "torch"))
    narrow = replace(wide, where="bundled:tiny.int8.onnx", precision="int8")
    model = replace(small, files=(wide, torch, narrow))
    assert registry.with_precision(model, "fp32").files == (wide, torch)
    assert registry.with_precision(model, "int8").files == (narrow,)
    for made_for_it, first in ((True, (narrow, wide, torch)), (False, (wide, torch, narrow))):
        chosen = registry.with_precision(model, "auto", prefer_int8=made_for_it)
        assert chosen.files == first
        assert registry.with_precision(chosen, "auto", prefer_int8=made_for_it) == chosen
    with pytest.raises(ModelError, match=r"'tiny' has no int8 file: use --precision fp32"):
        registry.with_precision(replace(model, files=(wide,)), "int8")
    with pytest.raises(UsageError, match="unknown precision 'fp64': choose from auto, fp32, int8"):
        registry.with_precision(model, "fp64")
    assert registry.with_precision(small, "int8") == small  # a file of the user's own: nobody knows


def test_an_entry_is_read_completely(tmp_path: Path) -> None:
    (tmp_path / "tiny.onnx").write_bytes(BODY)
    model = registry.load_registry(write_registry(tmp_path))["tiny"]
    assert (model.stems, model.sample_rate, model.channels) == (("vocals", "other"), 44100, 2)
    assert model.scores == {"vocals": 6.0}
    assert (
        registry.fetch(model, "onnx") == tmp_path / "tiny.onnx"
    )  # a relative path starts beside models.toml


def test_a_bag_is_loaded_from_all_its_files(tmp_path: Path) -> None:
    head, marker, file = ENTRY.partition("[[models.tiny.files]]")
    assert marker
    bag = "".join(
        marker + file.replace("tiny.onnx", f"{name}.onnx") + f"\nweights = {weights}\n"
        for name, weights in (("a", [1, 0]), ("b", [0.5, 1]))
    )
    head = head.replace("[models.tiny]", '[models.tiny]\nsettings = { stems = ["a", "b"], gain = 1.5 }', 1)
    model = registry.load_registry(write_registry(tmp_path, head + bag))["tiny"]
    assert [file.weights for file in registry.files_for(model, "onnx")] == [(1, 0), (0.5, 1)]
    assert model.settings == {"stems": "a,b", "gain": "1.5"}
    alone = replace(model, files=tuple(replace(file, weights=()) for file in model.files))
    assert registry.files_for(alone, "onnx") == alone.files[:1] and not registry.files_for(model, "torch")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[models.tiny]", "[models.tiny", "cannot read"),
        ("[models.tiny]", "[extra]\na = 1\n[models.tiny]", "nothing else"),
        ("default = true", "default = false", "exactly one model"),
        ("default = true", 'default = true\nclass = "os.system"', "unknown key 'class'"),
        ('license = "MIT"\n', "", "'license' is missing"),
        ("sample_rate = 44100", 'sample_rate = "44100"', "sample_rate must be of type int"),
        ("channels = 2", "channels = true", "channels must be of type int"),
        ("vocals = 6", 'vocals = "good"', "scores must be numbers"),
        ('stems = ["vocals", "other"]', "stems = [1]", "list of names"),
        ('backend = "onnx"', 'backend = "pickle"', "unknown backend 'pickle'"),
        (SHA256, SHA256[:-1], "needs a sha256"),
        (f"bytes = {len(BODY)}", "bytes = 0", "needs a sha256"),
        ("tiny.onnx", "tiny.pt", "must end in .onnx"),
        ("tiny.onnx", "tiny.safetensors", "must end in .onnx"),
        ("tiny.onnx", "../tiny.onnx", "must not contain '..'"),
        ("tiny.onnx", "bundled:../tiny.onnx", "must not contain '..'"),
        ("tiny.onnx", "bundled:a/tiny.onnx", "followed by a file name"),
        ("tiny.onnx", "bundled:/etc/tiny.onnx", "followed by a file name"),
        ("tiny.onnx", "hf://org/repo@main/tiny.onnx", "40-digit commit"),
        ("tiny.onnx", f"hf://org/repo@{COMMIT}/../tiny.onnx", "must not contain '..'"),
        ("tiny.onnx", f"hf://org/repo@{COMMIT}//tiny.onnx", "40-digit commit"),
        ("tiny.onnx", "http://example.org/tiny.onnx", "https://"),
        ("tiny.onnx", "http://127.0.0.1.example.org/tiny.onnx", "https://"),
        ("tiny.onnx", "ftp://example.org/tiny.onnx", "https://"),
        ("tiny.onnx", "file:///etc/tiny.onnx", "https://"),
        ("tiny.onnx", "http://[/tiny.onnx", "must end in .onnx"),
        ("tiny.onnx", "//server/share/tiny.onnx", "network share"),
        ("tiny.onnx", r"\\\\server\\share\\tiny.onnx", "network share"),
        ("tiny.onnx", r"tiny\u0000.onnx", "control characters"),
        ('"for tests"', r'"\u001b[2Jfor tests"', "control characters"),
        ("vocals = 6", "vocals = nan", "scores must be numbers"),
        ("44100", "0x" + "f" * 5000, "out of range"),
        ("44100", "1" * 5000, "cannot read"),
        ("44100", "[" * 5000, "cannot read"),
        ("[models.tiny]", '[models."../tiny"]', "a name is at most 64 letters"),
        ("bytes =", "weights = [1]\nbytes =", "one weight per stem"),
        ("bytes =", "weights = [1, 0]\nbytes =", "no weight above 0 in any file"),
        ("bytes =", "weights = [1, 2]\nbytes =", "numbers from 0 to 1"),
        ("bytes =", "weights = [1, true]\nbytes =", "numbers from 0 to 1"),
        ("default = true", "default = true\nsettings.gain = [1]", "the setting gain must be"),
        ("default = true", "default = true\nsettings = 1", "settings must be of type dict"),
    ],
)
def test_invalid_entries_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in ENTRY
    path = write_registry(tmp_path, ENTRY.replace(old, new, 1))
    with pytest.raises(ModelError, match=message) as caught:
        registry.load_registry(path)
    assert str(path) in str(caught.value)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'smal': did you mean 'small'\? .*tfswa-sep models"):
        registry.find_model("smal")


# --- files of the user's own


def test_a_file_of_the_user_needs_no_entry(tmp_path: Path) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(BODY)
    model = registry.find_model(path)
    assert (model.name, model.stems, model.files[0].sha256) == ("mine", (), "")
    assert registry.fetch(model, "onnx") == path
    with pytest.raises(ModelError, match="no file for the torch backend, only onnx"):
        registry.fetch(model, "torch")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("zip.onnx", b"PK\x03\x04 a torch checkpoint", "pickle"),
        ("old.safetensors", b"\x80\x02}q\x00.", "pickle"),
        ("text.onnx", b"hello", "is not a valid .onnx file"),
        ("empty.onnx", b"", "is not a valid .onnx file"),
        ("cut.safetensors", (1000).to_bytes(8, "little") + b"{}", "is not a valid .safetensors file"),
        ("weights.pt", b"PK\x03\x04", "can run code"),
    ],
)
def test_a_file_that_is_not_a_model_is_not_opened(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        registry.fetch(registry.find_model(path), registry.SUFFIXES.get(path.suffix, "onnx"))


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model file"):
        registry.find_model(tmp_path / "none.onnx")


@pytest.mark.parametrize("damaged", [BODY[:-1], BODY[:-1] + b"x", None])
def test_a_damaged_bundled_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bytes | None
) -> None:
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    if damaged is not None:
        (tmp_path / "tiny.onnx").write_bytes(damaged)
    with pytest.raises(ModelError, match=r"not opened|missing"):
        registry.fetch(model_of("bundled:tiny.onnx"), "onnx")


def test_only_https_or_this_machine() -> None:
    allowed = ["https://example.org/a", "http://localhost:8000/a", "http://127.0.0.1/a", "http://[::1]:1/a"]
    refused = [
        "http://example.org/a",
        "http://localhost.example.org/a",
        "https:///a",
        "ftp://localhost/a",
        "a.onnx",
        "http://[",
    ]
    assert all(map(is_allowed_url, allowed))
    assert not any(map(is_allowed_url, refused))


# --- the user's own list


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TFSWA_CONFIG", str(tmp_path))
    return tmp_path


def test_the_users_own_list_comes_on_top(config: Path) -> None:
    (config / "tiny.onnx").write_bytes(BODY)
    write_registry(config)
    assert list(registry.load_registry())[:2] == ["tiny", "small"]
    assert registry.default_model().name == "tiny"  # its own default comes before ours
    assert registry.fetch(registry.find_model("tiny"), "onnx") == config / "tiny.onnx"
    write_registry(config, ENTRY.replace("default = true", "").replace("[models.tiny", "[models.small"))
    with pytest.raises(ModelError, match="exactly one model must have default"):  # it took our default's name
        registry.load_registry()


def test_a_broken_list_of_the_users_own_names_itself(config: Path) -> None:
    path = write_registry(config, "[models")
    with pytest.raises(ModelError, match="cannot read") as caught:
        registry.default_model()
    assert str(path) in str(caught.value)
    path.write_bytes(b" " * (2 << 20))
    with pytest.raises(ModelError, match="larger than 1 MB"):
        registry.default_model()


@pytest.mark.parametrize(
    ("platform", "cache", "config"),
    [
        (Unix, ".cache/tfswa-sep", ".config/tfswa-sep"),
        (MacOS, "Library/Caches/tfswa-sep", "Library/Application Support/tfswa-sep"),
    ],
)
def test_folders_are_the_platforms(
    platform: type[PlatformDirsABC], cache: str, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "TFSWA_CACHE", "TFSWA_CONFIG", "XDG_CACHE_HOME", "XDG_CONFIG_HOME",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    ours = folders._PLATFORM
    theirs = platform(ours.appname, ours.appauthor, roaming=ours.roaming, opinion=ours.opinion)
    monkeypatch.setattr(folders, "_PLATFORM", theirs)
    assert registry.cache_folder() == tmp_path / cache
    assert registry.config_folder() == tmp_path / config
    monkeypatch.setenv("TFSWA_CACHE", str(tmp_path / "mine"))
    assert registry.cache_folder() == tmp_path / "mine"
    assert registry.hub_cache_folder() == tmp_path / "mine" / "huggingface"


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user of a container has it: no HOME, and a number that no list of users knows."""
    for name in ("HOME", "TFSWA_CACHE", "TFSWA_CONFIG", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~/.cache/huggingface/hub")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows users otherwise")
def test_a_user_without_a_home_has_the_bundled_model_and_no_settings(homeless: None) -> None:
    temporary = Path(tempfile.gettempdir())
    assert temporary in registry.cache_folder().parents
    assert registry.hub_cache_folder() == registry.cache_folder() / "huggingface"
    assert temporary not in registry.config_folder().parents  # where anybody could leave a list of models
    assert registry.known_models() == list(registry.load_registry(OUR_LIST).values())
    assert registry.fetch(registry.default_model(), "onnx").parent == registry.WEIGHTS
    with pytest.raises(OutputError, match="set TFSWA_CONFIG to another folder"):
        addresses.forget("https://example.org/a.onnx")


def test_settings_of_a_user_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TFSWA_CACHE", "TFSWA_CONFIG"):
        monkeypatch.setenv(name, "~nobodyhere/x")
    assert registry.cache_folder() == registry.config_folder() == Path("~nobodyhere/x")
    assert registry.known_models() == list(registry.load_registry(OUR_LIST).values())


def test_unreadable_settings_count_as_none(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with HOME=/root and another user; root itself may read everything."""
    stat, access = os.stat, os.access

    def refuse(path: str | Path, *args: Any, **options: Any) -> os.stat_result:
        if config in Path(path).parents:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **options)

    write_registry(config)
    (config / "pins.json").write_text("{")
    monkeypatch.setenv("TFSWA_CACHE", str(config))
    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != config and access(path, mode))
    assert registry.known_models() == list(registry.load_registry(OUR_LIST).values())
    with suppress(OutputError):  # newer Pythons see no file there
        assert registry.remove("https://example.org/a.onnx") == []


def test_a_file_of_unknown_precision_and_size_is_described(config: Path) -> None:
    (line,) = (text for _, text in registry.describe(registry.find_model("https://example.org/a.onnx"))
               if "size" in text)  # fmt: skip
    assert line == "https: onnx (size unknown)"


def test_what_was_not_downloaded_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "mine.onnx").write_bytes(BODY)
    for name in ("small", str(tmp_path / "mine.onnx")):
        with pytest.raises(UsageError, match="was not downloaded"):
            registry.remove(name)
    assert (tmp_path / "mine.onnx").is_file()
