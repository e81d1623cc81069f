"""Recorded sources of the corpus: stems, voices, soundtracks."""
