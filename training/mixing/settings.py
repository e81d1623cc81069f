"""How training mixtures are drawn: the `data.mix` settings of a run on the open corpus."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class MixSettings:
    """Settings of the mixer: levels in dBFS, pitches in semitones, and probabilities unless noted otherwise.

    The defaults won short paired runs (experiments/005-whole-songs.md). Limiter, codec and most vocal effects are
    off because they made such a run worse (003-softmax-gains.md); a long one may benefit from them.
    """

    seconds: float = 2.9606  # 256 frames; 3 s are 259, which the network pads to 288
    sample_rate: int = 44_100
    kinds: dict[str, float] = field(
        default_factory=lambda: {"stems": 0.3, "band": 0.2, "accompaniment": 0.15, "song": 0.35}
    )
    level: dict[str, float] = field(
        default_factory=lambda: {
            "vocals": -20.0, "drums": -20.0, "bass": -22.0, "other": -21.0, "accompaniment": -17.0,
        }
    )  # fmt: skip
    level_spread: float = 4.0  # standard deviation, dB
    drop: dict[str, float] = field(
        default_factory=lambda: {
            "vocals": 0.12, "drums": 0.1, "bass": 0.12, "other": 0.06, "accompaniment": 0.0,
        }
    )  # fmt: skip
    # The tempo changes with it, as on tape
    pitch: dict[str, float] = field(
        default_factory=lambda: {
            "vocals": 5.0, "drums": 3.0, "bass": 3.0, "other": 4.0, "accompaniment": 3.0, "song": 2.0,
        }
    )  # fmt: skip
    tempo: dict[str, float] = field(
        default_factory=lambda: {"vocals": 0.15, "bass": 0.05, "other": 0.05, "accompaniment": 0.05}
    )  # of a tempo factor between 0.8 and 1.25 at constant pitch
    second: dict[str, float] = field(default_factory=lambda: {"vocals": 0.1, "other": 0.2})
    # Vocal effects, see training/mixing/voices.py
    voice: dict[str, float] = field(
        default_factory=lambda: {
            "formant": 0.2, "whisper": 0.0, "growl": 0.0, "drive": 0.1, "harmony": 0.0, "double": 0.05, "choir": 0.0,
        }
    )  # fmt: skip
    room: dict[str, float] = field(
        default_factory=lambda: {
            "vocals": 0.6, "drums": 0.25, "bass": 0.25, "other": 0.25, "accompaniment": 0.1,
        }
    )  # fmt: skip
    echo: float = 0.1  # vocals only
    compress: float = 0.5  # vocals only, 1.5:1 to 5:1; other pools were compressed when they were rendered
    voices: dict[str, float] = field(
        default_factory=lambda: {"song": 0.3, "singing": 0.4, "sung speech": 0.2, "speech": 0.1}
    )  # weight of each of `training.corpus.recorded.catalogue.VOICE_KINDS`
    low_cut: dict[str, float] = field(
        default_factory=lambda: {"vocals": 0.0, "other": 0.0, "band": 0.0}
    )  # high-pass, as in most mixes on everything but kick and bass; in a band, on other
    high_cut: dict[str, float] = field(
        default_factory=lambda: {"bass": 0.0, "band": 0.0}
    )  # gentle low-pass on the bass, which has little above 250 Hz in mixes and much in renders
    # Away from the centre, where nearly all songs have lead vocals, kick and bass
    pan: dict[str, float] = field(
        default_factory=lambda: {
            "vocals": 0.2, "drums": 0.2, "bass": 0.1, "other": 0.6, "accompaniment": 0.2,
        }
    )  # fmt: skip
    estimated_songs: float = 1.0  # weight of a song with the teacher's stems; true stems weigh 1
    mixed_songs: bool = False  # bring stems of real songs to `level` instead of keeping their recorded levels
    song_voice: float = 0.35  # of replacing a song's voice by another one
    mono: float = 0.3  # of folding the mixture to mono
    equalizer: float = 3.0  # dB, standard deviation at each of a few frequencies
    master: float = 0.0  # of one equalizer for all stems, and a limiter
    codec: float = 0.0  # of a lossy codec: stems lose their treble, and the mixture gains its noise
