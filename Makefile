# Two commands do everything: `make figures` and `make test`. The rest is for whoever works on the notebooks.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export PYTHONUNBUFFERED = 1

.PHONY: figures full paper test outputs bench gpu clean setup

figures: setup            ## train what is missing, cook, redraw every table and figure, write the README
	$(BIN)/python -m ich_soups.build figures

test: export ICH_SOUPS_FIGURES = $(CURDIR)/build/figures
# fewer trainings where a figure has many: see notebooks 24, 26 and 28
test: export ICH_SOUPS_QUICK = 1
test: setup               ## everything: in sync, every notebook, every test; figures go to build/figures
	$(BIN)/python -m ich_soups.build check
	rm -rf build/figures && mkdir -p build/figures
	@echo "library notebooks, two at a time; then those that time something or train with both cores; then the tests, those of clusters and of speed alone"
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --file_re '^(0|1[0-57-9])' --n_workers 2 --do_print --timing
	$(BIN)/nbdev_test --file_re '^(16|[2-9]|index)' --n_workers 1 --do_print --timing
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -v -n 2 --dist loadfile --durations=10 --ignore tests/test_speed.py --ignore tests/test_cluster.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_cluster.py -v --durations=5 --reruns 1 --only-rerun 'SystemExit|RpcError|Timed out'
	$(BIN)/python -m pytest tests/test_speed.py -v

bench: setup              ## averaging against the disk, the search against the naive one, training against the bare model, snapshots against the epoch, runs on Ray; PHOTOS=folder for your own
	$(BIN)/python -m ich_soups.bench averaging
	$(BIN)/python -m ich_soups.bench search
	$(BIN)/python -m ich_soups.bench training $(PHOTOS)
	$(BIN)/python -m ich_soups.bench keeping
	$(BIN)/python -m ich_soups.bench runs

gpu: setup                ## on a machine with a GPU: what only a card can show, at most 8 minutes [MINUTES=8]; a try on a CPU: ICH_SOUPS_DEVICE=cpu make gpu SMALL=1
	$(BIN)/python -m ich_soups.gpu $(if $(SMALL),--small) $(if $(MINUTES),--minutes $(MINUTES))

paper: setup              ## the paper's table from its photographs: DATA=folder [WEIGHTS=folder SEEDS=5 MODELS=a,b EPOCHS=50 SIZE=224 BS=128 ACCUM=2 OUT=folder WHERE=ray://HOST:PORT GPUS=1 COMPILE=1 PLAN=1]
	$(BIN)/python -m ich_soups.paper $(if $(DATA),"$(DATA)") $(if $(PLAN),--plan) $(if $(COMPILE),--compile) $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(SEEDS),--seeds $(SEEDS)) $(if $(MODELS),--models "$(MODELS)") \
	  $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(SIZE),--size $(SIZE)) $(if $(BS),--bs $(BS)) $(if $(ACCUM),--accum $(ACCUM)) $(if $(OUT),--out "$(OUT)") $(if $(WHERE),--where "$(WHERE)") $(if $(GPUS),--gpus $(GPUS))

full: setup               ## the long tables anew: hours
	$(BIN)/python -m ich_soups.study anew
	$(BIN)/python -m ich_soups.subsets anew

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
