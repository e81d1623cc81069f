"""The training corpus: pools of decoded stems, built by `python -m training.data.build`."""

BAND = ("drums", "bass", "other")  # the stems of a song of the pool "band", in which nobody sings
