"""Separate songs with a running `tfswa-sep serve`: python rest_client.py http://127.0.0.1:8765 song.mp3 ...

Stems are saved next to each song, as song.zip. Needs requests. A token is taken from TFSWA_TOKEN.
"""

import os
import sys
import time
from pathlib import Path

import requests


def main(server: str, *songs: str) -> None:
    """Upload all songs, and save the stems of each as soon as it is done."""
    session = requests.Session()
    session.hooks["response"] = [lambda answer, **_: answer.raise_for_status()]
    if token := os.environ.get("TFSWA_TOKEN"):
        session.headers["Authorization"] = f"Bearer {token}"
    for song in map(Path, songs):
        with song.open("rb") as file:
            job = session.post(f"{server}/v1/jobs", files={"file": (song.name, file)}).json()
        while job["state"] in ("queued", "running"):
            time.sleep(1)
            job = session.get(f"{server}/v1/jobs/{job['id']}").json()
        if job["state"] != "done":
            sys.exit(f"{song}: {job['error']['message'] if job['error'] else job['state']}")
        zipped = f"{server}/v1/jobs/{job['id']}/stems.zip?format=flac"
        with session.get(zipped, stream=True) as stems, song.with_suffix(".zip").open("wb") as saved:
            for piece in stems.iter_content(1 << 16):
                saved.write(piece)


main(*sys.argv[1:])
