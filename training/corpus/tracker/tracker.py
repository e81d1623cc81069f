"""Tracker modules (MOD, S3M, XM, IT): files with a song's notes and the samples of its instruments.

libopenmpt plays all instruments or some. It mixes in float32 without a limiter, so that the stems add up to the song
(to within -120 dB, measured). Functions: https://lib.openmpt.org/doc/group__libopenmpt__ext__c.html
"""

import contextlib
import ctypes
import ctypes.util
from collections import Counter
from collections.abc import Collection, Iterator
from ctypes import c_char_p, c_double, c_int, c_int32, c_size_t, c_uint8, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tfswa_sep.constants import SAMPLE_RATE
from training.corpus.recorded.sources import Audio

LIBRARY = "libopenmpt0"  # the Debian package
STEREO_SEPARATION = 2  # OPENMPT_MODULE_RENDER_STEREOSEPARATION_PERCENT
AMIGA_SEPARATION = 40  # percent; MODs pan every channel hard left or right
NOTE, INSTRUMENT = 0, 1  # OPENMPT_MODULE_COMMAND_...
HIGHEST_NOTE = 120  # higher values are commands such as note-off
BLOCK = 1 << 16  # frames rendered at a time

_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "module_ext_create_from_memory": (c_void_p, [c_char_p, c_size_t] + [c_void_p] * 7),
    "module_ext_destroy": (None, [c_void_p]),
    "module_ext_get_module": (c_void_p, [c_void_p]),
    "module_ext_get_interface": (c_int, [c_void_p, c_char_p, c_void_p, c_size_t]),
    "module_get_duration_seconds": (c_double, [c_void_p]),
    "module_get_num_instruments": (c_int32, [c_void_p]),
    "module_get_num_samples": (c_int32, [c_void_p]),
    "module_get_instrument_name": (c_void_p, [c_void_p, c_int32]),
    "module_get_sample_name": (c_void_p, [c_void_p, c_int32]),
    "module_get_metadata": (c_void_p, [c_void_p, c_char_p]),
    "free_string": (None, [c_void_p]),
    "module_get_num_channels": (c_int32, [c_void_p]),
    "module_get_num_orders": (c_int32, [c_void_p]),
    "module_get_order_pattern": (c_int32, [c_void_p, c_int32]),
    "module_get_pattern_num_rows": (c_int32, [c_void_p, c_int32]),
    "module_get_pattern_row_channel_command": (c_uint8, [c_void_p, c_int32, c_int32, c_int32, c_int]),
    "module_set_render_param": (c_int, [c_void_p, c_int, c_int32]),
    "module_read_interleaved_float_stereo": (c_size_t, [c_void_p, c_int32, c_size_t, c_void_p]),
}
_INTERACTIVE = 16  # functions in libopenmpt's "interactive" interface
_MUTE_INSTRUMENT = 12  # index of set_instrument_mute_status


def is_installed() -> bool:
    """Whether libopenmpt is installed."""
    return ctypes.util.find_library("openmpt") is not None


@dataclass(frozen=True)
class Score:
    """The notes of a module. Instruments are numbered from 0."""

    seconds: float
    notes: dict[int, Counter[int]]  # instrument -> how often it plays each note
    names: dict[int, str]  # of the same instruments; often empty or a greeting


def read_score(content: bytes) -> Score:
    """Read a module's notes. Raises ValueError if libopenmpt cannot read it."""
    with _open_module(content) as (call, module):
        channels = call("module_get_num_channels", module)
        notes: dict[int, Counter[int]] = {}
        latest = [0] * channels
        for order in range(call("module_get_num_orders", module)):
            pattern = call("module_get_order_pattern", module, order)
            for row in range(call("module_get_pattern_num_rows", module, pattern)):
                for channel in range(channels):
                    cell = (module, pattern, row, channel)
                    note = call("module_get_pattern_row_channel_command", *cell, NOTE)
                    instrument = call("module_get_pattern_row_channel_command", *cell, INSTRUMENT)
                    latest[channel] = instrument or latest[channel]
                    if 0 < note <= HIGHEST_NOTE and latest[channel]:
                        notes.setdefault(latest[channel] - 1, Counter())[note] += 1
        kind = "instrument" if call("module_get_num_instruments", module) else "sample"
        names = {i: _read_text(call(f"module_get_{kind}_name", module, i)) for i in notes}
        return Score(call("module_get_duration_seconds", module), dict(sorted(notes.items())), names)


def play(
    content: bytes, *, seconds: float, instruments: Collection[int] | None = None, rate: int = SAMPLE_RATE
) -> Audio:
    """Render the beginning of a module to (n, 2), padded with silence; peaks may exceed 1.

    Args:
        content: The module.
        seconds: Length of the result.
        instruments: Numbers of those to play, from 0; None: all.
        rate: Sample rate in Hz.

    Raises:
        ValueError: libopenmpt cannot read the module.
    """
    audio = np.zeros((round(seconds * rate), 2), np.float32)
    with _open_module(content, instruments) as (call, module):
        if _read_text(call("module_get_metadata", module, b"type")) == "mod":
            call("module_set_render_param", module, STEREO_SEPARATION, AMIGA_SEPARATION)
        done = 0
        while done < len(audio):
            count = min(BLOCK, len(audio) - done)
            target = audio[done:].ctypes.data
            count = call("module_read_interleaved_float_stereo", module, rate, count, target)
            if not count:
                break
            done += count
    return audio


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    name = ctypes.util.find_library("openmpt")
    if name is None:
        raise RuntimeError(f"libopenmpt is not installed; on Debian: apt-get install {LIBRARY}")
    library = ctypes.CDLL(name)
    for function, (result, arguments) in _FUNCTIONS.items():
        getattr(library, f"openmpt_{function}").restype = result
        getattr(library, f"openmpt_{function}").argtypes = arguments
    return library


def _read_text(pointer: int | None) -> str:
    """Read and free a string allocated by libopenmpt."""
    if not pointer:
        return ""
    text = ctypes.string_at(pointer).decode("utf-8", "replace")
    _library().openmpt_free_string(pointer)
    return text


@contextlib.contextmanager
def _open_module(content: bytes, instruments: Collection[int] | None = None) -> Iterator[tuple[Any, int]]:
    """Yield a function that calls one of _FUNCTIONS, and a module that plays only some instruments."""
    library = _library()

    def call(function: str, *arguments: Any) -> Any:
        return getattr(library, f"openmpt_{function}")(*arguments)

    silent = ctypes.cast(library.openmpt_log_func_silent, c_void_p)
    created = call("module_ext_create_from_memory", content, len(content), silent, *[None] * 6)
    if not created:
        raise ValueError("not a tracker module")
    try:
        module = call("module_ext_get_module", created)
        if instruments is not None:
            functions = (c_void_p * _INTERACTIVE)()
            size = ctypes.sizeof(functions)
            if not call("module_ext_get_interface", created, b"interactive", ctypes.byref(functions), size):
                raise RuntimeError("libopenmpt cannot mute instruments")
            mute = ctypes.CFUNCTYPE(c_int, c_void_p, c_int32, c_int)(functions[_MUTE_INSTRUMENT] or 0)
            count = call("module_get_num_instruments", module) or call("module_get_num_samples", module)
            for index in range(count):
                if not mute(created, index, index not in instruments):
                    raise RuntimeError("libopenmpt cannot mute an instrument")
        yield call, module
    finally:
        call("module_ext_destroy", created)
