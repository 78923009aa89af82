#!/usr/bin/env bash
# Installs the package with its stack on each Python that pyproject.toml names and this machine has, and runs the quick tests there.
# make test-pythons, or: scripts/test_pythons.sh 3.10 3.13
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1

versions=("$@")
[ $# -gt 0 ] || mapfile -t versions < <(sed -n 's/.*"Programming Language :: Python :: \(3\.[0-9]*\)",/\1/p' pyproject.toml)
# Half a minute's worth: what a Python can break is imports, annotations, dataclasses, and torch.compile.
tests=(
    tests/srm_kernels/test_{public,layout,registration,sentence_reward_head,token_rewards}.py
    tests/srm/segmentation/test_segmenters.py tests/srm/runs/test_settings.py tests/srm/data/test_files.py
    tests/srm/scoring/test_text.py tests/srm/test_extras.py
)

# On the PATH, or one that pyenv keeps; its stand-ins on the PATH answer only for the versions it has been told to use.
find_python() {
    local candidate
    for candidate in "$(command -v "python$1")" "$(pyenv prefix "$1" 2>/dev/null)/bin/python$1"; do
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then echo "$candidate"; return; fi
    done
    return 1
}

failed=0
for version in "${versions[@]}"; do
    if ! python=$(find_python "$version"); then
        echo "Python $version: not found here, left out"
        continue
    fi
    echo "Python $version:"
    SECONDS=0
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    "$python" -m venv "$folder"
    pip=("$folder/bin/python" -m pip install --quiet --progress-bar off)
    ./scripts/install_torch.sh "$folder/bin/python"
    "${pip[@]}" ".[nltk]" hypothesis pytest pytest-xdist
    echo "  installed after $SECONDS s"
    "$folder/bin/python" -m pytest -q -n "${WORKERS:-2}" -m "not gpu and not interpreter and not slow" "${tests[@]}" || failed=1
    rm -rf "$folder"
done
exit $failed
