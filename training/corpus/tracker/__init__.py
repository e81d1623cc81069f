"""Sources of the corpus that are rendered from tracker modules."""
