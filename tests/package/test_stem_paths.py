from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfswa_sep.audio.stem_paths import default_track_name, song_folder, target_paths
from tfswa_sep.errors import OutputError, UsageError
from tfswa_sep.inference.stem_matrix import adds_up_to_song, parse_stems, with_accompaniment

FOUR = ("vocals", "drums", "bass", "other")
SIX = ("drums", "bass", "other", "vocals", "guitar", "piano")


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
        ("instrumental", ("instrumental",), [[0, 1, 1, 1]]),
    ),
)
def test_expressions(request_: str | list[str] | None, names: tuple[str, ...], matrix: object) -> None:
    got, mix = parse_stems(request_, FOUR)
    assert got == names
    assert mix.dtype == np.float32
    np.testing.assert_array_equal(mix[:, :-1], matrix)
    assert not mix[:, -1].any()  # the song itself is not needed


@pytest.mark.parametrize(
    ("available", "request_", "row"),
    (
        (("vocals",), "accompaniment", [-1, 1]),
        (("vocals",), "instrumental", [-1, 1]),
        (("vocals",), "drums+bass+other", [-1, 1]),
        (("drums",), "vocals+bass+other", [-1, 1]),
        (("vocals", "accompaniment"), "accompaniment", [0, 1, 0]),
        (("vocals", "accompaniment"), "drums+bass+other", [0, 1, 0]),
        (("accompaniment",), "vocals", [-1, 1]),
        (("vocals", "drums+bass"), "bass+drums", [0, 1, 0]),
        (("vocals", "drums+bass"), "accompaniment", [-1, 0, 1]),
        (("vocals", "drums+bass"), "other", [-1, -1, 1]),
        (("vocals", "drums", "other"), "drums+bass", [-1, 0, -1, 1]),
        (("vocals", "guitar"), "accompaniment", [-1, 0, 1]),  # drums, say, may be in neither
        (("vocals", "guitar", "other"), "accompaniment", [0, 1, 1, 0]),
    ),
)
def test_what_a_model_lacks_is_the_song_minus_what_it_has(
    available: tuple[str, ...], request_: str, row: list[int]
) -> None:
    names, mix = parse_stems(request_, available)
    assert names == (request_,)
    np.testing.assert_array_equal(mix, [row])


def test_a_model_of_sums_puts_out_its_own_stems() -> None:
    names, mix = parse_stems(None, ("vocals", "drums+bass"))
    assert names == ("vocals", "drums+bass")
    np.testing.assert_array_equal(mix, [[1, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    ("available", "request_"),
    ((("vocals",), "drums"), (("vocals", "drums+bass"), "drums"), (("drums",), "bass+other")),
)
def test_what_is_not_known_to_be_the_rest_is_unknown(available: tuple[str, ...], request_: str) -> None:
    with pytest.raises(UsageError, match=r"unknown stem .*choose from"):
        parse_stems(request_, available)


@pytest.mark.parametrize(
    ("available", "request_", "whole"),
    (
        (FOUR, None, True),
        (FOUR, "vocals,accompaniment", True),
        (FOUR, "vocals,accompaniment,drums", False),
        (("vocals",), None, False),
        (("vocals",), "vocals,accompaniment", True),
        (("vocals", "drums+bass"), None, False),
        (("vocals", "drums+bass"), "vocals,drums+bass,other", True),
        (("vocals", "accompaniment"), None, True),
        (("vocals", "guitar", "other"), None, True),
        (("vocals", "guitar"), None, False),
        (SIX, None, True),
        (SIX, "vocals,accompaniment", True),
        (SIX, "vocals,drums,bass,other", False),
        (SIX, "vocals,drums,bass,other+guitar+piano", True),
        (SIX, "guitar,no_guitar", True),
        (("instrumental", "vocals"), None, True),
        (("drums", "no_drums"), None, True),
        (("drums", "no_drums"), "drums,no_drums", True),
    ),
)
def test_which_stems_make_up_the_song(available: tuple[str, ...], request_: str | None, whole: bool) -> None:
    assert adds_up_to_song(parse_stems(request_, available)[1], available) is whole


def test_the_accompaniment_comes_along_where_it_can_be_made() -> None:
    assert with_accompaniment(("vocals",)) == ("vocals", "accompaniment")
    assert with_accompaniment(("drums",)) == ("drums",)
    assert with_accompaniment(("vocals", "accompaniment")) == ("vocals", "accompaniment")


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
    one, other = (default_track_name(Path("\U0001f3b8" * 60 + end + ".mp3")) for end in "ab")
    assert one != other and len(one.encode()) <= 200 and one.startswith("\U0001f3b8" * 40)


@pytest.mark.parametrize(
    "template", ("{song}", "{}", "{stem.__class__}", "{stem!r}", "{stem:>99}", "{stem[0]}")
)
def test_template_has_three_fields_only(template: str) -> None:
    with pytest.raises(UsageError, match=r"may use only {track}, {stem} and {ext}"):
        paths(template)


def test_template_that_cannot_be_parsed() -> None:
    with pytest.raises(UsageError, match="is invalid"):
        paths("{stem")


def test_stems_need_files_of_their_own() -> None:
    with pytest.raises(UsageError, match="the same file"):
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
