# Two commands on a bare machine with Python >= 3.11: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test install lint types tests clean

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

clean: ## the environment and what the tools leave; not the demo's corpus and runs
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
