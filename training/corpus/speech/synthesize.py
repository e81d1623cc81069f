"""Speech from Debian's synthesizers, which read our own text.

They run from where `training.corpus.fetch` unpacked them, without being installed, and write
PACKAGES/<synthesizer>/clips/<voice>/*.wav, under the terms of their packages. flite's voices are built from recordings
of people (CMU Arctic and others); espeak-ng synthesizes formants by rule.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path

LINES = {
    "en": (
        "I left the window open, and the rain came in.", "Nobody told the river where to go.",
        "Hold on, hold on, the night is nearly over.", "We were only seventeen when the harbour froze.",
        "Give me one good reason and I will stay.", "Every street in this town has a song I forgot.",
        "Oh, what a beautiful noise we made!", "She counts the stars and he counts the money.",
        "Stop. Listen. Somebody is calling your name.", "Under the bridge there is always music.",
        "I would walk a thousand miles for a quiet room.", "Tell me again how the story ends.",
        "Fire in the valley, snow upon the hill.", "You said forever, but you never said when.",
    ),
    "de": (
        "Der Zug fährt ohne mich nach Hause.", "Halt mich fest, die Nacht ist noch lang.",
        "Am Fenster wächst ein Garten aus Eis.", "Sag mir, wohin die Vögel ziehen.",
        "Wir tanzen barfuß auf dem Dach.", "Keiner kennt das Ende von diesem Lied.",
        "Morgen früh ist alles wieder gut.", "Dein Name steht im Schnee geschrieben.",
        "Zwölf kleine Boote schaukeln im Hafen.", "Und die Straße singt von allein.",
    ),
    "fr": (
        "La mer est montée jusqu'à ma porte.", "Je t'attends sous les lampes de la gare.",
        "Dis-moi pourquoi les jours sont si courts.", "On a dansé toute la nuit sans musique.",
        "Le vent connaît toutes mes chansons.", "Reviens avant que la neige ne tombe.",
        "Personne ne dort dans cette ville.", "Un oiseau chante au fond du couloir.",
        "Tu avais promis de ne pas pleurer.", "Encore une fois, encore un peu.",
    ),
    "es": (
        "La luna se quedó dormida en el tejado.", "Dime dónde guardas tus secretos.",
        "Cruzamos el río con los zapatos en la mano.", "Nadie canta como canta mi abuela.",
        "Mañana volverán los barcos al puerto.", "Corazón, no corras tan deprisa.",
        "Hay una guitarra rota en la cocina.", "Todo lo que tengo cabe en un bolsillo.",
        "Llueve despacio sobre los naranjos.", "Quédate conmigo hasta que salga el sol.",
    ),
}  # fmt: skip
FLITE = ("awb", "kal16", "rms", "slt")
# Language, variant (m is male, f female), words per minute, pitch from 0 to 99
ESPEAK = (
    ("en-us", "m3", 150, 40), ("en-gb-scotland", "f2", 165, 60), ("en-us", "croak", 140, 30),
    ("en-gb", "whisper", 150, 50), ("de", "m1", 150, 35), ("de", "f4", 160, 65), ("fr", "m7", 155, 45),
    ("fr", "f3", 165, 70), ("es", "m4", 170, 40), ("es", "f5", 170, 75),
)  # fmt: skip
SYNTHESIZERS = {
    "flite": ("libflite1",),
    "espeak-ng": ("libespeak-ng1", "espeak-ng-data", "libpcaudio0", "libsonic0"),
}

Speak = Callable[[str, Path], list[str]]  # text and WAV file -> command


def list_voices(packages: Path, synthesizer: str) -> dict[str, tuple[str, Speak]]:
    """Voice -> its language, and its command."""
    program = str(packages / synthesizer / "usr/bin" / synthesizer)
    if synthesizer == "flite":

        def flite(name: str) -> Speak:
            return lambda line, wav: [program, "-voice", name, "-t", line, "-o", str(wav)]

        return {name: ("en", flite(name)) for name in FLITE}

    def espeak(voice: str, speed: int, pitch: int) -> Speak:
        settings = ["-v", voice, "-s", str(speed), "-p", str(pitch)]
        return lambda line, wav: [program, *settings, "-w", str(wav), line]

    return {
        f"{language}-{variant}": (language[:2], espeak(f"{language}+{variant}", speed, pitch))
        for language, variant, speed, pitch in ESPEAK
    }


def synthesize(packages: Path, *, without: Collection[str] = ()) -> list[str]:
    """Synthesize missing clips. Returns an error message for each synthesizer or voice that fails."""
    problems = []
    for synthesizer, needed in SYNTHESIZERS.items():
        if synthesizer in without:
            continue
        missing = [name for name in (synthesizer, *needed) if not (packages / name).is_dir()]
        if missing:
            problems.append(
                f"{synthesizer} cannot run: {packages} lacks {', '.join(missing)}; run training.corpus.fetch"
            )
            continue
        folders = [packages / name / "usr/lib/x86_64-linux-gnu" for name in needed]
        data = packages / "espeak-ng-data/usr/lib/x86_64-linux-gnu/espeak-ng-data"
        environment = os.environ | {
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, folders)), "ESPEAK_DATA_PATH": str(data),
        }  # fmt: skip
        for voice, (language, command) in list_voices(packages, synthesizer).items():
            folder = packages / synthesizer / "clips" / voice
            if folder.is_dir():
                continue
            unfinished = folder.with_name(f".{voice}")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            for number, line in enumerate(LINES[language]):
                done = subprocess.run(
                    command(line, unfinished / f"{number:02}.wav"),
                    env=environment, capture_output=True, text=True, check=False,
                )  # fmt: skip
                if done.returncode:
                    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                    problems.append(f"{synthesizer} cannot speak as {voice}: {reason}")
                    shutil.rmtree(unfinished)
                    break
            else:
                unfinished.rename(folder)
    return problems
