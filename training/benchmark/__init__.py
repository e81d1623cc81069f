"""Time, memory, size and quality of the installed command and its peers: `python -m training.benchmark`."""
