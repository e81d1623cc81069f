"""Batches: which songs, in what order, on how many processes, and which are already done."""
