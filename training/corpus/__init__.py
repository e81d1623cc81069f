"""Builds the open training corpus: `python -m training.corpus.build`."""

BAND = ("drums", "bass", "other")  # the stems of a song of the pool "band", in which nobody sings
