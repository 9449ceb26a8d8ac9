.PHONY: check lint types imports core test slow docs
PY ?= .venv/bin/python
HOUSE := build/house

check: lint types imports test

lint:
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# The import namespace as a folder of links, for tools that do not run import hooks.
$(HOUSE)/stepline:
	mkdir -p $@
	for p in traces sim policies calibration; do ln -sfn ../../../$$p $@/$$p; done

types: $(HOUSE)/stepline
	MYPYPATH=$(HOUSE) $(PY) -m mypy -p stepline

imports: $(HOUSE)/stepline
	PYTHONPATH=$(HOUSE) .venv/bin/lint-imports

# The engine's core as C (sim/compiled.py); an edited source runs as Python until then.
core:
	$(PY) -m pip install --quiet --no-deps --editable .

test:
	$(PY) -m pytest

slow:
	$(PY) -m pytest -m slow

# The site, into build/site; reference pages are made from the code.
docs:
	$(PY) -m mkdocs build --strict
