"""`tfswa-sep eval`: score separated stems against the true ones.

multitrack.py, musdb.py   songs whose true stems are known
methods.py                sources of estimates: a model, a folder of stems from any tool, a baseline
scoring.py                true stems and estimates -> metrics.py, bsseval.py, bsseval_v4.py, perceptual.py, peass.py
run.py                    every song with every method, scored in processes, resumable
results.py                the scores, with everything needed to reproduce them
report/                   tables, charts, an HTML page (templates/)
compare.py                paired differences between methods
listening/                a blind listening test, and the analysis of its answers
"""
