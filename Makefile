PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check fuzz bench bench-camelyon16 clean help

help:
	@echo "make demo    set everything up, make phantom slides, score and evaluate them, report on kidneys, write pages"
	@echo "             PATCHES=folder POLYGONS=folder: also mosaics of real patches, read by the model that has seen real tissue"
	@echo "make test    set up and pass every check"
	@echo "make check   the checks that take seconds: style, types, layers"
	@echo "make fuzz    1,000 damaged inputs: each must run, or be refused by one sentence"
	@echo "make bench   speed and quality, side by side"
	@echo "make bench-camelyon16 [SLIDES=CAMELYON16/testing] [MODEL=my_model]   the benchmark, on phantoms or real slides"

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("slidewright needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; run make PYTHON=python3.12")'
	@echo "setting up $(VENV): about 6 GB and two minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/wsi doctor
	$(BIN)/wsi phantom lymph-node --seed 101 --count 4 --out demo/slides
	$(BIN)/wsi score demo/slides/slides.csv --model lymph-node-demo --out demo/results --overwrite
	$(BIN)/wsi camelyon16 evaluate demo/results --truth demo/slides
	$(BIN)/wsi phantom kidney --seed 102 --count 2 --size 8192x6144 --c4d 8,45 --out demo/kidneys
	$(BIN)/wsi renal report demo/kidneys --out demo/reports --overwrite
	$(BIN)/wsi renal evaluate demo/reports --truth demo/kidneys
	$(BIN)/wsi score demo/slides/normal_001.tif --out demo/unlike --overwrite
ifneq ($(and $(PATCHES),$(POLYGONS)),)
	$(BIN)/wsi phantom lymph-node --patches $(PATCHES) --polygons $(POLYGONS) --seed 103 --count 2 --size 6144x6144 --out demo/mosaics
	$(BIN)/wsi score demo/mosaics/slides.csv --out demo/mosaic-results --overwrite
	$(BIN)/wsi camelyon16 evaluate demo/mosaic-results --truth demo/mosaics
	@echo "Open demo/mosaic-results/index.html for real tissue, read by the model that has seen such."
endif
	@echo
	@echo "Look at the slides:   $(BIN)/wsi view demo/results    and    $(BIN)/wsi view demo/reports"
	@echo "Open demo/results/index.html in a browser, and demo/results/evaluation/atlas.html for the mistakes;"
	@echo "demo/reports/index.html for C4d in kidneys; demo/unlike/index.html is a drawing shown to the model that has seen real"
	@echo "tissue, which warns of it."
	@echo "Phantoms are drawings; for research use only."

check: $(READY)
	$(BIN)/ruff format --check --diff .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/pytest -n 2 --dist loadfile

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --count 1000 --seed 0 --seconds 600
	EVERY_FAULT=1 $(BIN)/pytest -q tests/test_every_write.py

bench: $(READY)
	$(BIN)/python -m benchmarks.scoring
	$(BIN)/python -m benchmarks.precision
	$(BIN)/python -m benchmarks.planning
	$(BIN)/python -m benchmarks.phantoms
	$(BIN)/python -m benchmarks.demo_model
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.kill
	$(BIN)/python -m benchmarks.cluster

bench-camelyon16: $(READY)
	$(BIN)/python -m benchmarks.camelyon16 $(if $(SLIDES),--slides $(SLIDES)) $(if $(MODEL),--model $(MODEL))

clean:
	rm -rf $(VENV) demo runs
