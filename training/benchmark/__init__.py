"""Benchmark of the installed command and its peers: `python -m training.benchmark`."""
