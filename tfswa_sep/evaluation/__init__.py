"""What `tfswa-sep eval` does: separated stems against the true ones.

multitrack.py, musdb.py   songs whose true stems are known
methods.py                what gives estimates: a model, a folder of another tool's stems, a baseline
scoring.py                true stems and estimates -> the numbers of metrics.py and bsseval.py
run.py                    every song and every method, in processes, picked up where it stopped
results.py                what was found, with all that is needed to find it again
report/                   the same for people: tables, charts, a page of HTML
compare.py                two methods: a difference, or noise?
listening/                a page for a blind test by ear
"""
