# make demo · make test · make lint · make docs · make clean (the environment and the demo's run)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
RUN := $(BIN)/python main.py --config=configs/digits.py --workdir=$(DEMO)

.PHONY: demo test lint docs clean

# Reinstalled only when the requirements change.
$(VENV)/.installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml
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
	@$(BIN)/python -m jvdm.reporting.summary $(DEMO)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# In site/: open site/index.html, or $(BIN)/mkdocs serve.
docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(DEMO) site
