# make demo | test | test-all | bench | lint   set up .venv once, then run
#      torchvision and timm, which only the zoo's tests import, lie apart in .venv/peers: torchmetrics and transformers
#      import torchvision wherever they find it, and beside a CPU torch its registry wheel fails
# make gpu-test | gpu-bench PY=python3         on a machine whose own Python holds everything: no venv, no download
PYTHON ?= python3
PY ?= python3
JOBS ?= 2
RUN := .venv/bin/python
READY := .venv/.ready
PIP := $(RUN) -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
# pip compiles all on one core, packages' tests and transformers' hundreds of models as well, which few import
BYTECODE := $(RUN) -m compileall -qq -j $(JOBS) -x '/tests?/|transformers/models/' .venv/lib .venv/peers || true
# What the build asks for, and what a developer's extras do: pip fetches these while the native modules are compiled.
FILE := import tomllib; f = tomllib.load(open('pyproject.toml', 'rb'));
BUILD := $(FILE) print(*f['build-system']['requires'], sep='\n')
EXTRAS := $(FILE) p = f['project']; \
	print(*p['dependencies'], *(r for e in 'train bench hf dev'.split() for r in p['optional-dependencies'][e]), sep='\n')
NATIVE := pyproject.toml constraints.txt setup.py $(shell find csrc -type f)
CPU_KERNELS := $(RUN) -c "import kernelzoo as kz; print('cpp' if kz.backends()['cpp'].available else 'numba')"
BENCH := $(if $(OPS),--ops=$(OPS)) $(if $(OUT),--out=$(OUT))

.PHONY: demo test test-all bench lint gpu-test gpu-bench
.DEFAULT_GOAL := demo

$(READY): $(NATIVE)
	$(PYTHON) -m venv .venv
	$(RUN) -c "$(BUILD)" | $(PIP) -r /dev/stdin
	$(RUN) setup.py build_ext --inplace & $(RUN) -c "$(EXTRAS)" | $(PIP) -r /dev/stdin && wait $$!
	$(PIP) --no-deps --no-build-isolation -e .
	$(PIP) --no-deps --target .venv/peers torchvision timm
	$(BYTECODE)
	touch $@

demo: $(READY)
	$(RUN) -m kernelzoo train mlp --data digits --compare torch --out runs/demo --overwrite --backend $(or $(BACKEND),$$($(CPU_KERNELS)))
	$(RUN) -m kernelzoo verify linear

test: $(READY)
	$(RUN) -m pytest -q -n $(JOBS) --dist worksteal -m "not slow"

test-all: $(READY)
	$(RUN) -m pytest -q -n $(JOBS) --dist worksteal

bench: $(READY)
	$(RUN) bench/run.py $(BENCH) $(if $(BACKEND),--backend=$(BACKEND))

lint: $(READY)
	$(RUN) -m ruff format --check && $(RUN) -m ruff check

gpu-test:
	$(PY) bench/gpu.py test $(if $(OUT),--out=$(OUT))

gpu-bench:
	$(PY) bench/gpu.py bench $(BENCH)
