#!/usr/bin/env bash
# Runs what other people's releases break first on the newest ones that the index has today, in build/newest, on top of .venv.
# make test-newest, or with the newest torch even where only its CUDA build can be had (5 GB): NEWEST_TORCH=any make test-newest
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=$PWD

folder=build/newest
python=$folder/bin/python
# Not pinned: a break must be seen here first. This file says with which releases the lane was last green.
green=tests/newest.txt
mapfile -t names < <(grep -o '^[a-z-]*' $green)
tests=(
    tests/srm/modeling tests/srm/packing/test_{backends,cascade,equality,probing}.py tests/srm/scoring/test_{stream,text}.py
    tests/srm/training/test_{trainer,lora,card}.py tests/srm/integrations/test_{trl,trl_reward_path}.py tests/srm/evaluation/test_classifier.py
)

install() { timeout 300 "$python" -m pip install -qq --progress-bar off --upgrade "$@"; }
version() { "$python" -c "import sys; from importlib.metadata import version; print(version(sys.argv[1]).split('+')[0])" "$1"; }

# The newest CPU build, which PyTorch's own index has; the general one may have only the CUDA build.
install_torch() {
    if [ "${NEWEST_TORCH:-cpu}" = any ]; then
        install torch
        return
    fi
    install --retries 0 --timeout 15 --index-url https://download.pytorch.org/whl/cpu torch || true
    local newest
    newest=$("$python" -m pip index versions torch 2>/dev/null | sed -n '1s/.*(\([0-9.]*\).*/\1/p')
    [ "${newest:-unknown}" = "$(version torch)" ] ||
        echo "  torch: ${newest:-unknown} is out, and its CPU build cannot be had from here. NEWEST_TORCH=any takes the CUDA build."
}

SECONDS=0
"$python" -c 'import pytest, torch' 2>/dev/null || ./scripts/layered_venv.sh $folder
install_torch
mapfile -t others < <(printf '%s\n' "${names[@]}" | grep -v '^torch$')
install "${others[@]}"
newer=()
for name in "${names[@]}"; do
    now=$(version "$name") before=$(sed -n "s/^$name //p" $green)
    echo "  $name $now"
    [ "$(printf '%s\n' "$before" "$now" | sort -V | tail -1)" = "$before" ] || newer+=("$name $now (last green: $before)")
done
echo "  installed after $SECONDS s"

failed=0
"$python" -m pytest -q -n "${WORKERS:-2}" -m "not gpu and not interpreter and not slow" "${tests[@]}" || failed=1
if ! "$python" -m srm_kernels.compile_check --target cuda:90 >$folder/compile_check.txt; then
    failed=1
    # The heading, and the rows that name a problem.
    grep -E '^kernel|(spills [0-9]+|failed: .*|bits|offset|product)$' $folder/compile_check.txt | head -20 >&2
fi
tail -1 $folder/compile_check.txt
list=$(IFS=,; echo "${newer[*]}")
if [ -n "$list" ] && [ $failed = 1 ]; then
    echo "test-newest: failed on releases that are newer than the last green ones, so the cause may be theirs: $list" >&2
elif [ -n "$list" ]; then
    echo "test-newest: green on newer releases than $green says: $list"
elif [ $failed = 1 ]; then
    echo "test-newest: failed on releases that $green calls green, so the cause is ours" >&2
fi
exit $failed
