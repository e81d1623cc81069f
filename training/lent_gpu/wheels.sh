#!/bin/bash
# Here: what the lent machine's image lacks or may have in another version, for its Python 3.12, into .lent/wheels;
# versions from constraints.
set -eu
python=${PYTHON:-python3}
mkdir -p .lent/wheels
pinned() { grep -iE "^($1)==" constraints/torch213.txt; }
platforms=$(printf -- '--platform manylinux%s_x86_64 ' _2_28 _2_27 _2_17 2014)
# shellcheck disable=SC2086,SC2046
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $platforms \
  -d .lent/wheels $(pinned 'soundfile|soxr|cffi|pycparser|lightning-fabric|lightning-utilities|hydra-core|omegaconf|einops|safetensors|typer|annotated-doc|shellingham|rich|markdown-it-py|mdurl|pygments')
# antlr4 has no wheel there: build it
# shellcheck disable=SC2046
"$python" -m pip wheel -q --no-deps -w .lent/wheels $(pinned antlr4-python3-runtime)
ls .lent/wheels
