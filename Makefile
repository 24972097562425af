# Two commands on a bare machine with Python >= 3.11: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
CLIENTS := .venv-clients
SITE := import sysconfig; print(sysconfig.get_path("purelib"))

.PHONY: demo test install lint types tests clients clean

demo: install ## noisy emoji: corrupt, train CLIP and a robust method, compare, write demo/report.html
	$(BIN)/truepair demo --out demo

test: install lint types tests ## everything that has to be clean before a commit

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	touch $@

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy --strict truepair

tests: install
	$(THREADS) $(BIN)/pytest -q -n 2 --durations 10

clients: install $(CLIENTS)/installed ## img2dataset and CLIP_benchmark, as they come from PyPI, against truepair
	TRUEPAIR_CLIENTS=$(CLIENTS) $(THREADS) $(BIN)/pytest -q -m slow tests/clients

$(CLIENTS)/installed: .venv/installed tests/clients/requirements.txt
	test -x $(CLIENTS)/bin/python || $(BIN)/python -m venv $(CLIENTS)
	$(BIN)/python -c '$(SITE)' > "$$($(CLIENTS)/bin/python -c '$(SITE)')/truepair.pth" # sees .venv's torch; its NumPy is its own
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
	touch $@

clean: ## the environment and what the tools leave; not the demo's corpus and runs
	rm -rf .venv .venv-clients .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
