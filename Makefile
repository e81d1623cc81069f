# make demo        separate the demo song, or SONG=path, into demo_stems/
# make test        run every test, in a separate environment
# make check       what CI runs: lint, format, types, tests
# make test-audio  the tests that need torchaudio, in a second environment
# make test-survival  kill 100 runs and fill 50 disks, as root; make test runs a sample of these
# make test-live   live separation for 5 minutes per preset on PulseAudio's null sinks, and its faults, on Linux
# make test-decoders  3,000 files of every kind that ffmpeg writes, whole and damaged; make test has a sample of them
# make test-ray    a library on several Ray nodes and an S3 server that fails, and Ray Train, in an environment of its own (15 minutes)
# make test-openvino  the OpenVINO backend, in an environment of its own
# make test-cpp    build and run the C++ example
# make test-training  every command of docs/training.md, in an environment of its own (7 minutes)
# make test-serve  the server's page in a browser: axe-core, and pictures for docs/images
# make web         build the page that separates in the browser into web/dist (needs Node)
# make test-web    that page in a browser, against the command; and its speed and memory
# make docs        build the documentation into site/
# make system-deps install ffmpeg and chromium if they are missing, or print the command to type
# make dist        build the wheel and the sdist, and check them for PyPI
#
# PIP_FLAGS is passed to pip. On Linux, PyPI's torch is a CUDA build of several GB; the CPU build is smaller:
#   make test PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
SONG ?= examples/demo/demo.ogg
OUT ?= demo_stems
PIP_FLAGS ?=

PACKAGE := pyproject.toml README.md models.toml $(shell find tfswa_sep -type f -not -path '*/__pycache__/*')
# Free space for .venv-audio: 5 GB of CUDA builds, 6.8 while pip unpacks them (measured).
AUDIO_KILOBYTES := 7000000
PIP := -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS)

.PHONY: demo test check lint test-audio test-survival test-live test-decoders test-ray test-openvino test-cpp test-training test-serve web test-web docs dist system-deps clean

demo: .venv/.done
	.venv/bin/tfswa-sep "$(SONG)" --out "$(OUT)" --verbose
	@echo "The stems are in $(OUT)/"

# Two processes with one thread each, so that they do not compete; PYTEST_FLAGS="-n 0" runs one with all threads.
# The tests start hundreds of processes, which would all compile the package if bytecode were not kept.
test: .venv-dev/.done system-deps
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= .venv-dev/bin/python -m pytest -n 2 --dist worksteal $(PYTEST_FLAGS)

check: lint test

lint: .venv-dev/.done
	.venv-dev/bin/ruff check
	.venv-dev/bin/ruff format --check
	.venv-dev/bin/mypy
	.venv-dev/bin/lint-imports

test-audio: .venv-audio/.done
	.venv-audio/bin/python -m pytest -m torchaudio tests/package/test_torchaudio.py tests/training/test_augment.py

test-survival: .venv-dev/.done system-deps
	SURVIVAL_RUNS=100 .venv-dev/bin/python -m pytest tests/package/test_survival.py

# Needs pulseaudio, pulseaudio-utils, libasound2-plugins and libportaudio2.
test-live: .venv-dev/.done
	.venv-dev/bin/python tests/live_proof.py --faults

test-decoders: .venv-dev/.done system-deps
	@printf '%s\n' '| file | whole | cut | zeros | joined | tagged | lies |' '| --- | --- | --- | --- | --- | --- | --- |' > decoders.md
	TFSWA_ALL_DECODERS=1 TFSWA_DECODERS_TABLE=decoders.md .venv-dev/bin/python -m pytest -n 2 tests/package/test_decoders.py
	@cat decoders.md

test-ray: .venv-ray/.done
	.venv-ray/bin/python -m pytest -m ray -s tests/package/test_ray.py tests/training/test_parallel.py

test-openvino: .venv-openvino/.done
	.venv-openvino/bin/python -m pytest tests/package/test_openvino.py

test-cpp: .venv-dev/.done
	.venv-dev/bin/python -m pytest -m proof tests/training/test_export_programs.py

test-training: .venv-dev/.done system-deps
	.venv-dev/bin/python -m pytest -n 0 -m proof tests/training/test_pipeline.py

test-serve: .venv-dev/.done
	PICTURES=docs/images .venv-dev/bin/python -m pytest -m "proof or slow" tests/package/test_serve_page.py

web:
	cd web && npm ci --silent --no-audit --no-fund && npm run --silent types && npm run --silent build
	@echo "The page is in web/dist/"

test-web: web .venv-dev/.done
	.venv-dev/bin/python -m pytest -n 0 -s -m "proof or slow" tests/package/test_web_page.py

docs: .venv-docs/.done
	.venv-docs/bin/zensical build --strict --clean

dist: .venv-build/.done
	rm -rf dist
	.venv-build/bin/python -m build --outdir dist
	.venv-build/bin/twine check --strict dist/*

# The tests need ffmpeg (for museval, stempeg and M4A). Without chromium and chromedriver, those that open pages in a
# browser are skipped.
system-deps:
	@missing=; \
	for program in ffmpeg chromium chromedriver; do \
	  command -v $$program >/dev/null || missing="$$missing $$program"; \
	done; \
	packages=$$(echo "$$missing" | sed 's/chromedriver/chromium-driver/'); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing with apt-get:$$packages"; \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$packages; \
	else \
	  echo "Missing:$$missing. Run:  sudo apt-get install$$packages   (macOS: brew install ffmpeg)" >&2; \
	  command -v ffmpeg >/dev/null; \
	fi

# As users have it: the built package, neither editable nor with torch.
.venv/.done: $(PACKAGE)
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) .
	touch $@

.venv-build/.done: pyproject.toml
	$(PYTHON) -m venv .venv-build
	.venv-build/bin/python $(PIP) --upgrade "pip>=25.1"
	.venv-build/bin/python $(PIP) --group build
	touch $@

.venv-docs/.done: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python $(PIP) --upgrade "pip>=25.1"
	.venv-docs/bin/python $(PIP) --group docs
	touch $@

# Editable, with all extras. pip supports --group since 25.1.
.venv-dev/.done: pyproject.toml constraints/torch213.txt
	$(PYTHON) -m venv .venv-dev
	.venv-dev/bin/python $(PIP) --upgrade "pip>=25.1"
	.venv-dev/bin/python $(PIP) --constraint constraints/torch213.txt --group dev --editable ".[torch,eval,live,peass,serve,tags,train,wandb]"
	touch $@

.venv-audio/.done: pyproject.toml constraints/torchaudio211.txt
	@if [ "$$(df -Pk . | awk 'NR == 2 {print $$4}')" -lt $(AUDIO_KILOBYTES) ]; then \
	  echo "torch 2.11 and torchaudio need 7 GB of free space in $$PWD: free some, or use the smaller CPU build" \
	    "(PIP_FLAGS, at the top of the Makefile)" >&2; exit 1; \
	fi
	$(PYTHON) -m venv .venv-audio
	.venv-audio/bin/python $(PIP) --upgrade "pip>=25.1"
	.venv-audio/bin/python $(PIP) --constraint constraints/torchaudio211.txt --editable ".[torch]" hydra-core pytest torchaudio
	touch $@

.venv-openvino/.done: pyproject.toml constraints/torch213.txt
	$(PYTHON) -m venv .venv-openvino
	.venv-openvino/bin/python $(PIP) --upgrade "pip>=25.1"
	.venv-openvino/bin/python $(PIP) --constraint constraints/torch213.txt --group dev --editable ".[openvino,train]"
	touch $@

# moto comes second: together with s3fs, pip tries hundreds of versions of botocore and gives up. s3fs does not work with
# all versions in constraints/torch213.txt, so only that of torch is the same.
.venv-ray/.done: pyproject.toml
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python $(PIP) --upgrade "pip>=25.1"
	.venv-ray/bin/python $(PIP) --editable ".[ray,train]" "ray[train]" "torch==2.13.0" pytest
	.venv-ray/bin/python $(PIP) s3fs "moto[server]>=5"
	touch $@

clean:
	rm -rf web/dist web/node_modules .venv .venv-dev .venv-audio .venv-build .venv-docs .venv-openvino .venv-ray site build dist demo_stems decoders.md
