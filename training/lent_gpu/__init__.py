"""Training on a GPU that is lent for half an hour and has no network: README.md is the runbook."""
