"""Sources of the corpus that are tracker modules."""
