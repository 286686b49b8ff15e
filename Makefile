# Two commands do everything: `make figures` and `make test`. The rest is for whoever works on the notebooks.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export PYTHONUNBUFFERED = 1

.PHONY: figures full test outputs bench clean setup

figures: setup            ## train what is missing, cook, redraw every table and figure, write the README
	$(BIN)/python -m ich_soups.build figures

test: setup               ## everything: in sync, every notebook, every test; figures go to build/figures
	$(BIN)/python -m ich_soups.build check
	rm -rf build/figures && mkdir -p build/figures
	ICH_SOUPS_FIGURES=$(CURDIR)/build/figures $(BIN)/nbdev_test --n_workers 1 --do_print --timing
	ICH_SOUPS_FIGURES=$(CURDIR)/build/figures $(BIN)/python -m pytest tests -v --durations=5

bench: setup              ## averaging against the disk, the search against the naive one, training against the bare model; PHOTOS=folder for your own
	$(BIN)/python -m ich_soups.bench averaging
	$(BIN)/python -m ich_soups.bench search
	$(BIN)/python -m ich_soups.bench training $(PHOTOS)

full: setup               ## the long tables anew: hours
	$(BIN)/python -m ich_soups.study anew

outputs: setup            ## run the library notebooks and keep their outputs
	$(BIN)/python -m ich_soups.build outputs

setup: $(VENV)/.ready

$(VENV)/.ready: settings.ini setup.py pyproject.toml
	@echo "setting up $(VENV): about 6 GB, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e '.[dev,all]'
	touch $@

clean:                    ## forget builds; runs and caches stay
	rm -rf build dist *.egg-info
