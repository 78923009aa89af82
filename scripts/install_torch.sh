#!/usr/bin/env bash
# Installs torch into an environment: the CUDA build beside an NVIDIA GPU, else the CPU build, in the version of constraints-cpu.txt.
# scripts/install_torch.sh .venv/bin/python
set -euo pipefail
python=$1
constraints=$(cd "$(dirname "$0")/.." && pwd)/constraints-cpu.txt
pip=("$python" -m pip install --quiet --progress-bar off --disable-pip-version-check)
cpu_index=(--index-url https://download.pytorch.org/whl/cpu)

# On a CPU machine the general index may hold only the CUDA build, several gigabytes of it: look before downloading.
wants_cuda_packages() {
    "${pip[@]}" --dry-run --no-deps --ignore-installed --report - -c "$constraints" torch 2>/dev/null |
        "$python" -c 'import json, sys
metadata = json.load(sys.stdin)["install"][0]["metadata"]
sys.exit(not any(need.startswith(("nvidia-", "cuda-")) for need in metadata.get("requires_dist", [])))'
}

if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
    echo "NVIDIA GPU found: installing the CUDA build of torch"
    exec "${pip[@]}" torch
fi
echo "no NVIDIA GPU found: installing the CPU build of torch (constraints-cpu.txt)"
if ! wants_cuda_packages; then
    exec "${pip[@]}" -c "$constraints" torch
fi
"${pip[@]}" --retries 1 "${cpu_index[@]}" -c "$constraints" torch 2>/dev/null && exit
echo "PyTorch's CPU index cannot be reached: installing the CUDA build, which takes 5 GB" >&2
# Without the other constraints, for this build has a triton of its own.
exec "${pip[@]}" "$(grep ^torch== "$constraints")"
