"""Many songs: which ones, in what order, by how many processes, and what is already done."""
