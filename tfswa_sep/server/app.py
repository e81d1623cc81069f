"""The routes: the REST API below /v1, and the page."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, quote
from weakref import WeakValueDictionary

import filelock
import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

import tfswa_sep
from tfswa_sep import registry
from tfswa_sep.audio.ffmpeg import find_ffmpeg
from tfswa_sep.audio.stem_mp4 import EXTENSION
from tfswa_sep.audio.stem_paths import default_track_name
from tfswa_sep.errors import DeviceError, InputError, ModelError, OutputError, TfswaError, UsageError
from tfswa_sep.inference.stem_matrix import parse_stems
from tfswa_sep.options import Runtime, ServeOptions
from tfswa_sep.registry.folders import data_folder
from tfswa_sep.server import delivery, security
from tfswa_sep.server.jobs import ACTIVE, FullError, Jobs, QuotaError
from tfswa_sep.server.security import COOKIE, Guard, refuse, same_secret, session_cookie
from tfswa_sep.server.store import Job, State
from tfswa_sep.server.uploads import UploadError, receive_upload

PAGE = Path(__file__).with_name("page")
_STATUS = {UsageError: 400, InputError: 404, ModelError: 500, OutputError: 507, DeviceError: 500}
_RETRY_SECONDS = 10  # after which a full queue is worth another try
_EVENT_SECONDS = 0.2  # between two reports of progress
_SMALL_BODY = 10_000  # bytes of a body that is no upload
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_LOUDEST = 10.0  # gain of a stem in a mix
_CONNECTIONS = 400
_PEAKS = ".peaks"

Format = Literal["wav", "flac", "mp3", "ogg", "opus", "m4a"]


class JobView(BaseModel):
    """A song and how far its separation is."""

    id: str
    name: str  # the song's file name
    state: State
    model: str  # "" for the server's default
    stems: list[str]  # those that can be played, also while the song is being separated
    created: float  # Unix time, as are the next two
    started: float | None
    finished: float | None
    seconds: float | None  # length of the song, None if unknown
    frames: int | None  # samples per channel of the finished stems
    sample_rate: int  # Hz, of the stems; 0 before the song is opened
    channels: int  # of the stems; 0 before the song is opened
    progress: float  # 0 to 1
    seconds_left: float | None  # until it is done, None if unknown
    playable: float  # seconds of the stems that can be played
    warnings: list[str]
    error: dict[str, str] | None  # kind and message


class JobList(BaseModel):
    """Several songs, the newest first."""

    jobs: list[JobView]


class ModelView(BaseModel):
    """A model that songs can be separated with."""

    name: str
    summary: str
    stems: list[str]
    license: str
    scores: dict[str, float]  # stem -> SDR in dB
    default: bool


class ServerView(BaseModel):
    """What this server offers, and its limits."""

    version: str
    formats: list[str]
    stem_file: bool  # whether .stem.mp4 files can be made
    max_size: float  # MB per song
    max_minutes: float  # length of a song
    max_queue: int  # songs that may wait
    keep: float  # days that a finished song is kept
    used: int  # bytes on disk
    quota: int  # bytes on disk


def create_app(folder: Path, options: ServeOptions, runtime: Runtime, model: str = "") -> FastAPI:
    """The application.

    Args:
        folder: For songs, stems and the database.
        options: See ServeOptions.
        runtime: How models run.
        model: The default model; "" for tfswa-sep's.
    """
    jobs = Jobs(folder, options, runtime, model)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        jobs.start()
        yield
        await run_in_threadpool(jobs.stop)

    app = FastAPI(
        title="tfswa-sep",
        version=tfswa_sep.__version__,
        description="Separate songs into vocals, drums, bass and other.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.jobs = jobs
    app.add_middleware(Guard, options=options, login_page=(PAGE / "login.html").read_bytes())
    _handle_errors(app)
    _add_page(app, jobs, options)
    _add_information(app, jobs, options)
    _add_jobs(app, jobs, options)
    _add_stems(app, jobs)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def serve(
    options: ServeOptions, runtime: Runtime, model: str = "", *, on_ready: Callable[[str], None]
) -> None:
    """Serve until interrupted.

    Args:
        options: See ServeOptions.
        runtime: How models run.
        model: The default model; "" for tfswa-sep's.
        on_ready: Called with the page's address once the server answers.

    Raises:
        OutputError: The port is in use, or the data folder is, or cannot be written.
    """
    folder = options.data or data_folder() / "serve"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = filelock.FileLock(folder / "lock", timeout=0)
        with lock:
            _run(create_app(folder, options, runtime, model), options, on_ready)
    except filelock.Timeout:
        raise OutputError(f"another server uses {folder}: end it, or choose another --data") from None
    except OSError as error:
        raise OutputError(f"cannot use {error.filename or folder}: {error.strerror or error}") from None


def _run(app: FastAPI, options: ServeOptions, on_ready: Callable[[str], None]) -> None:
    listener = _listen(options.host, options.port)
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{listener.getsockname()[1]}/"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready(address)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.jobs.end_watching()  # else it waits for those who watch
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=3,
    )
    with listener:
        Server(config).run([listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot listen on {host}, port {port}: {reason}: choose another --port") from None


def _handle_errors(app: FastAPI) -> None:
    """Answer every error as `refuse` does."""

    @app.exception_handler(TfswaError)
    def ours(request: Request, error: TfswaError) -> Response:
        jobs: Jobs = request.app.state.jobs
        message = str(error).replace(str(jobs.root), "the server's folder")
        return refuse(_STATUS.get(type(error), 500), type(error).__name__, message)

    @app.exception_handler(FullError)
    def full(request: Request, error: FullError) -> Response:
        return refuse(503, "Full", "the queue is full: try again later", {"retry-after": str(_RETRY_SECONDS)})

    @app.exception_handler(QuotaError)
    def quota(request: Request, error: QuotaError) -> Response:
        return refuse(507, "Quota", "the server's disk quota is used up: delete songs")

    @app.exception_handler(UploadError)
    def upload(request: Request, error: UploadError) -> Response:
        return refuse(error.status, "Upload", error.message, {"connection": "close"})

    @app.exception_handler(StarletteHTTPException)
    def http(request: Request, error: StarletteHTTPException) -> Response:
        return refuse(error.status_code, "HTTP", str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return refuse(400, "UsageError", f"{first['loc'][-1]}: {first['msg']}")


def _add_page(app: FastAPI, jobs: Jobs, options: ServeOptions) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        jobs.warm_up()
        return FileResponse(PAGE / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return FileResponse(PAGE / "docs.html")

    @app.post("/login", include_in_schema=False)
    async def login(request: Request) -> Response:
        sent = parse_qs((await _read_small(request)).decode("utf-8", "replace")).get("token", [""])[0]
        if options.token is None or not same_secret(sent, options.token):
            await asyncio.sleep(security.WRONG_TOKEN_SECONDS)
            return RedirectResponse("/#wrong", 303)
        answer = RedirectResponse("/", 303)
        cookie = session_cookie(options.token)
        answer.set_cookie(COOKIE, cookie, max_age=30 * 86_400, httponly=True, samesite="strict")
        return answer


def _add_information(app: FastAPI, jobs: Jobs, options: ServeOptions) -> None:
    @app.get("/health", tags=["server"])
    async def health() -> dict[str, str]:
        """Whether the server works. Needs no token."""
        return {"status": "ok"}

    @app.get("/v1/server", tags=["server"])
    async def server() -> ServerView:
        """What this server offers, and its limits."""
        ffmpeg = find_ffmpeg() is not None
        return ServerView(
            version=tfswa_sep.__version__,
            formats=[each for each in delivery.FORMATS if ffmpeg or each != "m4a"],
            stem_file=ffmpeg,
            max_size=options.max_size,
            max_minutes=options.max_minutes,
            max_queue=options.max_queue,
            keep=options.keep,
            used=jobs.used(),
            quota=int(options.quota * 1e9),
        )

    @app.get("/v1/models", tags=["server"])
    def models() -> list[ModelView]:
        """The models that songs can be separated with, the default first."""
        default = jobs.model or registry.default_model().name
        return [
            ModelView(
                name=each.name,
                summary=each.summary,
                stems=list(each.stems),
                license=each.license,
                scores=each.scores,
                default=each.name == default,
            )
            for each in sorted(registry.known_models(), key=lambda each: each.name != default)
        ]


def _add_jobs(app: FastAPI, jobs: Jobs, options: ServeOptions) -> None:
    @app.post("/v1/jobs", status_code=201, tags=["jobs"], openapi_extra=_UPLOAD_SCHEMA)
    async def add(request: Request) -> JobView | JobList:
        """Add songs: one or several files, or, if the server allows it, the path of one on its disk.

        Answers with the job, or with a list of jobs if several files were sent.
        """
        jobs.warm_up()
        if request.headers.get("content-type", "").partition(";")[0] == "application/json":
            return await _add_path(request, jobs)
        announced = request.headers.get("content-length", "0")
        size = int(announced) if announced.isascii() and announced.isdigit() else 0
        largest = options.max_size * 1e6
        if size > largest * options.max_queue:
            raise UploadError(413, f"a song may be at most {options.max_size:g} MB")
        with jobs.reserve(size) as room:
            upload = await receive_upload(
                request,
                jobs.uploads,
                largest=largest,
                check_room=lambda songs, received: jobs.grow(room, songs=songs, size=received),
            )
            try:
                if not upload.files:
                    raise UploadError(400, "no song was sent, in the field 'file'")
                model, stems = _check_choice(upload.fields.get("model", ""), upload.fields.get("stems", ""))
                added = [jobs.add(name, file, model=model, stems=stems) for name, file in upload.files]
            finally:
                upload.discard()
        views = [_view(jobs, job) for job in added]
        return views[0] if len(views) == 1 else JobList(jobs=views)

    @app.get("/v1/jobs", tags=["jobs"])
    async def list_jobs() -> JobList:
        """All songs, the newest first."""
        return JobList(jobs=[_view(jobs, job) for job in jobs.all()])

    @app.get("/v1/jobs/{job_id}", tags=["jobs"])
    async def show(job_id: str) -> JobView:
        """One song."""
        return _view(jobs, _find(jobs, job_id))

    @app.delete("/v1/jobs/{job_id}", status_code=204, tags=["jobs"])
    def delete(job_id: str) -> Response:
        """Stop a song's separation if it is running, and delete the song and its stems."""
        if not jobs.delete(job_id):
            raise HTTPException(404, "no such job")
        return Response(status_code=204)

    @app.post("/v1/jobs/{job_id}/cancel", tags=["jobs"])
    def cancel(job_id: str) -> JobView:
        """Stop a song's separation, but keep the song."""
        return _view(jobs, _existing(jobs.cancel(job_id)))

    @app.post("/v1/jobs/{job_id}/retry", tags=["jobs"])
    def retry(job_id: str) -> JobView:
        """Separate a failed or cancelled song again."""
        return _view(jobs, _existing(jobs.retry(job_id)))

    @app.get("/v1/jobs/{job_id}/events", response_class=EventSourceResponse, tags=["jobs"])
    async def job_events(job_id: str) -> AsyncIterator[ServerSentEvent]:
        """Server-sent events `job`, with the job as in `GET /v1/jobs/{job_id}`, until it has ended."""
        with jobs.watch() as watcher:
            watcher.add(job_id)
            while not jobs.stopping:
                job = jobs.get(job_id)
                if job is None:
                    yield ServerSentEvent(event="deleted", data={"id": job_id})
                    return
                yield ServerSentEvent(event="job", data=_view(jobs, job))
                if job.state not in ACTIVE:
                    return
                await asyncio.sleep(_EVENT_SECONDS)
                while not jobs.stopping and job_id not in await watcher.changed():
                    pass

    @app.get("/v1/events", response_class=EventSourceResponse, tags=["jobs"])
    async def events() -> AsyncIterator[ServerSentEvent]:
        """Server-sent events of all songs: first `jobs`, then `job` or `deleted` for each change."""
        with jobs.watch() as watcher:
            yield ServerSentEvent(event="jobs", data=JobList(jobs=[_view(jobs, job) for job in jobs.all()]))
            while not jobs.stopping:
                for job_id in await watcher.changed():
                    job = jobs.get(job_id)
                    if job:
                        yield ServerSentEvent(event="job", data=_view(jobs, job))
                    else:
                        yield ServerSentEvent(event="deleted", data={"id": job_id})
                await asyncio.sleep(_EVENT_SECONDS)


def _add_stems(app: FastAPI, jobs: Jobs) -> None:
    exports = _Exports(jobs)

    @app.get("/v1/jobs/{job_id}/stems/{stem}", response_class=FileResponse, tags=["stems"])
    def stem_file(job_id: str, stem: str, format: Format = "wav") -> Response:
        """A finished stem. Supports `Range`."""
        job = _find_done(jobs, job_id)
        return FileResponse(exports.stem(job, stem, format), filename=f"{_title(job)} - {stem}.{format}")

    @app.get("/v1/jobs/{job_id}/stems.zip", tags=["stems"])
    def stems_zip(job_id: str, format: Format = "wav") -> Response:
        """All finished stems as a zip file."""
        job = _find_done(jobs, job_id)
        files = ((f"{_title(job)}/{stem}.{format}", exports.stem(job, stem, format)) for stem in job.made)
        headers = {"content-disposition": f"attachment; filename*=utf-8''{quote(_title(job))}.zip"}
        return StreamingResponse(delivery.zip_chunks(files), media_type="application/zip", headers=headers)

    @app.get("/v1/jobs/{job_id}/stem.mp4", response_class=FileResponse, tags=["stems"])
    def stem_mp4(job_id: str) -> Response:
        """All stems as one Native Instruments file, for Traktor and other DJ software."""
        job = _find_done(jobs, job_id)
        return FileResponse(
            exports.stem_mp4(job), filename=f"{_title(job)}{EXTENSION}", media_type="video/mp4"
        )

    @app.get("/v1/jobs/{job_id}/mix", response_class=FileResponse, tags=["stems"])
    def mix(
        job_id: str,
        format: Format = "wav",
        gains: Annotated[
            str, Query(description="STEM:GAIN,... with 1 for unchanged; others are left out")
        ] = "",
    ) -> Response:
        """The stems mixed, each with a gain."""
        job = _find_done(jobs, job_id)
        target = exports.mix(job, _parse_gains(job, gains), format)
        return FileResponse(
            target, filename=f"{_title(job)} - mix.{format}", background=BackgroundTask(target.unlink)
        )

    @app.get("/v1/jobs/{job_id}/pcm/{stem}", tags=["stems"])
    def pcm(request: Request, job_id: str, stem: str) -> Response:
        """A stem's samples, 32-bit floats, little-endian, interleaved; also while the song is being separated.

        Supports `Range: bytes=FIRST-LAST`.
        """
        path = jobs.stem(_find(jobs, job_id), stem)
        if path is None:
            raise HTTPException(404, "no such stem")
        try:
            file = path.open("rb")
        except FileNotFoundError:  # renamed just now, since it is complete
            file = _open_stem(jobs, job_id, stem)
        begin = delivery.find_samples(file)
        size = os.fstat(file.fileno()).st_size - begin
        job = _find(jobs, job_id)
        if job.state == "done" and job.seconds is not None:  # tags may follow the samples
            size = min(size, round(job.seconds * job.sample_rate) * job.channels * 4)
        asked = _RANGE.fullmatch(request.headers.get("range", ""))
        first, last = (int(asked[1]), int(asked[2] or size - 1)) if asked else (0, size - 1)
        last = min(last, size - 1)
        if asked and first > last:
            file.close()
            return Response(status_code=416, headers={"content-range": f"bytes */{size}"})
        file.seek(begin + first)
        headers = {"accept-ranges": "bytes", "content-length": str(last + 1 - first)}
        if asked:
            headers["content-range"] = f"bytes {first}-{last}/{size if job.state == 'done' else '*'}"
        return StreamingResponse(
            delivery.read_chunks(file, last + 1 - first),
            206 if asked else 200,
            headers,
            "application/octet-stream",
        )

    @app.get("/v1/jobs/{job_id}/peaks/{stem}", tags=["stems"])
    def peaks(job_id: str, stem: str, first: Annotated[int, Query(ge=0)] = 0) -> Response:
        """A stem's waveform from value `first` on: for each 1,024 samples two bytes, the peak and the RMS.

        255 is full scale. While the song is being separated, the waveform grows.
        """
        return Response(
            exports.peaks(_find(jobs, job_id), stem, first), media_type="application/octet-stream"
        )


class _Exports:
    """Files made from finished stems, kept with the job until that is deleted."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._guard = threading.Lock()
        self._locks: WeakValueDictionary[str, Any] = WeakValueDictionary()  # one per job
        self._slots = threading.Semaphore(os.cpu_count() or 1)

    def stem(self, job: Job, stem: str, container: str) -> Path:
        if stem not in job.made:
            raise HTTPException(404, "no such stem")
        wav = self._wav(job, stem)
        if container == "wav":
            return wav
        song = self._jobs.song(job)
        return self._make(
            job,
            f"{stem}.{container}",
            lambda target: delivery.encode({wav: 1.0}, target, container, song=song, title=stem),
        )

    def stem_mp4(self, job: Job) -> Path:
        wavs = {stem: self._wav(job, stem) for stem in job.made}
        song = self._jobs.song(job)
        return self._make(job, "stem.mp4", lambda target: delivery.encode_stem_file(wavs, target, song=song))

    def mix(self, job: Job, gains: Mapping[str, float], container: str) -> Path:
        """A file that the caller removes."""
        wavs = {self._wav(job, stem): gain for stem, gain in gains.items()}
        target = self._jobs.uploads / f"{secrets.token_hex(8)}.{container}"
        with self._slots:
            delivery.encode(wavs, target, container, song=self._jobs.song(job), title="mix")
        return target

    def peaks(self, job: Job, stem: str, first: int) -> bytes:
        path = self._jobs.stem(job, stem)
        if path is None:
            raise HTTPException(404, "no such stem")
        if job.state != "done" or job.seconds is None:
            try:
                return delivery.waveform(path, job.channels, None, first)
            except (FileNotFoundError, InputError):  # complete just now, or not begun
                return b""
        frames = round(job.seconds * job.sample_rate)
        kept = self._make(
            job,
            f"{stem}{_PEAKS}",
            lambda target: target.write_bytes(delivery.waveform(path, job.channels, frames, 0)),
        )
        return kept.read_bytes()[2 * first :]

    def _wav(self, job: Job, stem: str) -> Path:
        return self._jobs.folder(job) / f"{stem}.wav"

    def _make(self, job: Job, name: str, make: Callable[[Path], object]) -> Path:
        target = self._jobs.folder(job) / "exports" / name
        with self._guard:
            lock = self._locks.setdefault(job.id, threading.Lock())
        with lock, self._slots:
            if not target.exists():
                if not self._jobs.folder(job).exists():
                    raise HTTPException(404, "no such job")
                target.parent.mkdir(exist_ok=True)
                if target.suffix != _PEAKS:
                    self._jobs.check_quota()
                make(target)
                self._jobs.measure(job)
        return target


async def _add_path(request: Request, jobs: Jobs) -> JobView:
    """Queue a song that is already on the server's disk."""
    try:
        body = json.loads(await _read_small(request))
        path, model, stems = str(body["path"]), str(body.get("model", "")), str(body.get("stems", ""))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UsageError('expected an object such as {"path": "song.mp3"}') from None
    allowed = jobs.options.allow_path
    if allowed is None:
        raise HTTPException(403, "the server was started without --allow-path")
    model, chosen = _check_choice(model, stems)
    try:
        found = (allowed / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        found = None
    if found is None or not found.is_relative_to(allowed.resolve()) or not found.is_file():
        raise InputError("there is no such song below the server's --allow-path")
    if found.stat().st_size > jobs.options.max_size * 1e6:
        raise UploadError(413, f"the song is larger than {jobs.options.max_size:g} MB, the limit here")
    with jobs.reserve(0):
        return _view(jobs, jobs.add(found.name, found, model=model, stems=chosen, uploaded=False))


async def _read_small(request: Request) -> bytes:
    body = b""
    async with asyncio.timeout(10):
        async for chunk in request.stream():
            body += chunk
            if len(body) > _SMALL_BODY:
                raise UploadError(413, "the request is too long")
    return body


def _check_choice(model: str, stems: str) -> tuple[str, tuple[str, ...]]:
    """The model and the stems that were asked for. Raises UsageError if one does not exist."""
    chosen = tuple(each.strip() for each in stems.split(",") if each.strip())
    known = {each.name: each for each in registry.known_models()}
    if model and model not in known:
        raise UsageError(f"unknown model: choose from {', '.join(known)}")
    available = (known[model] if model else registry.default_model()).stems
    if chosen and available:
        names, _ = parse_stems(list(chosen), available)
        return model, tuple(names)
    return model, chosen


def _find(jobs: Jobs, job_id: str) -> Job:
    return _existing(jobs.get(job_id))


def _existing(job: Job | None) -> Job:
    if job is None:
        raise HTTPException(404, "no such job")
    return job


def _find_done(jobs: Jobs, job_id: str) -> Job:
    job = _find(jobs, job_id)
    if job.state != "done":
        raise HTTPException(409, f"the song is {job.state}")
    return job


def _open_stem(jobs: Jobs, job_id: str, stem: str) -> Any:
    try:
        return (jobs.folder(_find(jobs, job_id)) / f"{stem}.wav").open("rb")
    except OSError:
        raise HTTPException(404, "no such stem") from None


def _title(job: Job) -> str:
    return default_track_name(Path(job.name))


def _parse_gains(job: Job, text: str) -> dict[str, float]:
    if not text:
        return dict.fromkeys(job.made, 1.0)
    gains: dict[str, float] = {}
    for part in text.split(","):
        stem, _, number = part.rpartition(":")
        try:
            gain = float(number)
        except ValueError:
            gain = math.nan
        if stem not in job.made or not 0 <= gain <= _LOUDEST:
            raise UsageError(f"gains must be STEM:GAIN,... with stems of this song and 0 to {_LOUDEST:g}")
        gains[stem] = gain
    return gains


def _view(jobs: Jobs, job: Job) -> JobView:
    running = jobs.progress(job.id) if job.state == "running" else None
    stems, playable, progress, left = list(job.made), job.seconds or 0.0, float(job.state == "done"), None
    if running:
        stems = list(running.files)
        playable = _playable(job, running.files)
        if job.seconds:
            progress = min(running.done / job.seconds, 1.0)
            took = running.elapsed
            left = took * (1 - progress) / progress if progress else None
    elif job.state != "done":
        playable = 0.0
    return JobView(
        **{
            **asdict(job),
            "stems": stems,
            "error": dict(job.error) or None,
            "frames": round(job.seconds * job.sample_rate) if job.state == "done" and job.seconds else None,
            "progress": progress,
            "seconds_left": left,
            "playable": playable,
        }
    )


def _playable(job: Job, files: Mapping[str, Path]) -> float:
    try:
        size = min((os.stat(path).st_size for path in files.values()), default=0)
    except OSError:  # complete just now
        return job.seconds or 0.0
    return max(0, size - 4096) / (4 * job.channels * job.sample_rate) if job.sample_rate else 0.0


_CHOICES = {
    "model": {"type": "string", "description": "A name from GET /v1/models; the default if left out."},
    "stems": {"type": "string", "description": "Such as vocals,accompaniment; all if left out."},
}
_UPLOAD_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        **_CHOICES,
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["path"],
                    "properties": {
                        "path": {"type": "string", "description": "A song below the server's --allow-path."},
                        **_CHOICES,
                    },
                }
            },
        },
    }
}
