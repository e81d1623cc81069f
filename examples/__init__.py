"""Runnable examples, part of the checkout and not of the package."""
