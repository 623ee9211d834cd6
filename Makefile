# make demo   judge damaged copies of real images, and look at demo/index.html
# make test   lint, types and tests, with what they need installed
# make docs   build the documentation into docs/_build/html

PYTHON ?= python3
BIN := .venv/bin
SYSTEM_PACKAGES := chromium dcmtk dicom3tools orthanc orthanc-dicomweb postgresql rsyslog rsyslog-gnutls

.PHONY: demo test docs format clean

demo: .venv/installed
	$(BIN)/medqa demo --out demo

test: .venv/installed-dev system
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile
	$(MAKE) --no-print-directory docs

docs: .venv/installed-dev
	$(BIN)/sphinx-build -W --keep-going -q -b doctest docs docs/_build/doctest
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Root installs what some tests talk to; others install it themselves, or those tests are skipped.
.PHONY: system
system:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $(SYSTEM_PACKAGES) >/dev/null 2>&1; \
	then apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy $(SYSTEM_PACKAGES); fi

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/installed

clean:
	rm -rf .venv build demo docs/_build *.egg-info
