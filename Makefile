# Each target makes its own virtual environment where there is none: a fresh machine needs only Python and make.
PYTHON ?= python3
VENV ?= .venv
MODERN ?= .venv-modern
JUDGE ?= .venv-judge
PAIRS ?= .venv-pairs
MATRIX ?= build/matrix
STEPS ?= 20
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: compare test check coverage bench modern slow durations mutants mutation soak matrix record-default record-modern judge corpora manifests docs clean

compare: $(VENV)/.ready
	@$(BIN)/multiparam compare

# Quick: each law with few repetitions. ARGS="tests/core -k tie" runs some; ARGS=--slow, or make slow, every test.
test: $(VENV)/.ready
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

slow:
	@$(MAKE) --no-print-directory test ARGS=--slow

# Which of the quick tests are too slow for that: they are run and tests/slow.txt is written anew, from what each took.
durations: $(VENV)/.ready
	@mkdir -p build && : > tests/slow.txt
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --durations=0 --durations-min=0.1 > build/durations.txt
	$(BIN)/python tools/slow_tests.py < build/durations.txt

# Which lines and branches the tests reach; a report in the terminal and build/coverage.xml.
coverage: $(VENV)/.ready
	@mkdir -p build
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --cov --cov-report=term --cov-report=xml:build/coverage.xml

# Faults planted in adapters, and whether the conformance kit notices them.
mutants: $(VENV)/.ready
	@$(BIN)/python tools/mutants.py

# Small faults planted in what judges, and whether the quick tests notice them: minutes.
mutation: $(VENV)/.ready
	@$(BIN)/python tools/mutation.py --jobs $(JOBS)

# 10,000 random networks, as many sequences of operations, and as many with native changes, in each backend: hours. One backend: SOAK="--backend torch".
soak: $(VENV)/.ready
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --hypothesis-profile=soak $(SOAK) multiparam/testing/test_property.py tests/core/test_truth.py

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site of docs/, every link and reference held, into build/site.
docs: $(VENV)/.ready
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.ready
	@$(BIN)/python benchmarks/bench.py

# The same tests under numpy 2 and the newest jax, flax and keras. MXNet pins numpy below 2, so it comes without pins.
modern: $(MODERN)/.ready
	$(MODERN)/bin/python -m pytest -n $(JOBS) --dist loadgroup

# Each environment records the networks built in; one without any framework compares what they recorded.
matrix: record-default record-modern judge

record-default: $(VENV)/.ready
	@mkdir -p $(MATRIX)
	$(BIN)/multiparam record --steps $(STEPS) --output $(MATRIX)/default.safetensors

record-modern: $(MODERN)/.ready
	@mkdir -p $(MATRIX)
	$(MODERN)/bin/multiparam record --steps $(STEPS) --output $(MATRIX)/modern.safetensors

judge: $(JUDGE)/.ready
	@$(JUDGE)/bin/multiparam compare $(MATRIX)/*.safetensors --json $(MATRIX)/report.json \
		--markdown $(MATRIX)/report.md --junit $(MATRIX)/report.xml --html $(MATRIX)/report.html

# Models that others wrote twice, and whether weights move between them without a rule: an hour. CORPORA="--only 'Bert*'"
corpora: $(PAIRS)/.ready
	@mkdir -p build
	$(PAIRS)/bin/python examples/silero_vad_in_flax.py
	$(PAIRS)/bin/python tools/corpora/run.py --json build/corpora.json --markdown build/corpora.md $(CORPORA)

# The names, kinds and shapes of some of them, for the tests of matching.
manifests: $(PAIRS)/.ready
	$(PAIRS)/bin/python tools/corpora/record_manifests.py $(CORPORA)
	$(PAIRS)/bin/python tools/corpora/certain.py

$(VENV)/.ready: pyproject.toml constraints/default.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade-strategy only-if-needed -c constraints/default.txt -e ".[all,dev]"
	@touch $@

$(MODERN)/.ready: pyproject.toml constraints/modern.txt
	$(PYTHON) -m venv $(MODERN)
	$(MODERN)/bin/python -m pip install -q -c constraints/modern.txt -e ".[torch,jax,keras2,dev]" requests graphviz
	$(MODERN)/bin/python -m pip install -q --no-deps mxnet==1.9.1
	@touch $@

$(JUDGE)/.ready: pyproject.toml
	$(PYTHON) -m venv $(JUDGE)
	$(JUDGE)/bin/python -m pip install -q -c constraints/default.txt -e ".[cli]"
	@touch $@

# These ask for other versions of the frameworks than each other: so without what they ask for, which is listed.
$(PAIRS)/.ready: pyproject.toml constraints/default.txt constraints/pairs.txt tools/corpora/shim.py
	$(PYTHON) -m venv $(PAIRS)
	$(PAIRS)/bin/python -m pip install -q -c constraints/default.txt -e ".[all,test]"
	$(PAIRS)/bin/python -m pip install -q -c constraints/default.txt -c constraints/pairs.txt transformers
	$(PAIRS)/bin/python -m pip install -q --no-deps -r constraints/pairs.txt
	$(PAIRS)/bin/python tools/corpora/shim.py
	@touch $@

clean:
	rm -rf .venv .venv-modern .venv-judge .venv-pairs .venv-ci .venv-ci-modern .venv-ci-judge build
