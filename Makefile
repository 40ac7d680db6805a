# The user commands; `make` lists them. Everything runs with the interpreter in $(VENV), which the
# first command that needs it builds from requirements.lock. Once it is built, nothing here needs the network.

PYTHON ?= python3
VENV ?= .venv
RECIPE ?=
FILE ?= checkpoints/quantized.safetensors
ARGS ?=
NAME ?=
SPEC ?=
BRANCH ?=
BUDGET ?=
TO ?= all
OUT ?= build/export
N ?= 3
# What `make` alone shows first: the first six of these that exist.
START := demo score use repro report doctor test
A ?= HEAD
B ?= HEAD
AGAINST ?=
UV_VERSION := 0.13.9

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

# Bytecode in site-packages halves DVC's start-up time, so it is written even if the shell forbids it.
unexport PYTHONDONTWRITEBYTECODE
# Code is imported from this checkout, never from where a shell happens to point, and a script ends without a prompt.
unexport PYTHONPATH PYTHONSAFEPATH PYTHONINSPECT
export DVC_NO_ANALYTICS := 1
export RECIPE FILE NAME SPEC BUDGET A B AGAINST N TO OUT
# A command stopped by Ctrl-C has said so: make ends with it, silently.
export BASH_ENV := $(abspath tools/stopped.bash)
# A tree unpacked from an archive is no repository, and DVC needs to be told.
ifeq ($(wildcard .git),)
export DVC_SYSTEM_CONFIG_DIR := $(abspath tools/without_git)
endif

BIN := $(abspath $(VENV))/bin
PY := $(BIN)/python
# DVC runs `python stages/NAME.py`: the PATH makes that python this one.
DVC := PATH="$(BIN):$$PATH" "$(PY)" -m dvc
REPRODUCE := PATH="$(BIN):$$PATH" "$(PY)" $(abspath tools/repro.py)
# Small networks on one thread, tests in parallel: twice as fast on two cores as two threads per test.
PYTEST := OMP_NUM_THREADS=1 "$(PY)" -m pytest -q

# --- environment ---

.PHONY: help
help: ## list these commands
	@awk -v start="$(START)" -f tools/help.awk Makefile

# The copy of the lock is written last: a half-built environment has none, one from another lock a different one.
.PHONY: env
env: ## build .venv from requirements.lock (other targets do so when needed)
	@if [ -x "$(PY)" ] && cmp -s requirements.lock "$(VENV)/installed.lock"; then exit 0; fi
	if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
		echo "make: $(PYTHON) is not Python 3.11 or newer; name one that is, as in: make env PYTHON=python3.11" >&2
		exit 2
	fi
	echo "building $(VENV) from requirements.lock: once, under a minute when uv has the packages, else a 3 GB download"
	rm -rf "$(VENV)"
	$(PYTHON) -m venv "$(VENV)"
	"$(PY)" -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	"$(BIN)/uv" pip install --quiet --python "$(PY)" --compile-bytecode --requirement requirements.lock
	install -m 755 tools/dvc.sh "$(BIN)/dvc"
	cp requirements.lock "$(VENV)/installed.lock"

# The user's registry settings must not leave a trace in the lock.
.PHONY: lock
lock: env ## resolve pyproject.toml into requirements.lock again, with the newest versions it allows
	@env -u PIP_FIND_LINKS -u UV_FIND_LINKS "$(BIN)/uv" pip compile pyproject.toml --group dev --quiet --upgrade \
		--universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		--output-file requirements.lock

# It checks the environment too, so it builds none: any Python will do.
.PHONY: doctor
doctor: ## find what is wrong here, and the command that fixes it
	@if [ -x "$(PY)" ] && "$(PY)" -c '' 2>/dev/null; then python="$(PY)"; else python="$(PYTHON)"; fi
	if ! command -v "$$python" >/dev/null; then
		echo "make doctor: there is no $$python; name one, as in: make doctor PYTHON=python3.11" >&2
		exit 2
	fi
	"$$python" tools/doctor.py $(ARGS)

# --- pipeline ---

# DVC whose Python disappears ends with a traceback, or as if all were well.
define REPRO
$(REPRODUCE) $(1) && code=0 || code=$$?
if [ ! -x "$(PY)" ]; then echo "make: $(VENV) was taken away in the middle; the same command builds it and goes on" >&2; exit 1; fi
[ "$$code" = 0 ] || exit "$$code"
endef

.PHONY: score
score: fresh unlock ## update everything, measure on the real test set, show it
	@"$(PY)" tools/restored.py
	$(DVC) pull --remote release dvc.yaml >/dev/null 2>&1 </dev/null || $(DVC) pull dvc.yaml >/dev/null 2>&1 </dev/null \
		|| echo "make: release/cache lacks some results of these params; the pipeline makes them (make pull says which)"
	"$(PY)" tools/restored.py
	$(call REPRO)
	"$(PY)" stages/score.py --check

.PHONY: repro
repro: fresh unlock ## run the stages whose code, inputs or params changed
	@"$(PY)" tools/restored.py
	$(call REPRO,$(ARGS))
	if [ -f checkpoints/quantized.safetensors ]; then
		echo "make: next, 'make score' measures the packed model anew and prints the table, and"
		echo "      '.venv/bin/python -m micronet.predict checkpoints/quantized.safetensors IMAGE' names a picture"
	fi

# DVC's full table is three screens wide, so other models' params, file checksums and the like are left out.
UNSEEN := pipelines/|checkpoints/|code/|data/|(stages|micronet|models|networks|params\.yaml)$$|
UNSEEN := $(UNSEEN)(deck|strict|course)_score|validation_|Created|Executor
.PHONY: experiments
experiments: env unlock ## compare what differs between the experiments of `dvc exp run`: docs/experiments.md
	@$(DVC) exp show --only-changed --drop '$(UNSEEN)' $(ARGS)

# For code changes that change no result, such as a renamed function: DVC would rerun hours of work.
.PHONY: accept
accept: check unlock ## accept the existing results as those of the current code, without running anything (dvc commit)
	@PATH="$(BIN):$$PATH" "$(PY)" tools/accept.py

.PHONY: demo
demo: env ## run every stage from scratch on a sample, in build/demo
	@rm -rf build/demo
	mkdir -p build/demo/data
	cp -R .dvcignore dvc.yaml stages models networks micronet build/demo/
	cp -R data/sample build/demo/data/
	cp recipes/demo.yaml build/demo/params.yaml
	cd build/demo
	$(DVC) init --no-scm --quiet
	$(DVC) config core.analytics false
	$(REPRODUCE)
	"$(PY)" stages/score.py --check
	cat ../../tools/next.txt

.PHONY: check
check: env ## validate params.yaml and build its networks: one line per error, nothing touched
	@"$(PY)" stages/check.py

.PHONY: use
use: ## make a recipe the active params.yaml: make use RECIPE=laptop
	@if ! [[ "$$RECIPE" =~ ^[A-Za-z0-9_-]+$$ && -f "recipes/$$RECIPE.yaml" ]]; then
		names=""
		for file in recipes/*.yaml; do name="$${file##*/}"; names="$$names $${name%.yaml}"; done
		[ -n "$$RECIPE" ] && said="there is no recipe '$$RECIPE'" || said="RECIPE is missing"
		echo "make use: $$said; name one of:$$names" >&2
		exit 2
	fi
	kept=no
	[ -e params.yaml ] || kept=yes
	if git show HEAD:./params.yaml 2>/dev/null | cmp -s - params.yaml; then kept=yes; fi
	for file in recipes/*.yaml; do if cmp -s "$$file" params.yaml; then kept=yes; fi; done
	if [ "$$kept" = no ]; then
		echo "make use: params.yaml has edits that are not committed; commit them, or drop them with: git checkout params.yaml" >&2
		exit 2
	fi
	cp "recipes/$$RECIPE.yaml" params.yaml.new
	mv params.yaml.new params.yaml
	echo "params.yaml is now recipes/$$RECIPE.yaml"

.PHONY: pictures
pictures: env ## write a folder of pictures to try recipes/folder.yaml with: data/pictures, four classes of the sample
	@"$(PY)" tools/pictures.py $(ARGS)

# --- sweeps ---

# A failed run is a row with its reason, so that the others continue; it is retried next time. A sweep replaces the
# shell, so that a signal that ends make reaches it and it can end what it started. So what comes after a sweep is a
# target of its own.
.PHONY: _studies _seeds
.PHONY: sweep
sweep: env ## run many variants of the pipeline, here or on a Ray cluster: make sweep SPEC=sweeps/demo.yaml BRANCH=1
	@INSTEAD_OF_SHELL=1 exec "$(PY)" sweeps/run.py $(if $(BRANCH),--branch) $(if $(BUDGET),--budget "$$BUDGET") $(ARGS) -- "$${SPEC:-}"

.PHONY: studies
studies: _studies ## run the sweeps that ask the slides' questions, write docs/studies.md: make studies BUDGET=small
	@exec "$(PY)" tools/studies.py --fail-with-rows

_studies: env
	@INSTEAD_OF_SHELL=1 exec "$(PY)" sweeps/run.py --rows-may-fail $(if $(BUDGET),--budget "$$BUDGET") $(ARGS) -- $$(grep -l '^question:' sweeps/*.yaml)

.PHONY: compare
compare: env ## show what differs in params and metrics, write a page: make compare A=main B=sweep/demo/gradual,weight_bits=4-0
	@"$(PY)" tools/compare.py -- "$${A:-HEAD}" "$${B:-HEAD}"

.PHONY: seeds
seeds: _seeds ## run the active recipe with N seeds, mean and spread to metrics/seeds.json: make seeds N=3
	@exec "$(PY)" tools/seeds.py

_seeds: env
	@if ! [[ "$${N:-3}" =~ ^[1-9][0-9]{0,3}$$ ]]; then
		printf 'make seeds: N: must be a whole number, 1 to 9999 (got %q)\n' "$${N:0:60}" >&2
		exit 2
	fi
	INSTEAD_OF_SHELL=1 exec "$(PY)" sweeps/run.py --seeds "$${N:-3}" $(ARGS) -- sweeps/seeds.yaml

# --- looking at results ---

.PHONY: report
report: env ## write all results of a run on one page: build/report.html
	@"$(PY)" tools/page.py $(ARGS) --name="$$NAME" --against="$$AGAINST"

# --- published results ---

.PHONY: pull
pull: env unlock ## fetch the published checkpoints from release/cache
	@$(DVC) pull --remote release $(ARGS)

.PHONY: push
push: env unlock ## publish the current checkpoints to release/cache
	@$(DVC) push --remote release $(ARGS)

.PHONY: verify
verify: env ## check a packed model's claims by measuring its file alone: make verify NAME=cascade, or FILE=path
	@"$(PY)" tools/verify.py $(ARGS) $(if $(NAME),--name "$$NAME") -- "$$FILE"

# The remote is refilled: what only older versions of dvc.lock name is superseded, and git keeps the history.
# What dvc.lock names is published, so the verified workspace must match it. Results of sweeps are not published.
# Git holds the same files in DVC's cache, where it stores them once: `dvc pull` in a clone needs no remote, so there is no
# default remote that `dvc push` and `dvc exp push` would write to.
.PHONY: release
release: env unlock ## verify, write release/MODEL_CARD.md, leave exactly the current checkpoints in release/cache
	@if ! $(DVC) status --quiet dvc.yaml; then
		echo "make release: the results are not those of this code and these params; make repro brings them up to date" >&2
		exit 1
	fi
	"$(PY)" tools/verify.py --claims metrics/score.json
	"$(PY)" tools/sizes.py
	"$(PY)" tools/model_card.py
	$(DVC) fetch --quiet --remote release dvc.yaml
	rm -rf release/cache/files
	$(DVC) push --remote release dvc.yaml
	git rm -r --quiet --cached --ignore-unmatch .dvc/cache
	(cd release/cache && find files -type f) | sed 's|^|.dvc/cache/|' | xargs git add --force
	size=$$(find release/cache -type f -exec cat {} + | wc -c)
	echo "release/cache: $$((size)) bytes"
	if [ "$$size" -gt 10000000 ]; then
		echo "make release: release/cache is over 10 MB; a smaller teacher would fit (above 1 M parameters they have 16 bits)" >&2
		exit 1
	fi

.PHONY: plots
plots: env ## draw metrics/ to docs/plots: curves, path, peers, what each method did
	@"$(PY)" tools/released.py
	"$(PY)" tools/plots.py $(ARGS)
	"$(PY)" tools/peers.py $(ARGS)
	"$(PY)" tools/methods.py

.PHONY: docs
docs: env ## write the numbers of metrics/ to README.md and docs/{trust,record,performance,studies,export,reference,...}
	@"$(PY)" tools/released.py
	"$(PY)" tools/results.py
	"$(PY)" tools/record.py
	"$(PY)" tools/performance.py
	"$(PY)" tools/measured.py
	"$(PY)" tools/studies.py
	"$(PY)" tools/export_docs.py
	"$(PY)" tools/references.py

# The suppressed notice is about the authors' next program. A broken link or a missing page fails the build.
.PHONY: site
site: env ## build the documentation as a website that works offline: build/site/index.html
	@NO_MKDOCS_2_WARNING=1 "$(PY)" -m mkdocs build --strict --quiet --clean
	echo "build/site/index.html: open it in a browser"

# --- export ---

.PHONY: export
export: env ## export a packed model as C, ONNX, a web page: make export TO=c FILE=path OUT=build/export ARGS="--optimize speed"
	@"$(PY)" tools/export.py --to "$${TO:-all}" --out "$${OUT:-build/export}" $(ARGS) -- "$$FILE"

.PHONY: mcu
mcu: env ## run the C on emulated Cortex-M4 and M55 boards: same logits, flash, RAM, instructions: make mcu FILE=path
	@"$(PY)" tools/mcu.py $(ARGS) -- "$$FILE"

.PHONY: exports
exports: env ## test all published models: ONNX on their test images, C on emulated boards; `make docs` writes the results
	@"$(PY)" tools/exports.py $(ARGS)

# --- measurements: speeds are valid only when nothing else runs ---

.PHONY: bench
bench: env ## compare our training loop with the one everybody copies, and all exports: speed, memory
	@"$(PY)" bench/run.py
	"$(PY)" bench/accuracy.py
	"$(PY)" bench/startup.py
	"$(PY)" bench/export.py
	"$(PY)" bench/processes.py
	"$(PY)" bench/steps.py
	"$(PY)" bench/allocation.py

.PHONY: profile
profile: env ## measure where the time of a training step goes, and what was tried on DenseNets
	@"$(PY)" bench/shares.py
	"$(PY)" bench/variants.py

.PHONY: choices
choices: env ## measure what two compression settings were chosen by, on validation images
	@"$(PY)" bench/choices.py

.PHONY: reliability
reliability: env ## try thousands of damaged params, packed files, odd networks, and kills: half an hour
	@"$(PY)" bench/reliability.py $(ARGS)

.PHONY: gpu-check
gpu-check: env ## on a machine with a GPU: run the tests marked gpu, measure images per second and where the time goes
	@if ! "$(PY)" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
		echo "make gpu-check: torch sees no CUDA device here" >&2
		exit 1
	fi
	$(PYTEST) -m gpu
	"$(PY)" bench/run.py --device cuda --output metrics/bench_gpu.json
	"$(PY)" bench/shares.py --device cuda --output metrics/profile_gpu.json

# --- code ---

.PHONY: test
test: env ## run the tests that take seconds: make test ARGS="-k scoring"
	@$(PYTEST) --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 10 $(ARGS)

.PHONY: test-slow
test-slow: env ## run the tests that take minutes
	@$(PYTEST) -m slow --numprocesses auto --maxprocesses 4 --dist worksteal --durations 10 $(ARGS)

.PHONY: lint
lint: env ## check style, formatting and types
	@"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	"$(PY)" -m mypy

.PHONY: format
format: env ## fix style and formatting
	@"$(PY)" -m ruff check --fix .
	"$(PY)" -m ruff format .

.PHONY: clean
clean: ## delete scratch folders and caches (but not .venv, data, checkpoints or the state that runs resume from)
	@rm -rf build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path "./$(VENV)" -prune -o -name __pycache__ -prune -exec rm -rf {} +

# --- called by other targets ---

.PHONY: unlock
unlock: env ## clear locks that a killed DVC left in .dvc/tmp
	@"$(PY)" tools/dvc_locks.py

# DVC cannot track a folder of pictures as a dependency, so targets that run DVC first check whether it has changed.
.PHONY: fresh
fresh: env ## check params, and prepare a changed folder of pictures anew
	@"$(PY)" stages/check.py --renew

# Any target without a rule.
.DEFAULT:
	$(error there is no target '$@'; `make` alone lists those there are)
