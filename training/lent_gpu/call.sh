#!/bin/bash
# There, in the checkout: one call. training/lent_gpu/call.sh SECONDS STEPS [key=value ...]
# Installs the wheels, adds the pieces that were carried to the pools, trains for SECONDS (STEPS is where the
# learning rate ends), and leaves the checkpoints in parts and the log in $OUT.
set -u -o pipefail
seconds=$1 steps=$2
shift 2
here=${LENT:-/tmp/lent} # stays while the machine stays warm
python=${PYTHON:-python3}
mkdir -p "$here/run" "$OUT"
if [ -n "$(ls .lent/wheels/*.whl 2>/dev/null)" ] && [ ! -d "$here/site" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$here/site" \
    .lent/wheels/*.whl || exit 3
fi
export PYTHONPATH="$here/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# A checkpoint that was carried counts only where none is left of an earlier call.
if [ -f .lent/start/parts.json ] && [ ! -f "$here/run/last.ckpt" ]; then
  "$python" -m training.lent_gpu.parts join .lent/start "$here/run" || exit 3
fi
if [ "$seconds" = 0 ] || ls -d .lent/piece-* >/dev/null 2>&1; then
  "$python" -m training.lent_gpu.unpack --out "$here/pools" $(ls -d .lent/piece-* 2>/dev/null) || exit 3
fi
if [ "$seconds" != 0 ]; then
  valid=null
  [ -d "$here/pools/valid" ] && valid="$here/pools/valid"
  timeout --signal=INT --kill-after=20 "$seconds" "$python" -m training.train "training=${TRAINING:-h100}" "data.pools=$here/pools" \
    "data.valid=$valid" "out=$here/run" "training.steps=$steps" "$@" 2>&1 | tee -a "$here/run/log.txt"
  status=${PIPESTATUS[0]}
  cp "$here/run/log.txt" "$OUT/"
  "$python" -m training.lent_gpu.parts split "$here/run" "$OUT" || exit 3
  case $status in 0 | 124 | 130) ;; *) exit "$status" ;; esac
fi
