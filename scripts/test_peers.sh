#!/usr/bin/env bash
# Runs our integrations inside other projects' own programs. Each tests/peers/requirements/NAME.txt is a peer: its wheels go, without
# what they declare to need, into build/peers/NAME, on top of .venv, and tests/peers/test_NAME.py runs there.
# make test-peers, or: scripts/test_peers.sh rewardbench
# slime has no wheel: it runs where SLIME names a checkout, as in SLIME=../slime scripts/test_peers.sh slime
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=$PWD

names=("$@")
if [ $# -eq 0 ]; then
    mapfile -t names < <(cd tests/peers/requirements && basename -s .txt -- *.txt)
    [ -n "${SLIME:-}" ] || mapfile -t names < <(printf '%s\n' "${names[@]}" | grep -vx slime)
fi

# The environment of a peer; kept as long as its pins stay.
make_environment() {
    local folder=build/peers/$1 pins=tests/peers/requirements/$1.txt
    if ! cmp -s "$pins" "$folder/pins.txt" || ! "$folder/bin/python" -c 'import torch, pytest' 2>/dev/null; then
        ./scripts/layered_venv.sh "$folder"
        "$folder/bin/python" -m pip install --quiet --progress-bar off --no-compile --no-deps --requirement "$pins"
        cp "$pins" "$folder/pins.txt"
    fi
}

failed=0
for name in "${names[@]}"; do
    echo "$name:"
    SECONDS=0
    make_environment "$name"
    echo "  installed after $SECONDS s"
    "build/peers/$name/bin/python" -m pytest -q "tests/peers/test_$name.py" || failed=1
done
exit $failed
