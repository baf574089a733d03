# make setup | demo | test | check | format | bench ; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA ?= $(or $(MEDGEN_DATA),../shared/data)
# Folders of trained and packed configs/baselines, to stand beside brain-mr in the benchmark.
BASELINES ?=
# Tests work on tiny arrays: one thread is fastest and repeatable.
TEST_ENV := OMP_NUM_THREADS=1 MPLBACKEND=agg
# A process for each core; neighbours stay together, as they share what is slow to make.
TEST_RUN := -m pytest --numprocesses auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo picture test test-fast check format lint types bench docs sample-data \
	constraints clean

help:
	@echo "setup        make $(VENV) and install medgen into it"
	@echo "demo         find the planted lesion in a brain scan of sample_data"
	@echo "test         all tests (test-fast leaves out the slow ones)"
	@echo "check        what continuous integration runs: format, lint, types, tests"
	@echo "format       put the code into the agreed form"
	@echo "bench        run the benchmarks and rewrite their tables"
	@echo "docs         write the reference of the command line again"
	@echo "picture      make docs/images/overview.webp again"
	@echo "sample-data  make the files in sample_data again"
	@echo "constraints  write the installed versions into constraints.txt"

setup: $(STAMP)

# torch goes first: it is the largest, and the one you may want from a special place
# (a CPU-only or another CUDA build: set PIP_EXTRA_INDEX_URL or install it yourself before).
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/medgen detect-anomalies sample_data/icbm152_flair_lesion.nii.gz -o demo --overwrite
	$(BIN)/python sample_data/check_overlap.py demo sample_data/icbm152_lesion_mask.nii.gz

picture: demo
	mkdir -p docs/images
	$(BIN)/python -c "from PIL import Image; Image.open('demo/overview.png').convert('RGB').resize((1270, 943)).save('docs/images/overview.webp', quality=68, method=6)"

test: setup
	$(TEST_ENV) $(BIN)/python $(TEST_RUN)

test-fast: setup
	$(TEST_ENV) $(BIN)/python $(TEST_RUN) -m "not slow and not realdata"

check: lint types test

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# anomaly_real, brain_extraction, burned_in_text and healthy_scans need the real scans named in CONTRIBUTING.md.
bench: setup
	$(BIN)/python benchmarks/inference_vs_monai.py --output benchmarks/results/inference_vs_monai.md
	$(BIN)/python benchmarks/brain_extraction.py --data $(DATA)
	$(BIN)/python benchmarks/speed.py --model brain-mr --output benchmarks/results/speed.md
	$(BIN)/python benchmarks/dicom_reading.py --output benchmarks/results/dicom_reading.md
	$(BIN)/python benchmarks/dicom_outcomes.py --output benchmarks/results/dicom_outcomes.md
	$(BIN)/python benchmarks/burned_in_text.py --data $(DATA)
	$(BIN)/python benchmarks/cohort.py --output benchmarks/results/cohort.md
	$(BIN)/python benchmarks/mixture_modes.py --output benchmarks/results/mixture_modes.md \
	  --picture docs/images/mixture_modes.png
	$(BIN)/python benchmarks/synthesis_speed.py --output benchmarks/results/synthesis_speed.md
	$(BIN)/python benchmarks/healthy_scans.py --data $(DATA) \
	  --output benchmarks/results/healthy_scans.md
	$(BIN)/python benchmarks/anomaly_real.py --data $(DATA) --model brain-mr $(BASELINES) \
	  -o benchmarks/anomaly_real.md

docs: setup
	$(BIN)/python docs/make_reference.py

sample-data: setup
	$(BIN)/python sample_data/make_sample_data.py

constraints: setup
	( head -n 1 constraints.txt; $(BIN)/python -m pip list --format=freeze --exclude-editable \
	  | grep -v -i -E '^(pip|setuptools|medgen)==' | sed 's/+cpu//' ) > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo
