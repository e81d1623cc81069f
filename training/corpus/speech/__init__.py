"""Sources of the corpus made of speech: set to melodies, or synthesized."""
