"""The open training corpus, built by `python -m training.corpus.build`."""

BAND = ("drums", "bass", "other")  # stems of a song in the pool "band"
