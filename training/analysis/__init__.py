"""What a model or a configuration costs and does."""
