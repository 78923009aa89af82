#!/usr/bin/env bash
# Runs our integrations inside other projects' own programs. Each tests/peers/requirements/NAME.txt is a peer: its wheels go, without
# what they declare to need, into build/peers/NAME, on top of .venv, and tests/peers/test_NAME.py runs there.
# make test-peers, or one of them: scripts/test_peers.sh rewardbench
# slime has no wheel: it runs where SLIME names a checkout, as in SLIME=../slime scripts/test_peers.sh slime
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=$PWD

if [ $# -eq 0 ]; then
    mapfile -t names < <(cd tests/peers/requirements && basename -s .txt -- *.txt)
    [ -n "${SLIME:-}" ] || mapfile -t names < <(printf '%s\n' "${names[@]}" | grep -vx slime)
    # Two at a time: much of it is waiting, for processes to start or for an answer.
    printf '%s\n' "${names[@]}" |
        xargs -P "${WORKERS:-2}" -I NAME bash -o pipefail -c "scripts/test_peers.sh NAME 2>&1 | sed -u 's/^/NAME: /'"
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
exec "$folder/bin/python" -m pytest -q "tests/peers/test_$name.py"
