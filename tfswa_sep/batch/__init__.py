"""Several songs in one call of `tfswa-sep separate`. (The command `batch` is in tfswa_sep.cluster.)

inputs.py     arguments -> songs
plan.py       songs -> where their stems go, and which are done; separates one
manifest.py   the file next to the stems that says what they were made from
workers.py    --jobs: processes that may die
"""
