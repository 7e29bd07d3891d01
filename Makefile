# `make` prints the targets. Everything runs from .venv, which the first target that needs it builds.
# A machine with a GPU needs no other command: the recipes use it when torch sees it.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The interpreter that builds .venv: `make demo PYTHON=/path/to/python3.12`, or the first of these that is new enough.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

BIN := .venv/bin
INSTALLED := .venv/.installed
VLLM := .venv-vllm/.installed
TORCH_MIN := .venv-torch-min/.installed
SEEDS ?= 0 1 2
SIGNALS ?= 100
MINUTES ?= 60
# A process per core, at most four; a file's tests stay in one, which keeps what they share. `make test TOGETHER=` has one process.
TOGETHER ?= -n auto --maxprocesses 4 --dist loadfile

# TRL sends a usage ping when a trainer is built; these runs send none unless you ask for it.
export HF_HUB_DISABLE_TELEMETRY ?= 1
# The recipes train on one device; several visible ones would be wrapped in nn.DataParallel.
export CUDA_VISIBLE_DEVICES ?= 0

.PHONY: help demo evidence test test-vllm test-torch-min test-kill test-storm fuzz soak audit check gpu bench docs clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(INSTALLED)  ## the whole loop once on the digits world, one seed; writes runs/demo/report.html
	$(BIN)/mpo pipeline --settings recipes/configs/digits_demo.yaml --run_dir runs/demo --arms mpo mpo_paper rft
	@echo "The report is at $(CURDIR)/runs/demo/report.html"

evidence: $(INSTALLED)  ## three seeds and every arm of the digits world, into runs/evidence
	$(BIN)/mpo evidence --settings recipes/configs/digits.yaml --run_dir runs/evidence --seeds $(SEEDS) --jobs 2

test: $(INSTALLED)  ## the tests, doctests included
	$(BIN)/python -m pytest $(TOGETHER)

test-vllm: $(INSTALLED) $(VLLM)  ## policy and PRM behind a real vLLM on the CPU, which it installs into .venv-vllm and starts
	$(BIN)/python -m pytest -m vllm tests/with_vllm

test-torch-min: $(TORCH_MIN)  ## attention, training and scoring under the oldest torch that pyproject.toml allows, in .venv-torch-min
	CUDA_VISIBLE_DEVICES= .venv-torch-min/bin/python -m pytest -p no:cacheprovider tests/mpo/test_varlen.py tests/mpo/test_agreement.py \
		tests/mpo/test_prefix.py tests/mpo/test_vision.py tests/mpo/test_trainer.py tests/rewards/prm/test_prm_sharing.py \
		tests/rewards/sampling/test_transformers_generator.py

test-kill: $(INSTALLED)  ## every data stage killed at every failpoint and, 25 runs, at random moments; 10 to 40 minutes
	$(BIN)/python tests/recipes/kill_pipeline.py --runs 25

test-storm: $(INSTALLED)  ## Ctrl-C at SIGNALS (100) random moments over all stages, each resumed; 20 to 60 minutes
	PYTHONPATH=. $(BIN)/python tests/recipes/signal_storm.py --signals $(SIGNALS)

fuzz: $(INSTALLED)  ## every decoder with damaged input, FUZZ_SECONDS (600) each; FUZZ="pairs groups" picks some
	PYTHONPATH=. $(BIN)/python tests/fuzzing.py $(FUZZ)

soak: $(INSTALLED)  ## MINUTES (60) of small work with random faults: memory, descriptors, threads and processes per minute
	PYTHONPATH=. $(BIN)/python -m tests.recipes.soak_faults --minutes $(MINUTES)

# Into an environment of its own, so that what is audited stays what is tested. It asks PyPI about every line.
audit: $(INSTALLED)  ## known vulnerabilities of the versions in constraints.txt, with pip-audit in .venv-audit; needs PyPI
	@.venv-audit/bin/python -c '' 2>/dev/null || "$(PYTHON)" -m venv --clear .venv-audit
	@.venv-audit/bin/python -m pip install -q --disable-pip-version-check pip-audit || { echo "make audit: pip-audit could not be" \
		"installed, see above, so nothing was audited" >&2; exit 1; }
	@.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt || { echo "make audit: pip-audit found something," \
		"or could not ask PyPI about every line, see above" >&2; exit 1; }

check: $(INSTALLED)  ## format, lint, types, tests and the site (one of the tests builds it): what CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(TOGETHER)

gpu: $(INSTALLED)  ## on a machine with a GPU: its tests, then every figure that only it can give, into runs/gpu.json; 10 minutes
	$(BIN)/python -m pytest -m gpu tests/gpu
	$(BIN)/python benchmarks/gpu.py --out runs/gpu.json

bench: $(INSTALLED)  ## every script of benchmarks/
	@shopt -s nullglob; scripts=(benchmarks/[!_]*.py); \
	if (( $${#scripts[@]} == 0 )); then echo "make bench: benchmarks/ holds no *.py script, so nothing was measured" >&2; exit 1; fi; \
	for f in "$${scripts[@]}"; do echo "== $$f"; $(BIN)/python "$$f" || exit 1; done

docs: $(INSTALLED)  ## the documentation site, into site/; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open $(CURDIR)/site/index.html; for the search: $(BIN)/python -m http.server --bind 127.0.0.1 -d site"

clean:  ## remove the environments, caches and build leftovers; runs/ stays
	rm -rf .venv .venv-vllm .venv-torch-min .venv-audit build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . \( -path ./.git -o -path ./runs \) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted install is taken up again; a changed pyproject.toml or constraints.txt reinstalls.
$(INSTALLED): pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "make: no Python >= 3.11 found (tried python3 and python3.11 to python3.14)." \
		"Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "make: this project needs Python >= 3.11, but" \
		"PYTHON=$(PYTHON) is $$("$(PYTHON)" --version 2>&1). Name another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing into .venv: torch with its CUDA libraries and the rest, about 3 GB of wheels to download,"
	@echo "about 6.5 GB on disk, 2-5 minutes on a fast line. Wheels that pip has cached are not downloaded again."
	@$(BIN)/python -c '' 2>/dev/null || "$(PYTHON)" -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# vLLM pins another torch and transformers, so it has an environment of its own. PyPI's torchaudio and torchcodec are built
# for CUDA and do not load beside its CPU torch; tests/with_vllm/shim does what else is needed.
$(VLLM): tests/with_vllm/requirements.txt
	@[ -n "$(PYTHON)" ] || { echo "make: no Python >= 3.11 found; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing vLLM for the CPU into .venv-vllm: about 3.5 GB on disk, 4 minutes on a fast line and an idle machine."
	@.venv-vllm/bin/python -c '' 2>/dev/null || "$(PYTHON)" -m venv --clear .venv-vllm
	.venv-vllm/bin/python -m pip install --disable-pip-version-check -r $<
	.venv-vllm/bin/python -m pip uninstall -y torchaudio torchcodec
	@touch $@

# The oldest torch with its torchvision, beside what constraints.txt has of everything else; about 5.5 GB on disk.
$(TORCH_MIN): pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "make: no Python >= 3.11 found; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing torch 2.11 into .venv-torch-min: about 3 GB of wheels to download, 5.5 GB on disk."
	@.venv-torch-min/bin/python -c '' 2>/dev/null || "$(PYTHON)" -m venv --clear .venv-torch-min
	grep -vE '^(torch|torchvision|triton|cuda-|nvidia-)' constraints.txt >.venv-torch-min/constraints.txt
	.venv-torch-min/bin/python -m pip install --disable-pip-version-check -c .venv-torch-min/constraints.txt \
		'torch==2.11.*' 'torchvision==0.26.*' -e '.[digits]' hypothesis pytest pytest-timeout
	@touch $@
