# make demo             train a small GPT-2 on the text that every Python carries, and read what it writes
# make demo TEXT=file   the same on a text of your own
# make test             every kernel against PyTorch, the model against its twin, the loop, the commands
# make bench            the kernels and a training step beside PyTorch's, in about two minutes
# make docs             the guide and the other pages as a site, in site/
# make lint, make clean
PYTHON ?= python3
TEXT ?= embedded

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc gpt2c -name '*.py' -o -name '*.toml' -o -name '*.html' -o -name '*.js' -o -name '*.css' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cmake')
# Where nvcc is but no GPU, CUDA kernels cannot run: one architecture shows that they build and load.
CUDA := $(if $(shell nvidia-smi --list-gpus 2> /dev/null),,--config-settings cmake.define.GPT2C_CUDA_ARCHITECTURES=80)

DOCS := latex2mathml mkdocs mkdocs-material

# What the tests read our files with, and the packages of the extras.
PEERS := datasets fastapi gguf hypothesis jinja2 $(DOCS) lm_eval onnx onnxruntime openai peft plotly pyarrow tensorboard
PEERS += tenacity tokenizers transformers uvicorn wandb zstandard

# Two processes, each of which takes whole files: what a file's tests share is made once.
IN_PARALLEL := --numprocesses 2 --dist loadfile

# Ctrl-C is told by the command that it ends, with code 130, and needs no error of make's. The shell outlives it.
BEFORE := trap : INT;
ENDED := || { code=$$?; [ $$code -eq 130 ] || exit $$code; }

.PHONY: demo test lint bench docs clean
.DELETE_ON_ERROR:

demo: .venv/installed
	@$(BEFORE) out=runs/demo; [ ! -e $$out ] || out=$$out-$$(date +%Y%m%d-%H%M%S); \
		$(BIN)/gpt2c train --recipe demo --data "$(TEXT)" --out $$out $(ENDED)

test: .venv/installed-test
	@$(BIN)/pytest $(IN_PARALLEL)

lint: .venv/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

bench: .venv/installed-test
	@$(BEFORE) { $(BIN)/gpt2c bench kernels --sizes B4xT64 --parts sizes overhead --seconds 0.3 && \
		$(BIN)/gpt2c bench train --steps 8; } $(ENDED)

docs: .venv/installed-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet # the theme's notice about its successor is not about these pages
	@echo "site/index.html; with its search: $(BIN)/mkdocs serve"

clean:
	rm -rf .venv build dist site

.venv/created:
	@command -v $(PYTHON) > /dev/null || \
		{ echo "error: $(PYTHON) not found: install Python 3.10 or newer, or give make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $$($(PYTHON) --version 2>&1) is too old: Python 3.10 or newer is needed, give make PYTHON=/path/to/it" >&2; exit 1; }
	@command -v "$${CXX:-c++}" > /dev/null || command -v g++ > /dev/null || command -v clang++ > /dev/null || \
		{ echo "error: no C++ compiler found: install g++ or clang (Debian: apt install g++), or set CXX" >&2; exit 1; }
	@$(PYTHON) -m venv .venv > .venv-log 2>&1 && rm -f .venv-log || \
		{ echo "error: $(PYTHON) cannot make a virtual environment: install its venv module (Debian: apt install python3-venv)" >&2; \
		  rm -rf .venv .venv-log; exit 1; }
	@touch $@

.venv/installed: .venv/created $(SOURCES)
	@echo "installing gpt2c into .venv (torch is large: the first time takes a while)"
	@$(PIP) install --constraint constraints.txt $(CUDA) .
	@$(BIN)/gpt2c info | grep '^cuda'
	@touch $@

.venv/installed-test: .venv/installed
	@$(PIP) install --constraint constraints.txt cmake nvidia-cuda-crt nvidia-cuda-runtime pytest pytest-xdist $(PEERS)
	@touch $@

.venv/installed-docs: .venv/created
	@$(PIP) install --constraint constraints.txt $(DOCS)
	@touch $@

.venv/installed-lint: .venv/created
	@$(PIP) install --constraint constraints.txt ruff clang-format
	@touch $@
