"""Training mixtures, drawn from the corpus's pools while training."""
