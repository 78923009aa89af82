#!/usr/bin/env bash
# What a machine with a GPU that is lent for minutes must be able to do with little installed: collect the tests for a GPU and those of
# srm_kernels, and start every part of bench/gpu.py. In build/bare, with Python 3.12 and the packages of tests/bare.txt; make test-bare
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=$PWD

folder=build/bare
python=$folder/bin/python
list=tests/bare.txt

# On the PATH, or one that pyenv keeps.
find_python() {
    local candidate
    for candidate in "$(command -v python3.12)" "$(pyenv prefix 3.12 2>/dev/null)/bin/python3.12" "$HOME"/.pyenv/versions/3.12.*/bin/python; do
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then echo "$candidate"; return; fi
    done
    return 1
}

install() { "$python" -m pip install -qq --progress-bar off "$@"; }

SECONDS=0
if ! cmp -s $list $folder/bare.txt; then
    if ! base=$(find_python); then
        echo "test-bare: Python 3.12 was not found here, left out"
        exit
    fi
    "$base" -m venv --clear $folder
    torch=$(grep ^torch== $list)
    # The CPU build, where PyTorch's own index can be reached; else the CUDA build, 2 GB of downloads, which is what such a machine has.
    install --retries 0 --timeout 15 --index-url https://download.pytorch.org/whl/cpu "$torch" 2>/dev/null || install "$torch"
    grep -v '^#\|^torch==' $list | xargs "$python" -m pip install -qq --progress-bar off
    cp $list $folder/
fi
for name in datasets nltk gguf trl greenlet flash_attn; do
    if "$python" -c "import $name" 2>/dev/null; then echo "test-bare: $name is installed in $folder" >&2; exit 1; fi
done
echo "  $("$python" -c 'import torch, transformers, triton; print(f"torch {torch.__version__}, triton {triton.__version__}, transformers {transformers.__version__}")'), ready after $SECONDS s"

"$python" -m pytest -q --collect-only tests/srm_kernels >$folder/collected.txt || { tail -20 $folder/collected.txt >&2; exit 1; }
tail -1 $folder/collected.txt
rm -rf $folder/dry
# From the checkout alone, which is not installed there.
env -u PYTHONPATH "$python" bench/gpu.py --dry_run --seconds 1200 --output_dir $folder/dry >$folder/dry.txt || { tail -40 $folder/dry.txt >&2; exit 1; }
sed -n '/^| part/,$p' $folder/dry/gpu.md
# A part that is left out has not started.
if grep -q 'not begun' $folder/dry/gpu.md; then exit 1; fi
echo "  dry run done after $SECONDS s"
