"""Builds the open training corpus: `python -m training.corpus.build`."""

BAND = ("drums", "bass", "other")  # stems of a song in the pool "band", which has no vocals
