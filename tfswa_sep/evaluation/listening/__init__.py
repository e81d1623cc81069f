"""Blind listening tests in the browser."""
