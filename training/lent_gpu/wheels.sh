#!/bin/bash
# Here: what the lent machine's image lacks or may have in another version, for its Python 3.12, into .lent/wheels;
# versions from constraints. Wheels of an earlier run go: two versions of one package stop the installation there.
set -eu
python=${PYTHON:-python3}
pinned() {
  for name in "$@"; do
    grep -iE "^$name==" constraints/torch213.txt || {
      echo "constraints/torch213.txt pins no $name: change it there or in $0" >&2
      return 1
    }
  done
}
wheels=$(pinned soundfile soxr cffi pycparser lightning-fabric lightning-utilities hydra-core omegaconf einops \
  safetensors typer annotated-doc shellingham rich markdown-it-py mdurl pygments)
sources=$(pinned antlr4-python3-runtime) # no wheel there: build it
platforms=$(printf -- '--platform manylinux%s_x86_64 ' _2_28 _2_27 _2_17 2014)
rm -rf .lent/wheels
mkdir -p .lent/wheels
# shellcheck disable=SC2086
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $platforms \
  -d .lent/wheels $wheels
# shellcheck disable=SC2086
"$python" -m pip wheel -q --no-deps -w .lent/wheels $sources
ls .lent/wheels
