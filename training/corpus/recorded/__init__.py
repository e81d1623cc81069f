"""Sources of the corpus that were recorded: stems, voices, soundtracks."""
