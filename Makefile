# Two commands do everything: `make figures` and `make test`. The rest is for whoever works on the notebooks.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PROFILE ?=
REMEASURE ?=
START := $(shell date +%s)
SECONDS_SO_FAR = $$(( $$(date +%s) - $(START) )) s
export PYTHONUNBUFFERED = 1
# what was compiled once is kept in the environment: a process that imports all of it starts in half the time
unexport PYTHONDONTWRITEBYTECODE
# where the smoke profile draws; the committed figures are drawn by `make figures` alone
DRAWN = $(CURDIR)/build/figures
# folders of notebooks that make modules
ROOMS = (data|soups|evidence|train|app|companion)$$
# tests that want the machine for themselves
ALONE = tests/test_cluster.py tests/test_speed.py

.PHONY: figures full pretrain paper test test-all quick outputs bench gpu clean setup lint check site lock screens

figures: setup            ## train what is missing, cook, redraw every table and figure, write the README; PROFILE=smoke for a sketch in build/figures, REMEASURE=1 to time and weigh anew
	$(if $(REMEASURE),ICH_SOUPS_REMEASURE=1) $(BIN)/python -m ich_soups.companion.build figures $(if $(PROFILE),--profile $(PROFILE))
	@echo "whole command: $(SECONDS_SO_FAR)"

test: export ICH_SOUPS_PROFILE = smoke
test: export ICH_SOUPS_FIGURES = $(DRAWN)
test: setup lint check    ## the quick tier: in sync, every notebook in the smoke profile, every test that is not slow
	rm -rf $(DRAWN) && mkdir -p $(DRAWN)
	@echo "all notebooks, two at a time; then the tests, those of clusters alone"
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --do_print --timing
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=15 $(ALONE:%=--ignore %)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_cluster.py --durations=5 --reruns 1 --only-rerun 'SystemExit|RpcError|Timed out'
	@echo "whole command: $(SECONDS_SO_FAR)"

test-all: export ICH_SOUPS_FIGURES = $(DRAWN)
test-all: setup lint check ## everything: the notebooks as the figures are made, twenty kills, clusters, speed, both ends of the supported versions
	rm -rf $(DRAWN) && mkdir -p $(DRAWN)
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --folder_re '$(ROOMS)' --skip_file_re '^([0-9]+_bench|index)' --n_workers 2 --do_print --timing
	for p in $$(cd nbs && echo companion/*_bench*.ipynb) chapters howto index.ipynb; do $(BIN)/nbdev_test --path nbs/$$p --n_workers 1 --do_print --timing || exit 1; done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow or not slow' -v -n 2 --dist loadfile --durations=15 $(ALONE:%=--ignore %)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_cluster.py -m 'slow or not slow' -v --durations=5 --reruns 1 --only-rerun 'SystemExit|RpcError|Timed out'
	$(BIN)/python -m pytest tests/test_speed.py -m 'slow or not slow' -v
	@echo "whole command: $(SECONDS_SO_FAR)"

quick: export ICH_SOUPS_PROFILE = smoke
quick: setup lint check   ## while editing: in sync, the notebooks of the first row, evidence and soups, the tests of seconds
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --folder_re '(evidence|soups)$$' --skip_file_re '^index' --n_workers 2 --timing
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m quick -q
	@echo "whole command: $(SECONDS_SO_FAR)"

lint: setup               ## mistakes that can be seen without running anything; the form of notebooks and tests
	$(BIN)/ruff check --quiet ich_soups tests
	$(BIN)/ruff format --check --quiet nbs tests

check: setup              ## notebooks are clean; modules and README follow from them
	$(BIN)/python -m ich_soups.companion.build check

bench: setup              ## averaging against the disk, the search against the naive one, training against the bare model, snapshots against the epoch, one busy neighbour, runs on Ray; PHOTOS=folder for your own
	$(BIN)/python -m ich_soups.companion.bench averaging
	$(BIN)/python -m ich_soups.companion.bench search
	$(BIN)/python -m ich_soups.companion.bench training $(PHOTOS)
	$(BIN)/python -m ich_soups.companion.bench keeping
	$(BIN)/python -m ich_soups.companion.bench busy
	$(BIN)/python -m ich_soups.companion.bench runs

gpu: setup                ## on a machine with a GPU: what only a card can show, at most 8 minutes [MINUTES=8]; a try on a CPU: ICH_SOUPS_DEVICE=cpu make gpu SMALL=1
	$(BIN)/python -m ich_soups.companion.gpu $(if $(SMALL),--small) $(if $(MINUTES),--minutes $(MINUTES))

paper: setup              ## the paper's table from its photographs: DATA=folder [WEIGHTS=folder SEEDS=5 MODELS=a,b EPOCHS=50 SIZE=224 BS=128 ACCUM=2 OUT=folder WHERE=ray://HOST:PORT GPUS=1 COMPILE=1 PLAN=1]
	$(BIN)/python -m ich_soups.companion.paper $(if $(DATA),"$(DATA)") $(if $(PLAN),--plan) $(if $(COMPILE),--compile) $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(SEEDS),--seeds $(SEEDS)) $(if $(MODELS),--models "$(MODELS)") \
	  $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(SIZE),--size $(SIZE)) $(if $(BS),--bs $(BS)) $(if $(ACCUM),--accum $(ACCUM)) $(if $(OUT),--out "$(OUT)") $(if $(WHERE),--where "$(WHERE)") $(if $(GPUS),--gpus $(GPUS))

full: setup               ## the long tables anew: hours
	$(BIN)/python -m ich_soups.companion.study anew
	$(BIN)/python -m ich_soups.companion.subsets anew
	$(BIN)/python -m ich_soups.companion.regime
	$(BIN)/python -m ich_soups.companion.efficiency
	$(BIN)/python -m ich_soups.companion.transfer
	$(BIN)/python -m ich_soups.companion.unknown

pretrain: setup           ## make the weights in the package anew: about 45 minutes on two cores; NETWORKS="a b" for some, RATES=1 for the grid of rates
	$(BIN)/python -m ich_soups.companion.pretraining $(NETWORKS) $(if $(RATES),--rates)

outputs: setup            ## run the notebooks of modules and the how-tos, and keep their outputs
	$(BIN)/python -m ich_soups.companion.build outputs

screens: setup            ## the two pictures of the README, taken in Chromium
	$(BIN)/python -m ich_soups.companion.screens

site: setup               ## the documentation site in build/site
	$(BIN)/pip install --quiet "mkdocs-material>=9.5" "mkdocs-jupyter>=0.25"
	$(BIN)/python -m ich_soups.companion.site

lock: setup               ## write down this environment, with hashes: the one that the committed numbers are from
	mkdir -p build && $(BIN)/pip list --format=freeze --exclude-editable | grep -vE '^(uv|pip)==' > build/frozen.txt
	$(BIN)/uv pip compile --quiet --no-deps --generate-hashes --no-header --python $(BIN)/python build/frozen.txt --no-annotate -o requirements.lock

setup: $(VENV)/.ready

$(VENV)/.ready: settings.ini setup.py pyproject.toml
	@echo "setting up $(VENV): about 6 GB, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip uv
	UV_CACHE_DIR=$(VENV)/.uv $(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev,all]' || $(BIN)/pip install --quiet --no-compile -e '.[dev,all]'
	rm -rf $(VENV)/.uv && touch $@
	@echo "set-up: $(SECONDS_SO_FAR)"

clean:                    ## forget builds; runs and caches stay
	rm -rf build dist *.egg-info
