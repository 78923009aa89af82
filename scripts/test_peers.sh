#!/usr/bin/env bash
# Runs our integrations inside other projects' own programs. Each tests/peers/requirements/NAME.txt is a peer: its wheels go, without
# what they declare to need, into build/peers/NAME, on top of .venv, and tests/peers/test_NAME.py runs there.
# make test-peers, or one of them: scripts/test_peers.sh rewardbench
# slime has no wheel: it runs where SLIME names a checkout, as in SLIME=../slime scripts/test_peers.sh slime
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=$PWD

if [ $# -eq 0 ]; then
    mapfile -t names < <(cd tests/peers/requirements && basename -s .txt -- *.txt | grep -vx -e vllm -e ray -e slime)
    # The longest first, or one of them runs alone at the end.
    names=(vllm ray "${names[@]}" ${SLIME:+slime})
    mkdir -p build/peers
    exec 3>&1
    # Two at a time: much of it is waiting, for processes to start or for an answer.
    failed=$(printf '%s\n' "${names[@]}" | xargs -P "${WORKERS:-2}" -I NAME bash -o pipefail -c \
        "scripts/test_peers.sh NAME 2>&1 | tee build/peers/NAME.log | sed -u 's/^/NAME: /' >&3 || echo NAME")
    # Last, where it is seen: the output of a peer that failed is far up.
    for name in $failed; do
        echo "test_peers.sh: $name failed:"
        tail -n 20 "build/peers/$name.log"
    done >&2
    [ -z "$failed" ] || { echo "test_peers.sh: failed: ${failed//$'\n'/, }" >&2; exit 1; }
    exit
fi

name=$1 folder=build/peers/$1 pins=tests/peers/requirements/$1.txt
# Kept as long as its pins stay.
if ! cmp -s "$pins" "$folder/pins.txt" || ! "$folder/bin/python" -c 'import torch, pytest' 2>/dev/null; then
    SECONDS=0
    ./scripts/layered_venv.sh "$folder"
    "$folder/bin/python" -m pip install --quiet --progress-bar off --no-compile --no-deps --requirement "$pins"
    cp "$pins" "$folder/pins.txt"
    echo "installed after $SECONDS s"
fi
# Ray remembers here which cluster runs on this machine; two peers have it, and neither may join the other's.
RAY_TMPDIR=$(mktemp -d)
export RAY_TMPDIR
exec "$folder/bin/python" -m pytest -q "tests/peers/test_$name.py"
