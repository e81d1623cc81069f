"""One file a command: its options, and what it prints. `cli.py` puts them together."""
