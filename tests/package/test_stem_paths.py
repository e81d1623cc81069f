from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfswa_sep.audio.stem_paths import song_folder, target_paths, track_name
from tfswa_sep.errors import OutputError, UsageError
from tfswa_sep.inference.stem_matrix import parse_stems

FOUR = ("vocals", "drums", "bass", "other")


@pytest.mark.parametrize(
    ("request_", "names", "matrix"),
    (
        (None, FOUR, np.eye(4)),
        ("vocals", ("vocals",), [[1, 0, 0, 0]]),
        ("bass, Vocals,", ("bass", "vocals"), [[0, 0, 1, 0], [1, 0, 0, 0]]),
        (["vocals", "accompaniment"], ("vocals", "accompaniment"), [[1, 0, 0, 0], [0, 1, 1, 1]]),
        ("drums+bass,bass+drums,drums", ("drums+bass", "drums"), [[0, 1, 1, 0], [0, 1, 0, 0]]),
        ("drums+drums,drums", ("drums",), [[0, 1, 0, 0]]),
        ("accompaniment+drums", ("accompaniment+drums",), [[0, 1, 1, 1]]),
    ),
)
def test_expressions(request_: str | list[str] | None, names: tuple[str, ...], matrix: object) -> None:
    got, mix = parse_stems(request_, FOUR)
    assert got == names
    assert mix.dtype == np.float32
    np.testing.assert_array_equal(mix, matrix)


@pytest.mark.parametrize("request_", ("vocal", "drums+", "vocals,karaoke", "all"))
def test_unknown_stems_name_the_choices(request_: str) -> None:
    with pytest.raises(
        UsageError, match=r"unknown stem .* vocals, drums, bass, other, accompaniment, or a sum"
    ):
        parse_stems(request_, FOUR)


@pytest.mark.parametrize("request_", ("", ",", "+", []))
def test_no_stem_is_an_error(request_: str | list[str]) -> None:
    with pytest.raises(UsageError, match="no stem"):
        parse_stems(request_, FOUR)


def test_accompaniment_needs_vocals() -> None:
    with pytest.raises(UsageError, match="choose from drums, bass"):
        parse_stems("accompaniment", ("drums", "bass"))


def paths(template: str, *, song: str = "my song.v2.mp3") -> dict[str, Path]:
    return target_paths(
        Path("in") / song, ("vocals", "drums"), out=Path("out"), extension=".wav", template=template
    )


def test_template() -> None:
    assert paths("{track}/{stem}{ext}") == {
        "vocals": Path("out/my song.v2/vocals.wav"),
        "drums": Path("out/my song.v2/drums.wav"),
    }
    assert paths("{stem} of {track}.x{ext}")["drums"] == Path("out/drums of my song.v2.x.wav")


@pytest.mark.parametrize("template", ("../{stem}", "a/../../{stem}", "/tmp/{stem}", "{stem}/", "..", ""))
def test_template_stays_in_the_folder(template: str) -> None:
    with pytest.raises(UsageError, match=r"outside the output folder"):
        paths(template)


@pytest.mark.parametrize(
    ("song", "track"),
    (
        (". .mp3", "_"),
        ("a. .mp3", "a"),
        ("con.mp3", "_con"),
        ("NUL.live.wav", "_NUL.live"),
        ("console.mp3", "console"),
        ("-n.mp3", "-n"),
        (".hidden.mp3", ".hidden"),
        ("a\u0308 \U0001f3b8.mp3", "a\u0308 \U0001f3b8"),
    ),
)
def test_odd_names_become_names_that_every_system_takes(song: str, track: str) -> None:
    assert paths("{track}/{stem}{ext}", song=song)["drums"] == Path("out") / track / "drums.wav"


def test_long_names_are_cut_and_stay_apart() -> None:
    one, other = (track_name(Path("\U0001f3b8" * 60 + end + ".mp3")) for end in "ab")
    assert one != other and len(one.encode()) <= 200 and one.startswith("\U0001f3b8" * 40)


@pytest.mark.parametrize(
    "template", ("{song}", "{}", "{stem.__class__}", "{stem!r}", "{stem:>99}", "{stem[0]}")
)
def test_template_has_three_fields_only(template: str) -> None:
    with pytest.raises(UsageError, match=r"may use only {track}, {stem} and {ext}"):
        paths(template)


def test_template_that_cannot_be_parsed() -> None:
    with pytest.raises(UsageError, match="cannot be understood"):
        paths("{stem")


def test_stems_need_files_of_their_own() -> None:
    with pytest.raises(UsageError, match="one file"):
        paths("{track}{ext}")


def test_the_song_is_not_overwritten(tmp_path: Path) -> None:
    song = tmp_path / "vocals.wav"
    with pytest.raises(OutputError, match="overwrite the song itself"):
        target_paths(song, ("vocals",), out=tmp_path / ".", extension=".wav", template="{stem}{ext}")


def test_the_folder_of_all_stems_is_there_whatever_the_format() -> None:
    templates = (
        "{stem}{ext}",
        "a/{track}/{stem}{ext}",
        "a/{stem}/{track}{ext}",
        "a/{track}{ext}/{stem}{ext}",
    )
    assert [str(song_folder(template, "song")) for template in templates] == [".", "a/song", "a", "a"]
