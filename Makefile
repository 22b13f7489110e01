# Every target sets up what it needs: a virtual environment in .venv, with the package in it.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
export JAX_PLATFORMS ?=
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
# Tests that compare numbers. `make test` compiles them without most of XLA's optimisations,
# `make test-optimized` with them.
NUMERIC := golden reference random_trees projection ftp tpgm spd baselines compact interpolate \
	anchors unit state hostile stacks misuse

.PHONY: help demo sentiment pod papers test test-all test-optimized lint wheel docs bench bench-scaling bench-compact bench-robustness bench-sentiment bench-papers bench-activity bench-tpu bench-gpu frameworks clean

help:
	@echo "make demo   fine-tune on handwritten digits: a table and results/demo/figure.png"
	@echo "            options: make demo ARGS='--fast --seed 1'"
	@echo "make sentiment  fine-tune MiniLM, a real BERT model, on movie reviews, and test it on other texts"
	@echo "make pod    fine-tune a decoder on all devices, with checkpoints; again: goes on (docs/pods.md)"
	@echo "make papers ARGS='domainnet ...'  the experiments of the papers, with your images (docs/papers.md)"
	@echo "make test   lint, types, and all tests and doctests but the slow ones"
	@echo "make test-all   make test, then the built wheel and the slow tests: study, demo, pod, trainers, processes, site"
	@echo "make test-optimized  the numeric tests, compiled with the optimisations that users get"
	@echo "make lint   ruff and pyright alone"
	@echo "make docs   the documentation, into results/docs/index.html"
	@echo "make bench  what a step costs; make bench-scaling: how that grows"
	@echo "make bench-activity  at which learning rates FTP acts (docs/active.md)"
	@echo "make bench-robustness  runs the study of docs/study.md again; make bench-tpu: programs for TPU pods, compiled"
	@echo "make bench-sentiment  the study of docs/sentiment.md"
	@echo "make bench-papers  training steps and the loader of the papers' programs (docs/papers.md)"
	@echo "make bench-gpu  kernels and memory traffic of programs for an H100, compiled without a GPU"
	@echo "make frameworks  fine-tuning inside other frameworks, each in an environment of its own"

.venv/demo: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	touch $@

.venv/test: .venv/demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

.venv/docs: .venv/demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

.venv/sentiment: .venv/demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[sentiment]'
	touch $@

.venv/pod: .venv/demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[pod]'
	touch $@

.venv/papers: .venv/demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[papers]'
	touch $@

# 200 MB, and of use to nothing else; it asks for no other package.
.venv/tpu: .venv/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'libtpu==0.0.42.*'
	touch $@

# An environment of its own, because every JAX program in it loads the plugin. 1 GB. The plugin must
# have the version of jax, and both environments the same versions of jax and optax.
VERSION = $(shell $(BIN)/python -c 'from importlib.metadata import version; print(version("$(1)"))')
.venv-gpu/ready: .venv/demo
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]' \
		'jax==$(call VERSION,jax)' 'jaxlib==$(call VERSION,jaxlib)' 'optax==$(call VERSION,optax)'
	.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		'jax-cuda12-plugin==$(call VERSION,jax)' 'jax-cuda12-pjrt==$(call VERSION,jax)'
	touch $@

demo: .venv/demo
	$(BIN)/python -m examples.digits $(ARGS)

sentiment: .venv/sentiment
	$(BIN)/python -m examples.sentiment $(ARGS)

pod: .venv/pod
	$(BIN)/python -m examples.pod_finetune $(ARGS)

# For example: make papers ARGS='domainnet --method ftp --weights RN50.pt --data domainnet'
papers: .venv/papers
	$(BIN)/python -m examples.papers $(ARGS)

test: lint
	$(PYTEST) -m "not slow" $(ARGS)

test-all: test wheel
	$(PYTEST) -m slow $(ARGS)

# No flags at all: tests/conftest.py sets its own only if there is no such variable.
test-optimized: .venv/test
	XLA_FLAGS= $(PYTEST) $(NUMERIC:%=tests/test_%.py) $(ARGS)

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

wheel: .venv/test
	$(BIN)/python tests/check_wheel.py

# The tests build it as well, since warnings are errors.
docs: .venv/docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs results/docs $(ARGS)

bench: .venv/test
	$(BIN)/python -m benchmarks.step_cost $(ARGS)

bench-scaling: .venv/test
	$(BIN)/python -m benchmarks.scaling $(ARGS)

bench-compact: .venv/test
	$(BIN)/python -m benchmarks.compact_memory $(ARGS)

bench-robustness: .venv/test
	$(BIN)/python -m benchmarks.robustness $(ARGS)

bench-sentiment: .venv/test
	$(BIN)/python -m benchmarks.sentiment $(ARGS)

bench-papers: .venv/test
	$(BIN)/python -m benchmarks.papers $(ARGS)
	$(BIN)/python -m benchmarks.papers_loader

bench-activity: .venv/test
	$(BIN)/python -m benchmarks.activity $(ARGS)
	$(BIN)/python -m benchmarks.embedding

bench-tpu: .venv/tpu
	$(BIN)/python -m benchmarks.tpu_compile $(ARGS)

bench-gpu: .venv-gpu/ready
	JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 .venv-gpu/bin/python -m benchmarks.gpu_compile $(ARGS)

# Needs python3.12 and python3.13 on the path.
frameworks:
	$(PYTHON) -m examples.frameworks $(ARGS)

clean:
	rm -rf .venv .venv-gpu .venv-frameworks results dist build
