"""Training of the separation models: corpus, mixing, loop and export. Not part of the installed package."""
