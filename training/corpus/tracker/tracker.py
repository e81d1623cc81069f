"""Tracker modules (MOD, S3M, XM, IT): a song's notes and the recordings of its instruments in one file.

libopenmpt plays them, all instruments or some. It mixes in float32 without a limiter, so that what disjoint
sets of instruments play adds up to the song (within -120 dB, measured): true stems, at the song's own levels.
Functions: https://lib.openmpt.org/doc/group__libopenmpt__ext__c.html
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

from training.corpus.recorded.sources import SAMPLE_RATE, Audio

LIBRARY = "libopenmpt0"  # the Debian package
STEREO_SEPARATION = 2  # OPENMPT_MODULE_RENDER_STEREOSEPARATION_PERCENT
AMIGA_SEPARATION = 40  # percent: in a MOD every channel is hard left or hard right, as in no mix of today
NOTE, INSTRUMENT = 0, 1  # OPENMPT_MODULE_COMMAND_...
HIGHEST_NOTE = 120  # above it are note-off and the like
FRAMES_AT_ONCE = 1 << 16

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
_INTERACTIVE = 16  # functions of libopenmpt's interface of this name
_MUTE_INSTRUMENT = 12  # the place among them of set_instrument_mute_status


def installed() -> bool:
    """Whether libopenmpt is there."""
    return ctypes.util.find_library("openmpt") is not None


@dataclass(frozen=True)
class Score:
    """What is written in a module. Instruments count from 0."""

    seconds: float
    # For each instrument that plays: how often it strikes which note.
    notes: dict[int, Counter[int]]
    names: dict[int, str]  # of the same instruments: what they are, a greeting, or nothing


def read_score(content: bytes) -> Score:
    """Read a module's notes. Raises ValueError when libopenmpt does not know the file."""
    with _opened(content) as (call, module):
        channels = call("module_get_num_channels", module)
        notes: dict[int, Counter[int]] = {}
        latest = [0] * channels
        for order in range(call("module_get_num_orders", module)):
            pattern = call("module_get_order_pattern", module, order)
            for row in range(call("module_get_pattern_num_rows", module, pattern)):
                for channel in range(channels):
                    place = (module, pattern, row, channel)
                    note = call("module_get_pattern_row_channel_command", *place, NOTE)
                    instrument = call("module_get_pattern_row_channel_command", *place, INSTRUMENT)
                    latest[channel] = instrument or latest[channel]
                    if 0 < note <= HIGHEST_NOTE and latest[channel]:
                        notes.setdefault(latest[channel] - 1, Counter())[note] += 1
        kind = "instrument" if call("module_get_num_instruments", module) else "sample"
        names = {}
        for instrument in notes:
            names[instrument] = _text(call(f"module_get_{kind}_name", module, instrument))
        return Score(call("module_get_duration_seconds", module), dict(sorted(notes.items())), names)


def play(
    content: bytes, *, seconds: float, instruments: Collection[int] | None = None, rate: int = SAMPLE_RATE
) -> Audio:
    """The beginning of a module, (n, 2), as loud as it is written (peaks may pass 1); of all instruments or
    some, numbered from 0. Silence after its end. Raises ValueError when libopenmpt does not know the file.
    """
    audio = np.zeros((round(seconds * rate), 2), np.float32)
    with _opened(content, instruments) as (call, module):
        if _text(call("module_get_metadata", module, b"type")) == "mod":
            call("module_set_render_param", module, STEREO_SEPARATION, AMIGA_SEPARATION)
        done = 0
        while done < len(audio):
            wanted = min(FRAMES_AT_ONCE, len(audio) - done)
            target = audio[done:].ctypes.data
            got = call("module_read_interleaved_float_stereo", module, rate, wanted, target)
            if not got:
                break
            done += got
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


def _text(pointer: int | None) -> str:
    """A string that libopenmpt made, which is given back to it."""
    if not pointer:
        return ""
    text = ctypes.string_at(pointer).decode("utf-8", "replace")
    _library().openmpt_free_string(pointer)
    return text


@contextlib.contextmanager
def _opened(content: bytes, instruments: Collection[int] | None = None) -> Iterator[tuple[Any, int]]:
    """A function that calls one of _FUNCTIONS, and a module of which only some instruments are heard."""
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
