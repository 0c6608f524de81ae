# `make notebooks` and `make test` set up all that they need in .venv from the locked requirements.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: notebooks html test lab refresh bench uci references faults robust lock clean

notebooks: $(READY)
	$(BIN)/python tools/notebooks.py build

# Of the stored notebooks, the pages beside them and the docstrings: nothing is executed.
html: $(READY)
	$(BIN)/sphinx-build --quiet --fail-on-warning --conf-dir docs . build/site
	@echo "Open build/site/index.html in a browser."

# Two notebooks at a time, each on one thread: on two cores, more threads wait for each other.
test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadscope
	OMP_NUM_THREADS=1 TQDM_DISABLE=1 $(BIN)/pytest -n 2 --dist loadscope --nbval --nbval-current-env \
		--nbval-sanitize-with tests/sanitize.cfg --nbval-cell-timeout=600 notebooks

lab: $(READY)
	$(BIN)/jupytext-config --settings-file .venv/etc/jupyter/labconfig/default_setting_overrides.json \
		set-default-viewer python
	$(BIN)/jupyter lab notebooks/01_data.ipynb

refresh: $(READY)
	$(BIN)/python tools/notebooks.py refresh

# The constraint keeps the locked torch; hamiltorch takes part where it is installed.
bench: $(READY)
	$(BIN)/pip install --quiet --constraint requirements.txt --editable '.[bench]'
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/independent.py
	$(BIN)/python benchmarks/certificates.py

# Hours; tables are downloaded, and what is in the first page is not run again.
uci: $(READY)
	$(BIN)/pip install --quiet --constraint requirements.txt --editable '.[peers]'
	$(BIN)/python benchmarks/uci.py
	$(BIN)/python benchmarks/airfoil.py
	$(BIN)/python benchmarks/large.py

# Some two hours on one core; what was done before is kept in build/references.
references: $(READY)
	$(BIN)/python tools/reference.py all
	$(BIN)/python benchmarks/references.py

# About an hour and a half on two cores.
faults: $(READY)
	$(BIN)/python tests/faults.py --to notebooks/faults.md

# Some three hours on two cores; what was done before, with the same sources, is not done again.
robust: $(READY)
	$(BIN)/python tools/robust.py

lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet uv
	build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate --extra notebooks --extra test --extra site \
		--custom-compile-command "make lock" --output-file requirements.txt pyproject.toml

clean:
	rm -rf .venv build

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed, this is ' + sys.version)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $(READY)
