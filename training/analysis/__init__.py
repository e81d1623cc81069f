"""The cost and behaviour of models and configurations."""
