"""Which Debian packages the corpus needs, and that a failed download leaves nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("soxr")

from training.corpus.fetch import fetch, packages
from training.corpus.recorded import catalogue


def test_packages_are_listed_once(tmp_path: Path) -> None:
    table = "package\tminutes\nhedgewars-data\t94\nmarsshooter-data\t59\nsome-music\t5\n"
    (tmp_path / "debian_music.tsv").write_text(table)
    names = packages(tmp_path)
    assert len(names) == len(set(names)) and {"some-music", "hedgewars-data", "hydrogen-drumkits"} <= set(
        names
    )
    assert {*catalogue.SPEECH, *catalogue.SUNG_PACKAGES} <= set(names)


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
def test_a_failed_download_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no-such-package-at-all: apt-get failed"):
        fetch("no-such-package-at-all", tmp_path)
    assert list(tmp_path.iterdir()) == []
