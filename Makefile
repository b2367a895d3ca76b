# make demo         install, test the published systems and two baselines on a fresh sitcom, train one, write report.html
# make real         install, fetch a real language model (93 MB), label some sentences with it, train it (about 4 minutes), test it: 5 to 10 minutes with the install
# make test         install with the dev extra, run make lint, the test suite and the notebooks
# make install      into .venv, with the dev extra
# make lint         ruff, the import rules and the types
# make docs         write the pages of docs/, the cards and a reference as a site to build/site
# make coverage     the suite with the share of lines that it runs
# make constraints  write constraints.txt from what .venv holds (after upgrading something in it)
# make clean        remove .venv, caches and build leftovers; runs/ stays
#
# The first demo or test installs (a network is needed); later ones install nothing and work offline, until
# pyproject.toml or constraints.txt change. PYTHON chooses the interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs/demo
FLOOR := 95  # percent of lines, of which the suite reaches 96 (Python 3.12, two cores, 38 minutes beside other work)

# A stamp is named after the content it was installed from, so neither a checkout nor a touched file installs again.
CONTENT := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
PLAIN := $(VENV)/.installed-$(CONTENT)
DEV := $(VENV)/.installed-dev-$(CONTENT)
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

# Without bytecode every process compiles all that it imports: 13 s more for each of the many that the tests start
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo real install test lint docs coverage constraints clean

# the dev install holds everything the plain one does
demo: $(if $(wildcard $(DEV)),$(DEV),$(PLAIN))
	test -f $(RUNS)/sitcom/corpus.json || $(OFFLINE) $(BIN)/zoo prepare synthetic --seed 3 --dialogues 120 \
		--shares .25 .05 .7 --descriptions noisy --out $(RUNS)/sitcom
	$(OFFLINE) OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/zoo bench --config configs/bench/demo.yaml \
		--data.root $(RUNS)/sitcom --out $(RUNS)/bench --jobs 2
	@printf '\nThe results lie in %s: open report.html\n' $(RUNS)/bench && ls -1 $(RUNS)/bench

# The package that reads the model's format is an extra of its own
real: $(if $(wildcard $(DEV)),$(DEV),$(PLAIN))
	$(BIN)/python -c 'import gguf' 2> /dev/null || $(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[gguf]'
	$(BIN)/zoo checkpoints pull smollm2-135m
	$(OFFLINE) $(BIN)/zoo label docs/sentences.csv --ckpt_path smollm2-goemotions
	$(OFFLINE) $(BIN)/zoo fit --config configs/dialoguellm/laptop_sitcom.yaml --trainer.default_root_dir runs/real
	$(OFFLINE) $(BIN)/zoo test --ckpt_path best --trainer.default_root_dir runs/real
	@printf '\nOn real dialogue: configs/dialoguellm/laptop.yaml, with your copy of MELD\n'

# MKL_CBWR: Intel's library then adds up in one order on every CPU, so that short trainings end alike everywhere;
# one thread per process: the models of the tests are too small for more to pay; a file's tests stay together, because
# they share what they trained, and the longest files come first (tests/conftest.py)
test: $(DEV) lint
	$(OFFLINE) MKL_CBWR=AVX2,STRICT OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n $${PROCESSES:-2} --dist loadfile --no-loadscope-reorder \
		--nbmake --nbmake-timeout=600 tests notebooks

# --strict: a link that leads nowhere, or a page that no menu names, is an error. NO_MKDOCS_2_WARNING: advertisement of a
# successor that does not exist yet
docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@printf 'open build/site/index.html\n'

# Seen is what runs in the processes of the tests, not in those that a test starts. sysmon: from Python 3.12 on, counting
# costs nearly nothing; before, it takes several times as long as the suite
coverage: $(DEV)
	COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') $(OFFLINE) MKL_CBWR=AVX2,STRICT OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n $${PROCESSES:-2} --dist loadfile --no-loadscope-reorder \
		--cov=zoo --cov-report=term --cov-fail-under=$(FLOOR) tests

install: $(DEV)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy

# --no-compile: a minute less; Python compiles what it imports, once
$(PLAIN):
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.installed*
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e .
	touch $@

$(DEV):
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.installed*
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[dev]'
	touch $@

# Exact versions and nothing else: no addresses, no local suffix (+cpu). Pins of packages that .venv does not hold (the
# other extras) are kept as they are.
constraints:
	@test -x $(BIN)/python || { echo "no $(BIN)/python to take versions from; run 'make test' first" >&2; exit 1; }
	@$(BIN)/python -m pip freeze --exclude-editable --exclude emotion-zoo > $(VENV)/freeze.txt
	@touch constraints.txt
	@{ echo "# Exact versions of everything zoo and its extras install; written by 'make constraints'."; \
	   echo "# Use: pip install -c constraints.txt -e '.[dev]'"; \
	   sed -nE 's/^([A-Za-z0-9._-]+==[A-Za-z0-9.!]+)(\+[^ ;]*)?$$/\1/p' $(VENV)/freeze.txt constraints.txt \
	   | awk -F== '{ name = tolower($$1); gsub(/[-_.]+/, "-", name); if (!seen[name]++) print name "==" $$2 }' \
	   | LC_ALL=C sort -t= -k1,1; } > $(VENV)/constraints.txt
	@mv $(VENV)/constraints.txt constraints.txt && rm $(VENV)/freeze.txt
	@echo "constraints.txt: $$(grep -c == constraints.txt) versions"

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
