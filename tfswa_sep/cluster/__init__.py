"""Batches on a Ray cluster, with songs and stems in object stores: `tfswa-sep batch`.

catalog -> run (hands out songs) -> worker (one per Ray actor: fetch, separate, store) -> rows (one per song)

Only `run` imports Ray. Audio never passes through it: each worker reads and writes the store itself.
"""
