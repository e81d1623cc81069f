"""Bad songs, bad options and a hostile world: what the real command does about each. See faults.py."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import write_song
from faults import COMMAND, Call, Fault, Undo, listing, nothing, song
from numpy.typing import NDArray
from waiting import wait_for

from tfswa_sep import separator
from tfswa_sep.inference.backend import Backend, load_backend
from tfswa_sep.options import Runtime

pytestmark = pytest.mark.slow

STEMS = ("vocals", "drums", "bass", "other")
ALL = [*(f"song/{stem}.wav" for stem in STEMS), "song/.song.tfswa-sep.json"]  # what a whole run makes
HALF = ["song/.tfswa-sep-*.tmp"] * 4  # what a run leaves that cannot clean up
# Root may read and write everything unless it gives that up.
AS_ANYBODY = 'exec setpriv --bounding-set=-dac_override,-dac_read_search --inh-caps=-dac_override "$@"'
AS_ANYBODY = AS_ANYBODY if os.geteuid() == 0 else 'exec "$@"'
NO_FFMPEG = 'PATH=/nowhere exec "$@"'
long_song = song(seconds=20)
very_long_song = song(seconds=150)  # still under way when a signal comes, however fast the machine

# --- what lies in the folder


def write(name: str, data: bytes) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return prepare


def cut(name: str, share: float = 0.6, **options: float) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        path = write_song(folder / name, seconds=options.get("seconds", 2))
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return prepare


def by_ffmpeg(name: str, *options: str, share: float = 1.0) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        path = folder / name
        subprocess.run(["ffmpeg", "-v", "error", *options, str(path)], check=True, stdin=subprocess.DEVNULL)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return prepare


def sample(value: float) -> Callable[[Path], None]:
    def change(samples: NDArray[np.float32]) -> None:
        samples[1234, 1] = value

    return song(subtype="FLOAT", change=change)


def loud(samples: NDArray[np.float32]) -> None:
    samples *= 100


def silence(samples: NDArray[np.float32]) -> None:
    samples[:] = 0


def both(*steps: Callable[[Path], Undo | None]) -> Callable[[Path], Undo | None]:
    def prepare(folder: Path) -> Undo | None:
        undos = [undo for step in steps if (undo := step(folder))]
        return undos[0] if undos else None

    return prepare


def frozen(name: str) -> Callable[[Path], Undo]:
    """A folder into which nobody can write, not even root."""

    def prepare(folder: Path) -> Undo:
        (folder / name).mkdir(exist_ok=True)
        freeze(folder / name)
        return lambda: thaw(folder / name)

    return prepare


def freeze(folder: Path) -> None:
    folder.chmod(0o555)
    if os.geteuid() == 0 and subprocess.run(["chattr", "+i", str(folder)], check=False).returncode:
        pytest.skip("this file system has no immutable folders")


def thaw(folder: Path) -> None:
    if os.geteuid() == 0:
        subprocess.run(["chattr", "-i", str(folder)], check=False)
    folder.chmod(0o755)


def small_disk(folder: Path) -> Undo:
    (folder / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder / "disk")]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    return lambda: subprocess.run(["umount", str(folder / "disk")], check=True)


def link(target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "song.wav").symlink_to(target)


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "song.wav")


def old_stem(folder: Path) -> None:
    write_song(folder / "song.wav")
    (folder / "song").mkdir()
    (folder / "song" / "bass.wav").write_bytes(b"mine")


def closed(name: str, mode: int = 0) -> Callable[[Path], Undo]:
    """A folder that only root can read."""

    def prepare(folder: Path) -> Undo:
        if os.geteuid() == 0 and not shutil.which("setpriv"):
            pytest.skip("needs setpriv")
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name).chmod(mode)
        return lambda: (folder / name).chmod(0o755)

    return prepare


def folder_in_the_way(folder: Path) -> None:
    write_song(folder / "song.wav")
    (folder / "song" / "bass.wav").mkdir(parents=True)


# --- what happens meanwhile


def half_way(folder: Path) -> None:
    wait_for(lambda: len(list(folder.rglob(".tfswa-sep-*.tmp"))) >= 4)


def send(sent: signal.Signals) -> Callable[[subprocess.Popen[bytes], Path], None]:
    def meanwhile(process: subprocess.Popen[bytes], folder: Path) -> None:
        half_way(folder)
        process.send_signal(sent)

    return meanwhile


def freeze_half_way(process: subprocess.Popen[bytes], folder: Path) -> None:
    half_way(folder)
    freeze(folder / "song")


def thaw_later(folder: Path) -> Undo:
    write_song(folder / "song.wav", seconds=20)
    return lambda: thaw(folder / "song")


def kill_a_worker(process: subprocess.Popen[bytes], folder: Path) -> None:
    wait_for(lambda: list((folder / "long").glob(".tfswa-sep-*.tmp")))
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        handles = Path(f"/proc/{child}/fd").iterdir()
        if any("/long/" in os.readlink(handle) for handle in handles):
            os.kill(int(child), signal.SIGKILL)


def F(
    name: str, prepare: Callable[[Path], Undo | None], typed: str, code: int, *says: str, **more: object
) -> Fault:
    """A row of the table, so that each stands on one line."""
    return Fault(name=name, prepare=prepare, typed=typed.split(), code=code, says=says, **more)  # type: ignore[arg-type]


SINE = ("-f", "lavfi", "-i", "sine=d=3")
# fmt: off
ROWS = [
    # songs
    F("missing", nothing, "none.mp3", 3, "no such file: none.mp3"),
    F("command mistyped", nothing, "seperate", 3, "did you mean the command 'separate'?"),
    F("empty file", write("song.wav", b""), "song.wav", 3, "song.wav is empty (0 bytes)"),
    F("empty folder", lambda folder: (folder / "album").mkdir(), "album", 3, "no songs in the folder album"),
    F("songs deeper", song("album/cd/a.wav"), "album", 3, "--recursive"),
    F("folder named like a song", lambda folder: (folder / "song.wav").mkdir(), "song.wav", 3, "no songs in the folder"),
    F("no match", song(), "*.flac", 3, "no songs match *.flac"),
    F("text", write("song.mp3", b"no song\n" * 99), "song.mp3", 3, "song.mp3 is a text file"),
    F("playlist", write("song.mp4", b"#EXTM3U\n\0file:///etc/passwd\n"), "song.mp4", 3, "is a text file"),
    F("noise of bytes", write("song.mp3", np.random.default_rng(1).bytes(9999)), "song.mp3", 3, "cannot be read as audio"),
    F("archive", write("song.wav", b"PK\3\4" + bytes(2000)), "song.wav", 3, "cannot be read as audio"),
    F("header only", song(seconds=0), "song.wav", 3, "song.wav contains no audio (0 samples)"),
    F("not a number", sample(np.nan), "song.wav", 3, "sample 1234 of channel 2 (0.028 s) is nan"),
    F("infinity", sample(-np.inf), "song.wav", 3, "sample 1234 of channel 2 (0.028 s) is -inf"),
    F("absurdly loud", sample(1e30), "song.wav", 3, "sample 1234 of channel 2 (0.028 s) is 1e+30"),
    F("wav cut", cut("song.wav"), "song.wav", 3, "song.wav is cut short", "--allow-truncated"),
    F("aiff cut", cut("song.aiff"), "song.aiff", 3, "song.aiff is cut short", "--allow-truncated"),
    F("flac cut", cut("song.flac"), "song.flac", 3, "song.flac is cut short", "--allow-truncated"),
    F("mp3 cut", cut("song.mp3", seconds=6), "song.mp3", 3, "song.mp3 is cut short", "--allow-truncated"),
    F("ogg cut", cut("song.ogg"), "song.ogg", 3, "song.ogg is cut short", "--allow-truncated"),
    F("m4a cut", by_ffmpeg("song.m4a", *SINE, "-movflags", "+faststart", share=.4), "song.m4a", 3, "is cut short"),
    F("m4a without index", by_ffmpeg("song.m4a", *SINE, share=.6), "song.m4a", 3, "is cut short"),
    F("wav cut, salvaged", cut("song.wav", seconds=.5), "song.wav --allow-truncated", 0, "note: song.wav is cut short", "0.30 s were separated", new=ALL),
    F("wav cut, quietly", cut("song.wav", seconds=.5), "song.wav -q --allow-truncated", 0, "note: song.wav is cut short", new=ALL),
    F("clipping, quietly", song(subtype="FLOAT", change=loud), "song.wav -q --bit-depth 16", 0, "note: samples above full scale were clipped", new=ALL),
    F("flac cut, salvaged", cut("song.flac", seconds=.5), "song.flac --allow-truncated", 0, "note: song.flac is cut short", new=ALL),
    F("surround", song(channels=6), "song.wav", 3, "song.wav has 6 channels", "--downmix"),
    F("surround mixed down", song(channels=6), "song.wav --downmix", 0, new=ALL),
    F("surround without ffmpeg", song(channels=6), "song.wav --downmix", 3, "needs ffmpeg", shell=NO_FFMPEG),
    F("12 samples a second", song(rate=12, seconds=100), "song.wav", 3, "unsupported sample rate of 12 Hz"),
    F("silence", song(change=silence), "song.wav", 0, "note: song.wav is silent", new=ALL),
    F("video without sound", by_ffmpeg("a.mkv", "-f", "lavfi", "-i", "testsrc=d=0.2:s=64x64"), "a.mkv", 3, "no audio track"),
    F("m4a without ffmpeg", by_ffmpeg("song.m4a", *SINE), "song.m4a", 3, "reading it needs ffmpeg", "install imageio-ffmpeg", shell=NO_FFMPEG),
    F("link to nothing", link("gone.wav"), "song.wav", 3, "no such file: song.wav"),
    F("a model by a user who is not there", song(), "song.wav --model ~nosuch/x.onnx", 4, "no such model file"),
    F("link in a circle", link("song.wav"), "song.wav", 3, "song.wav"),
    F("named pipe", pipe, "song.wav", 3, "song.wav is not a regular file", "stdin"),
    F("nothing on stdin", nothing, "-", 3, "stdin is empty", stdin=b""),
    F("text on stdin", nothing, "-", 3, "standard input is a text file", stdin=b"no song\n" * 9),
    F("a folder that is closed", both(song("album/song.wav"), closed("album/cd")), "album -r --stems bass", 7, "album/cd cannot be opened: Permission denied", shell=AS_ANYBODY, new=["song/bass.wav", "song/.song.*.json"]),
    F("a folder with nothing else", closed("album/cd"), "album -r", 3, "album/cd cannot be opened: Permission denied", shell=AS_ANYBODY),
    # options
    F("unknown stem", song(), "song.wav --stems harp", 2, "unknown stem 'harp'", "vocals, drums, bass, other"),
    F("no stem", song(), "song.wav --stems ,", 2, "no stem was selected"),
    F("unknown format", song(), "song.wav --format mp4", 2, "'mp4' is not one of"),
    F("flac of floats", song(), "song.wav --format flac --bit-depth 32f", 2, "choose from 24, 16"),
    F("bits of an mp3", song(), "song.wav --format mp3 --bit-depth 16", 2, "mp3 files have no bit depth"),
    F("bitrate of a wav", song(), "song.wav --bitrate 128", 2, "wav files have no bitrate"),
    F("bitrate too high", song(), "song.wav --format mp3 --bitrate 999", 2, "choose from 8 to 320"),
    F("exact sum of a part", song(), "song.wav --exact-sum --stems vocals", 2, "make up the whole song"),
    F("exact sum rescaled", song(), "song.wav --exact-sum --rescale", 2, "--exact-sum does not work with --rescale"),
    F("exact sum of mp3", song(), "song.wav --exact-sum --format mp3", 2, "--exact-sum does not work with lossy mp3"),
    F("stem file of a part", song(), "song.wav --stem-file --stems bass", 2, "not bass: change --stems"),
    F("stem file without ffmpeg", song(), "song.wav --stem-file", 2, "--stem-file needs ffmpeg", shell=NO_FFMPEG),
    F("m4a stems without ffmpeg", song(), "song.wav --format m4a", 2, "writing m4a needs ffmpeg", shell=NO_FFMPEG),
    F("name leads out", song(), "song.wav --name ../{stem}{ext}", 2, "points outside the output folder"),
    F("name from the root", song(), "song.wav --name /{stem}{ext}", 2, "points outside the output folder"),
    F("name of other fields", song(), "song.wav --name {song}{stem}{ext}", 2, "may use only {track}, {stem} and {ext}"),
    F("name that tells secrets", song(), "song.wav --name {stem.__class__}", 2, "may use only {track}, {stem}"),
    F("name without end", song(), "song.wav --name {stem", 2, "is invalid"),
    F("name for all stems", song(), "song.wav --out out --name {track}{ext}", 2, "gives two stems the same file"),
    F("name for all songs", both(song(), song("b.wav")), "song.wav b.wav --name {stem}{ext}", 2, "needs {track}"),
    F("name of the song", song("bass.wav"), "bass.wav --name {stem}{ext}", 5, "overwrite the song itself"),
    F("name too long", song(), f"song.wav --name {'x' * 300}{{stem}}", 5, "File name too long"),
    F("no such shard", song(), "song.wav --shard 3/2", 2, "--shard '3/2'"),
    F("no jobs", song(), "song.wav --jobs 0", 2, "--jobs"),
    F("unknown option", song(), "song.wav --vocals", 2, "--vocals", "--help"),
    F("unknown model", song(), "song.wav --model smal", 4, "did you mean 'small'?"),
    F("no such device", song(), "song.wav --device tpu", 2, "tpu"),
    # where the stems go
    F("out belongs to another", both(song(), closed("out", 0o555)), "song.wav -o out", 5, "cannot write out/song (Permission denied): check its permissions", shell=AS_ANYBODY),
    F("out is a file", song(), "song.wav --out song.wav", 5, "cannot write song.wav", "Not a directory"),
    F("a stem is there", old_stem, "song.wav --no-overwrite", 5, "song/bass.wav already exists"),
    F("a file of somebody else", old_stem, "song.wav", 5, "song/bass.wav already exists", "--overwrite"),
    F("a song of somebody else", both(song("tune.flac"), song("tune.wav")), "tune.flac --stems bass --name {track}{ext}", 5, "tune.wav already exists"),
    F("a stem file like a stem", song("vocals.wav"), "vocals.wav --stem-file --name {stem}.stem.mp4", 5, "would both be vocals.stem.mp4"),
    F("a folder in the way", folder_in_the_way, "song.wav", 5, "song/bass.wav is a folder"),
    F("folder read-only", both(song(), frozen("out")), "song.wav -o out", 5, "cannot write out/song"),
    F("folder read-only midway", thaw_later, "song.wav", 5, "cannot write song/", meanwhile=freeze_half_way, new=HALF),
    F("disk too small", both(long_song, small_disk), "song.wav -o disk", 5, "the stems need 28 MB", "only 2 MB free"),
    F("disk full midway", both(long_song, small_disk), "song.wav -o disk --format flac", 5, "No space left on device"),
    F("file size limit", long_song, "song.wav", 5, "cannot write song/", shell='ulimit -f 1000; exec "$@"'),
    # the world
    F("Ctrl-C", very_long_song, "song.wav", 130, "interrupted", "no partial files", meanwhile=send(signal.SIGINT)),
    F("Ctrl-C with jobs", both(very_long_song, song("b.wav", seconds=150)), "song.wav b.wav -j 2", 130, "interrupted", meanwhile=send(signal.SIGINT)),
    F("terminated", very_long_song, "song.wav", 143, "terminated", meanwhile=send(signal.SIGTERM)),
    F("killed", very_long_song, "song.wav", -9, meanwhile=send(signal.SIGKILL), new=HALF),
    F("stdout closed", song(), "song.wav", 0, shell='exec "$@" >&-', new=ALL),
    F("stderr closed", song(), "song.wav", 0, shell='exec "$@" 2>&-', new=ALL),
    F("all closed", song(), "song.wav", 0, shell='exec "$@" <&- >&- 2>&-', new=ALL),
    F("stdout full", song(), "song.wav", 5, "cannot write to stdout", shell='exec "$@" >/dev/full', new=ALL),
    # several songs
    F("one bad of two", both(song(), write("b.wav", b"")), "b.wav song.wav", 7, "b.wav is empty", new=ALL),
    F("one circle of two", both(link("song.wav"), song("b.wav")), "song.wav b.wav --stems bass", 7, "song.wav cannot be opened", new=["b/bass.wav", "b/.b.*.json"]),
    F("one long name of two", song(), f"{'x' * 300}.wav song.wav --stems bass", 7, "xxx.wav cannot be opened", new=["song/bass.wav", "song/.song.*.json"]),
    F("one bad of three, jobs", both(song(), song("c.wav"), write("b.wav", b"")), "b.wav song.wav c.wav -j 2 --stems bass", 7, "b.wav is empty", new=["*/bass.wav", "*/.*.json"] * 2),
    F("a worker killed", both(song("long.wav", seconds=20), song("b.wav")), "long.wav b.wav -j 2 --stems bass", 7, "long.wav: its worker process was killed by signal 9", meanwhile=kill_a_worker, new=["b/bass.wav", "b/.b.*.json", "long/"]),
    F("one song twice", song(), "song.wav ./song.wav", 0, new=ALL),
    F("two songs of one name", both(song("a/song.wav"), song("b/SONG.wav")), "a/song.wav b/SONG.wav --stems bass", 0, "are named SONG_2", new=["song/bass.wav", "song/.*.json", "SONG_2/bass.wav", "SONG_2/.*.json"]),
]
# fmt: on


@pytest.fixture(scope="module")
def networks() -> dict[str, Backend]:
    return {}


@pytest.fixture
def call(call: Call, networks: dict[str, Backend], monkeypatch: pytest.MonkeyPatch) -> Call:
    """The rows in this process load the bundled network once."""

    def load_once(backend: str, path: Path, runtime: Runtime, **options: Any) -> Backend:
        key = str((backend, path, runtime, options))
        if key not in networks:
            networks[key] = load_backend(backend, path, runtime, **options)
        return networks[key]

    monkeypatch.setattr(separator, "load_backend", load_once)
    return call


@pytest.mark.parametrize("fault", ROWS, ids=str)
def test_a_fault_is_reported_in_one_line(fault: Fault, tmp_path: Path, call: Call) -> None:
    fault.check(tmp_path, call)


@pytest.mark.parametrize(
    "name",
    ["CON.wav", "-song.wav", ".song.wav", "\U0001f3b8.wav", "a\u0308.wav", "x" * 251 + ".wav", "a\nb.wav"],
)
def test_odd_names_survive(name: str, tmp_path: Path, call: Call) -> None:
    """The stems come, in a folder of one name or another."""
    write_song(tmp_path / "in" / name)
    typed = ["--stems", "bass", "--out", "out", "--json", "--", f"in/{name}"]
    new = ["out/*/bass.wav", "out/*/.*.json"]
    Fault(name=name, prepare=nothing, typed=typed, code=0, says=(), new=new).check(tmp_path, call)


@pytest.mark.parametrize("name", ["song", "another"])
def test_the_next_run_cleans_up_after_a_killed_one(tmp_path: Path, name: str) -> None:
    next(row for row in ROWS if row.name == "killed").check(tmp_path)
    write_song(tmp_path / f"{name}.wav")
    subprocess.run([*COMMAND, f"{name}.wav"], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    assert set(listing(tmp_path)) - {"song/"} == {
        "song.wav", f"{name}.wav", *(path.replace("song", name) for path in ALL[:-1]), f"{name}/.{name}.tfswa-sep.json"
    }  # fmt: skip
