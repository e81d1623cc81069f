"""How training mixtures are drawn: the `data.mix` settings of a training with the open corpus."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class MixSettings:
    """How mixtures are drawn. Levels in dB of full scale, pitches in semitones, the rest probabilities.

    The defaults won short paired runs (experiments/005-whole-songs.md). Limiter, codec and most vocal
    effects are off, since a run with them fell behind (003-softmax-gains.md); a long training may want them.
    """

    seconds: float = 2.9606  # 256 frames; of 3 s there are 259, which the network pads to 288
    sample_rate: int = 44_100
    kinds: dict[str, float] = field(
        default_factory=lambda: {
            "stems": 0.3,
            "band": 0.2,
            "accompaniment": 0.15,
            "song": 0.35,
        }
    )
    level: dict[str, float] = field(
        default_factory=lambda: {
            "vocals": -20.0,
            "drums": -20.0,
            "bass": -22.0,
            "other": -21.0,
            "accompaniment": -17.0,
        }
    )
    level_spread: float = 4.0  # standard deviation, dB
    drop: dict[str, float] = field(
        default_factory=lambda: {
            "vocals": 0.12,
            "drums": 0.1,
            "bass": 0.12,
            "other": 0.06,
            "accompaniment": 0.0,
        }
    )
    pitch: dict[str, float] = field(
        default_factory=lambda: {
            "vocals": 5.0,
            "drums": 3.0,
            "bass": 3.0,
            "other": 4.0,
            "accompaniment": 3.0,
            "song": 2.0,
        }
    )  # changes the tempo alike, as a tape does
    tempo: dict[str, float] = field(
        default_factory=lambda: {"vocals": 0.15, "bass": 0.05, "other": 0.05, "accompaniment": 0.05}
    )  # of another tempo at the same pitch, 0.8 to 1.25
    second: dict[str, float] = field(default_factory=lambda: {"vocals": 0.1, "other": 0.2})
    voice: dict[str, float] = field(
        default_factory=lambda: {
            "formant": 0.2,
            "whisper": 0.0,
            "growl": 0.0,
            "drive": 0.1,
            "harmony": 0.0,
            "double": 0.05,
            "choir": 0.0,
        }
    )  # manners of voices, see training/mixing/voices.py
    room: dict[str, float] = field(
        default_factory=lambda: {
            "vocals": 0.6,
            "drums": 0.25,
            "bass": 0.25,
            "other": 0.25,
            "accompaniment": 0.1,
        }
    )
    echo: float = 0.1  # of a voice
    compress: float = 0.5  # of a voice, 1.5:1 to 5:1; the other pools were compressed as they were rendered
    voices: dict[str, float] = field(
        default_factory=lambda: {"song": 0.3, "singing": 0.4, "sung speech": 0.2, "speech": 0.1}
    )  # how often each of `training.corpus.recorded.catalogue.VOICE_KINDS` is drawn
    low_cut: dict[str, float] = field(
        default_factory=lambda: {"vocals": 0.0, "other": 0.0, "band": 0.0}
    )  # of a high-pass, as in most mixes on all but kick and bass; of a band it is other that gets it
    high_cut: dict[str, float] = field(
        default_factory=lambda: {"bass": 0.0, "band": 0.0}
    )  # of a gentle low-pass for the bass, which in mixes has little above 250 Hz and rendered has much
    pan: dict[str, float] = field(
        default_factory=lambda: {
            "vocals": 0.2,
            "drums": 0.2,
            "bass": 0.1,
            "other": 0.6,
            "accompaniment": 0.2,
        }
    )  # away from the centre, where lead voices, kick and bass are in nearly all songs
    estimated_songs: float = 1.0  # draws of a song that a teacher took apart, to one of a song with stems
    mixed_songs: bool = False  # stems of real songs at the levels of `level`, else as they were recorded
    song_voice: float = 0.35  # share of songs whose voice gives way to another one
    mono: float = 0.3  # share of mixtures folded to mono
    equalizer: float = 3.0  # dB, standard deviation of each of a few points
    master: float = 0.0  # of one equalizer for all stems and a limiter
    codec: float = 0.0  # of a lossy coder: all stems lose their treble, only the mixture gets its noise
