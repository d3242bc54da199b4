# make demo · make test · make test-all · make lint · make docs · make clean (the environment and the demo's run)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
SLOW := long or processes or parity
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
RUN := $(BIN)/python main.py --config=configs/digits.py --workdir=$(DEMO)

.PHONY: demo test test-rest test-all lint docs clean

# Reinstalled only when the requirements change.
$(VENV)/.installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml setup.py
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	touch $@

demo: $(VENV)/.installed
	$(RUN) --mode=train
	$(RUN) --mode=eval
	$(RUN) --mode=sample
	$(RUN) --mode=report

# What a contributor needs. The rest takes longer; test-all is both.
test: $(VENV)/.installed-dev
	$(PYTEST) -m "not ($(SLOW))"

test-rest: $(VENV)/.installed-dev
	$(PYTEST) -m "$(SLOW)"

test-all: $(VENV)/.installed-dev
	$(PYTEST)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# In site/: open site/index.html, or $(BIN)/mkdocs serve.
docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(DEMO) site
