"""The training corpus: pools of decoded stems, built by `python -m training.data.build`."""
