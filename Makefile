PYTHON ?= python3
PROFILE ?= smoke
SEEDS ?=
BIN := .venv/bin

.PHONY: help setup reproduce test gpu lab report bench lock

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /make \1  /p' Makefile

setup: .venv/ready ## make the environment .venv from requirements.lock (Python >= 3.11; another one: PYTHON=python3.12)

reproduce: setup ## run the notebooks, then print the ladder (PROFILE=laptop for real photos; SEEDS=0-2; ARGS=--resume)
	@$(BIN)/python -m retrieval_utils reproduce --profile $(PROFILE) $(addprefix --seeds ,$(SEEDS)) $(ARGS)

test: setup ## run all tests, offline, in two processes of one thread each
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

gpu: setup ## on a machine with a CUDA card: the tests that need it, then the gpu profile, its tables, and extraction against the field's loop
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('There is no CUDA device here, and make gpu needs one.')"
	@$(BIN)/python -m pytest -m gpu
	@$(BIN)/python -m retrieval_utils reproduce --profile gpu $(ARGS)
	@$(BIN)/python -m retrieval_utils report
	@$(BIN)/python benchmarks/extraction_speed.py

lab: setup ## open the notebooks in JupyterLab
	@$(BIN)/python -m jupyterlab --LabApp.default_url=/lab/tree/notebooks $(ARGS)

report: setup ## write results/, the tables of README.md and the cost cards of the notebooks from the records in runs/
	@$(BIN)/python -m retrieval_utils report $(ARGS)

bench: setup ## compare speed and memory with what the field runs, and indexes up to a million descriptors (results/)
	@$(BIN)/python benchmarks/evaluation_speed.py
	@$(BIN)/python benchmarks/extraction_speed.py
	@$(BIN)/python benchmarks/loss_speed.py
	@$(BIN)/python benchmarks/search_scale.py

lock: setup ## compile requirements.lock from pyproject.toml (newer versions too: ARGS=--upgrade)
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --fork-strategy fewest \
	  --generate-hashes --no-emit-index-url --custom-compile-command "make lock" --output-file requirements.lock --quiet $(ARGS)

.venv/ready: requirements.lock pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "There is no $(PYTHON) here: install Python 3.11 or newer, or name one, as in make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed and $(PYTHON) is " + sys.version.split()[0] + ": name another, as in make setup PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@
