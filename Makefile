# make help   this list
# make demo   train on generated pairs and look at the result (about 7 minutes on two CPU cores)
# make test   every test that needs no GPU
# make check  ruff, mypy and the layers
# make fuzz   odd files, flags and requests through the commands, for an hour or SECONDS=...
# make docs   the documentation site in build/site, offline; a warning stops it
# make test-wheel, make test-pythons   what is installed, and on which Pythons; both make environments of their own
# make test-newest   what other people's releases break first, on the newest ones that there are today
# make test-bare    what a machine with a GPU that is lent for minutes runs, with as little installed as it has; a dry run on a CPU
# make test-peers   our integrations inside other projects' own programs, each in an environment on top of .venv
.PHONY: help demo test fuzz test-reference test-interpreter test-ptx test-compile test-wheel test-pythons test-newest test-bare test-peers check docs clean venv
.DEFAULT_GOAL := demo

PYTHON_VENV := .venv/bin/python
# Two workers with one thread each: the tests are many and small.
WORKERS ?= 2

venv: .venv/.ready

.venv/.ready: pyproject.toml setup.py constraints-cpu.txt scripts/make_venv.sh scripts/install_torch.sh
	./scripts/make_venv.sh

help:
	@sed -n 's/^# \(make .*\)/\1/p' $(firstword $(MAKEFILE_LIST))

demo: venv
	$(PYTHON_VENV) -m srm.cli.demo

test: test-reference test-interpreter test-ptx test-compile

# Four lanes, each in processes of its own: the Triton interpreter must not see the compiler, nor the other way round.
test-reference: venv
	OMP_NUM_THREADS=1 $(PYTHON_VENV) -m pytest -q -n $(WORKERS) -m "not gpu and not interpreter"

test-interpreter: venv
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(PYTHON_VENV) -m pytest -q -n $(WORKERS) -m interpreter tests/srm_kernels

# The interpreter lane's tests on compiled kernels, which an emulator executes: for an sm_90, or PTX_TARGETS="80 90 100".
PTX_TARGETS ?= 90
test-ptx: venv
	for target in $(PTX_TARGETS); do \
		OMP_NUM_THREADS=1 $(PYTHON_VENV) -m pytest -q -n $(WORKERS) -p tests.ptx.plugin --ptx $$target -m interpreter tests/srm_kernels || exit 1; \
	done

test-compile: venv
	$(PYTHON_VENV) -m srm_kernels.compile_check

SECONDS ?= 3600
fuzz: venv
	OMP_NUM_THREADS=1 SRM_FUZZ_SECONDS=$(SECONDS) $(PYTHON_VENV) -m pytest -q tests/fuzz

test-wheel: venv
	$(PYTHON_VENV) -m pytest -q -o tmp_path_retention_policy=failed tests/packaging

test-pythons: venv
	./scripts/test_pythons.sh

test-newest: venv
	./scripts/test_newest.sh

test-bare:
	./scripts/test_bare.sh

test-peers: venv
	./scripts/test_peers.sh

check: venv
	$(PYTHON_VENV) -m ruff check .
	$(PYTHON_VENV) -m ruff format --check .
	$(PYTHON_VENV) -m mypy
	.venv/bin/lint-imports

docs: venv
	NO_MKDOCS_2_WARNING=1 $(PYTHON_VENV) -m mkdocs build --quiet --strict
	@echo "build/site: look at it with $(PYTHON_VENV) -m http.server --directory build/site"

clean:
	rm -rf .venv build dist *.egg-info outputs
