"""`tfswa-sep serve`: a page and a REST API that separate songs.

    app.py       the routes below /v1, and the page
    security.py  who may send requests: host, origin, token; headers against hostile content
    uploads.py   the body of an upload -> files, within the limits
    jobs.py      the queue: one worker process per parallel song, progress, cancelling, expiry
    worker.py    what runs in a worker process
    store.py     jobs on disk, in SQLite: they survive a restart
    delivery.py  finished stems -> other formats, mixes, zips, waveforms
    page/        the page: HTML, CSS and ES modules, served as they are

Needs the extra `serve`. Only the worker processes load a model.
"""
