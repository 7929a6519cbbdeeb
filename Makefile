# Two commands on a fresh machine with Python >= 3.11 and a package index:
#   make demo    install, then run the main job on real data
#   make test    install, then run the test suite
# The installation lives in .venv and happens again only when pyproject.toml or constraints.txt change.
# PYTHON=... chooses the interpreter, PYTEST_ARGS=... goes to pytest (for example PYTEST_ARGS="-k certificate").

VENV := .venv
PY := $(VENV)/bin/python
PYTEST_ARGS ?=

# One stamp per set of extras. Its name carries a checksum of what decides the installation (and of the folder: a moved
# checkout has dead scripts), it is written last, and so an interrupted installation has none.
KEY := $(shell (pwd; cat pyproject.toml constraints.txt) | cksum | cut -d' ' -f1)
DEMO_EXTRAS := demo,onnx,serve
TEST_EXTRAS := $(DEMO_EXTRAS),finetune,test
LINT_EXTRAS := $(TEST_EXTRAS),lint
DOCS_EXTRAS := $(LINT_EXTRAS),docs
DOCS_STAMP := $(VENV)/.installed-docs-$(KEY)
LINT_STAMP := $(or $(wildcard $(DOCS_STAMP)),$(VENV)/.installed-lint-$(KEY))
# A larger set of extras serves for a smaller one: `make test` is never followed by a second installation for the demo.
TEST_STAMP := $(or $(wildcard $(LINT_STAMP)),$(VENV)/.installed-test-$(KEY))
DEMO_STAMP := $(or $(wildcard $(TEST_STAMP)),$(VENV)/.installed-demo-$(KEY))

# One thread per test process, for BLAS and for XLA (NPROC is what XLA's CPU client reads): processes that each start a
# thread per core slow each other down.
TEST_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 NPROC=1 HF_HUB_OFFLINE=1
PYTEST := $(TEST_ENV) $(PY) -m pytest
# Most of the time of tests is compiling, and without its fusion emitters XLA compiles 2.6 times faster (for code that is
# as fast). The fast tests, whose programs are small and run a few times, compile without optimisation, in half the time
# again. The slow tests, among them the programs and the hard features of test_gated and test_numerics for every solver and
# loss, are optimised, and the main job in .ci/run has what users have.
FAST_COMPILER := --xla_cpu_use_fusion_emitters=false
FASTEST_COMPILER := $(FAST_COMPILER) --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1

.PHONY: help demo test test-slow lint format docs docs-check clean distclean
.DEFAULT_GOAL := help

help:
	@sed -n '1,5s/^# \{0,1\}//p' Makefile

demo: $(DEMO_STAMP)
	$(PY) -m tasks.cli demo

test: $(TEST_STAMP)
	XLA_FLAGS="$(FASTEST_COMPILER)" $(PYTEST) -n auto --maxprocesses 4 --dist loadfile -m "not slow" $(PYTEST_ARGS)

test-slow: $(TEST_STAMP)
	XLA_FLAGS="$(FAST_COMPILER)" $(PYTEST) -n auto --maxprocesses 4 --dist loadfile -m slow --durations 10 $(PYTEST_ARGS)

lint: $(LINT_STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

format: $(LINT_STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# The documentation site, in docs/build/html. Pages of modules that are no longer there go first.
docs: $(DOCS_STAMP)
	@rm -rf docs/reference/generated
	$(PY) -m sphinx -q -W --keep-going -b html docs docs/build/html

# Every page, docstring and link between them is read, and nothing is written.
docs-check: $(DOCS_STAMP)
	@rm -rf docs/reference/generated
	$(PY) -m sphinx -q -W --keep-going -E -b dummy docs docs/build/dummy

clean:
	rm -rf build dist docs/build docs/reference/generated *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment too.
distclean: clean
	rm -rf $(VENV)

# $(call install,EXTRAS): the environment (made new when it has no working pip), the packages, then the stamp.
define install
@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	python='$(PYTHON)'; \
	if [ -z "$$python" ]; then \
		for candidate in python3.13 python3.12 python3.11 python3; do \
			if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
			then python=$$candidate; break; fi; \
		done; \
	fi; \
	if ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
		echo "convex-heads needs Python 3.11 or newer, found $$("$${python:-python3}" --version 2>/dev/null || echo none):" \
			"install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
		exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV); \
fi
@# Stamps of other constraints go first: the environment is about to stop being theirs.
@find $(VENV) -maxdepth 1 -name '.installed-*' ! -name '*-$(KEY)' -exec rm -f {} +
@echo "Installing convex-heads[$(1)] into $(VENV) (once; some minutes)"
@$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e ".[$(1)]"
@touch $@
endef

$(VENV)/.installed-demo-$(KEY):
	$(call install,$(DEMO_EXTRAS))

$(VENV)/.installed-test-$(KEY):
	$(call install,$(TEST_EXTRAS))

$(VENV)/.installed-lint-$(KEY):
	$(call install,$(LINT_EXTRAS))

$(DOCS_STAMP):
	$(call install,$(DOCS_EXTRAS))
