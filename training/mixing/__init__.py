"""Training mixtures, drawn from the pools of the corpus."""
