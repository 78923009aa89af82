#!/usr/bin/env bash
# Makes an environment whose own packages come before those of .venv: scripts/layered_venv.sh build/peers/verl
set -euo pipefail
cd "$(dirname "$0")/.."
base=$(realpath .venv/lib/python3.*/site-packages)
.venv/bin/python -m venv --clear "$1"
echo "import site; site.addsitedir('$base')" >"$(echo "$1"/lib/python3.*/site-packages)/base.pth"
