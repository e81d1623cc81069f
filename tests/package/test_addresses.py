"""Models at new addresses: trusted once, checked from then on; and the commands for them."""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from pathlib import Path

import pytest
from model_server import BODY, COMMIT, SHA256, ModelServer, ask_this_hub

from tfswa_sep import registry
from tfswa_sep.cli import main
from tfswa_sep.errors import ModelError
from tfswa_sep.registry import addresses


def test_an_address_is_trusted_on_first_use(server: ModelServer, tmp_path: Path) -> None:
    address = f"{server.url}/tiny.onnx"
    model = registry.find_model(address)
    assert (model.name, model.files[0].sha256, model.stems) == (address, "", ())
    path = registry.fetch(model, "onnx")
    assert path.read_bytes() == BODY
    pinned = registry.find_model(address)
    assert (pinned.files[0].sha256, pinned.files[0].bytes) == (SHA256, len(BODY))
    assert registry.fetch(pinned, "onnx") == path and server.asked == ["GET /tiny.onnx"]
    assert [model.name for model in registry.known_models()][-1] == address
    # Another file under the same address is refused, until the address is forgotten.
    path.unlink()
    record = tmp_path / "config" / "pins.json"
    record.write_text(record.read_text().replace(SHA256, SHA256[::-1]))
    with pytest.raises(ModelError, match="has SHA-256"):
        registry.fetch(registry.find_model(address), "onnx")
    assert len(registry.remove(address)) == 1  # what was put aside
    assert registry.fetch(registry.find_model(address), "onnx").read_bytes() == BODY


def test_a_password_in_an_address_is_used_but_neither_recorded_nor_printed(
    server: ModelServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"{server.url}/tiny.onnx".replace("://", "://me:se%40cret@")
    assert main.run(["models", "pull", address]) == 0
    assert server.authorized == ["Basic " + base64.b64encode(b"me:se@cret").decode()]
    assert main.run(["models"]) == main.run(["models", "info", address]) == 0
    assert main.run(["models", "pull", address.replace("tiny", "gone"), "--json", "--debug"]) == 4
    printed = "".join(capsys.readouterr())
    records = [path.read_bytes() for path in (tmp_path / "config").rglob("*") if path.is_file()]
    assert f"{server.url}/tiny.onnx" in printed and records
    for text in (printed, *map(str, records), *map(str, tmp_path.rglob("*"))):
        assert "cret" not in text and "me:" not in text
    assert main.run(["models", "rm", address]) == 0 and main.run(["models"]) == 0
    assert "tiny.onnx" not in capsys.readouterr().out.replace(address, "").splitlines()[1:]


def test_a_password_that_an_earlier_version_recorded_is_dropped(server: ModelServer, tmp_path: Path) -> None:
    address = f"{server.url}/tiny.onnx"
    registry.fetch(registry.find_model(address), "onnx")
    record = tmp_path / "config" / "pins.json"
    record.write_text(record.read_text().replace("://", "://me:secret@"))
    assert [model.name for model in registry.known_models()][-1] == address
    assert registry.find_model(address).files[0].where == address
    registry.fetch(registry.find_model(address.replace("tiny", "slow")), "onnx")
    assert "secret" not in record.read_text()


def test_a_password_in_models_toml_is_not_printed(
    server: ModelServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = (registry.PACKAGE.parent / "models.toml").read_text()
    where = server.url.replace("://", "://me:secret@")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "models.toml").write_text(
        models.replace("models.small", "models.mine")
        .replace("bundled:", f"{where}/")
        .replace("default = true", "")
    )
    for words in (
        ["models"],
        ["models", "--json"],
        ["models", "info", "mine"],
        ["models", "info", "mine", "--json"],
    ):
        assert main.run(words) == 0
    assert main.run(["models", "path", "mine", "--debug"]) == 4  # other bytes than those on record
    printed = "".join(capsys.readouterr())
    assert "secret" not in printed and "https://***@" in printed.replace("http:", "https:")


def test_a_hash_in_the_address_is_checked(server: ModelServer) -> None:
    address = f"{server.url}/tiny.onnx"
    with pytest.raises(ModelError, match="has SHA-256"):
        registry.fetch(registry.find_model(f"{address}#sha256={'0' * 64}"), "onnx")
    assert registry.fetch(registry.find_model(f"{address}#sha256={SHA256}"), "onnx").read_bytes() == BODY
    with pytest.raises(ModelError, match="recorded with a different SHA-256"):
        registry.find_model(f"{address}#sha256={'0' * 64}")


def test_a_file_that_is_not_a_model_is_not_pinned(server: ModelServer, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"text.onnx is not a valid .onnx file; it was not opened"):
        registry.fetch(registry.find_model(f"{server.url}/text.onnx"), "onnx")
    assert not (tmp_path / "config" / "pins.json").exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://example.org/a.onnx", "must begin with https:// or hf://"),
        ("http://example.org/a.onnx", "must begin with https:// or hf://"),
        ("file:///etc/passwd", "must begin with https:// or hf://"),
        ("http://[", "must begin with https:// or hf://"),
        ("https://example.org/a.pt", "other formats can run code"),
        ("https://example.org/a.onnx#sha256=12", "64 lower-case hex digits"),
        ("https://example.org/../a.onnx", "not a valid model address"),
        ("https://example.org/a\x1b[2J.onnx", "not a valid model address"),
        ("hf://org", "expected hf://org/repo@revision/file"),
        ("hf://org/repo/a.pt", "other formats can run code"),
        ("hf://org/../a.onnx", "not a valid model address"),
    ],
)
def test_an_invalid_address_is_refused(address: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        registry.find_model(address)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"a": 1}', '{"https://a/b.onnx": [{}]}', "[" * 100_000, '{"a": [{"bytes": 1}]}'],
)
def test_a_damaged_record_is_reported_and_not_forgotten(
    server: ModelServer, tmp_path: Path, text: str
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "pins.json").write_text(text)
    with pytest.raises(ModelError, match=r"pins\.json is damaged"):
        registry.find_model("https://example.org/a.onnx")
    assert (tmp_path / "config" / "pins.json").read_text() == text


def test_a_record_names_no_files_of_this_machine(tmp_path: Path) -> None:
    for where in ("/etc/passwd", "hf://org/repo@main/../a.onnx", "file:///a.onnx", "https://a/b.safetensors"):
        with pytest.raises(ValueError, match="invalid: "):
            addresses._pinned_file({"backend": "onnx", "where": where, "sha256": SHA256, "bytes": 1})


# --- the commands


def test_all_files_of_a_repository_stay_pinned(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"\x08" + bytes(7) + b"{" + bytes(7)  # begins like an ONNX file and like a safetensors file
    monkeypatch.setattr("model_server.BODY", body)
    monkeypatch.setattr("model_server.SHA256", sha256(body).hexdigest())
    ask_this_hub(server, monkeypatch)
    server.repository = ["tiny.onnx", "tiny.safetensors"]
    for backend in ("torch", "all"):
        assert main.run(["models", "pull", "hf://org/repo", "--backend", backend]) == 0
        assert [file.backend for file in registry.find_model("hf://org/repo").files] == ["onnx", "torch"]
    registry.fetch_all(registry.find_model("hf://org/repo"), "torch")
    assert len(registry.find_model("hf://org/repo").files) == 2


def test_a_repository_is_pinned_to_the_commit_of_its_first_use(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setenv("HF_HUB_OFFLINE", "")  # an earlier --offline set it
        return main.run(words), *capsys.readouterr()

    ask_this_hub(server, monkeypatch)
    for address in ("hf://org/repo", "hf://org/repo@main/tiny.onnx"):
        code, out, err = run("models", "pull", address, "--json")
        assert (code, err) == (0, "")
        (file,) = json.loads(out)["files"]
        assert file["where"] == f"hf://org/repo@{COMMIT}/tiny.onnx" and file["sha256"] == SHA256
        asked = list(server.asked)
        assert run("models", "path", address, "--offline")[1].strip() == file["path"]
        assert server.asked == asked
    verified = json.loads(run("models", "verify", "--json")[1])["files"]
    assert [file["state"] for file in verified if file["model"] != "small"][-2:] == ["ok", "ok"]
    Path(file["path"]).write_bytes(BODY[::-1])
    code, _, err = run("models", "verify")
    assert code == 4 and len(err.splitlines()) == 1
    assert run("models", "rm", address)[0] == 0
    assert not Path(file["path"]).exists()
    assert run("models", "path", address, "--offline")[0] == 4
    server.repository = ["a.onnx", "b.onnx"]
    code, _, err = run("models", "pull", "hf://org/repo@v2")
    assert code == 4 and "add the file name, as in hf://org/repo@v2/a.onnx" in err


def test_the_commands_on_what_is_here(server: ModelServer, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"{server.url}/tiny.onnx"
    assert main.run(["models", "pull", "small", address]) == 0
    assert f"onnx, sha256 {SHA256}" in capsys.readouterr().out
    assert main.run(["models", "info", address]) == 0
    assert ": ok" in capsys.readouterr().out
    assert main.run(["models", "verify"]) == 0
    assert capsys.readouterr().out.count(": ok\n") == 4
    assert main.run(["models", "rm", address]) == 0
    assert main.run(["models", "info", address, "--json", "--offline"]) == 0
    (path, shown) = capsys.readouterr().out.split("\n", 1)
    assert not Path(path).exists() and json.loads(shown)["files"][0]["state"] == "not downloaded"
    assert main.run(["models", "rm", "small"]) == 2
    assert main.run(["models", "path", address, "--offline"]) == 4
    first, second = capsys.readouterr().err.splitlines()
    assert "was not downloaded" in first and "offline mode is on" in second
