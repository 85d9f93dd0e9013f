# `make demo` and `make test` each set up all they need, in .venv.
PYTHON ?= python3
PY := .venv/bin/python
SCNET := .venv/bin/scnet
# Libraries warn of each other.
export PYTHONWARNINGS := ignore::FutureWarning
DEMO_DIR := output/demo-$(shell date +%Y%m%d-%H%M%S)
REQUIREMENTS := requirements.txt setup.py $(wildcard third_party/detectron2/*.py third_party/detectron2/*.toml)

.PHONY: setup demo test docs lint clean evidence evidence-cell

setup: .venv/installed

.venv/installed: $(REQUIREMENTS)
	rm -rf .venv
	$(PYTHON) -m venv .venv
	@$(PY) -B -c "import setup; setup.opencv()"
	.venv/bin/pip install -r requirements.txt
	touch $@

demo: setup
	$(PY) demo/photographs.py $(DEMO_DIR)/photographs
	$(SCNET) demo $(DEMO_DIR)/photographs --model scnet_lite_voc \
		--output $(DEMO_DIR)/labelled_photographs
	$(SCNET) train --config-file ContextScenes/scnet_EfficientNet_Lite0_FPN_160px \
		--output $(DEMO_DIR)
	$(SCNET) demo "$${DETECTRON2_DATASETS:-datasets}/context_scenes/images/test/*[05]0.png" \
		--model $(DEMO_DIR) --output $(DEMO_DIR)/pictures > $(DEMO_DIR)/labels.log
	@echo "log, checkpoints, metrics.json and TensorBoard events: $(DEMO_DIR)"
	@echo "pictures and labels.jsonl of photographs: $(DEMO_DIR)/labelled_photographs"
	@echo "... of generated scenes: $(DEMO_DIR)/pictures"

test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=10 -rfEs

# Tables and plots of docs/results.md and docs/random_weights.md from the stored results; and one
# cell of them run again.
evidence: setup
	$(PY) experiments/evidence.py --overwrite

PLAN ?= experiments/results/from_random_weights/scenes.yaml
CELL ?= context_scenes-scnet-1
evidence-cell: setup
	$(PY) experiments/evidence.py --again $(PLAN) $(CELL)

# Pages of the public names, from their docstrings. A name that cannot be imported is an error.
API := scnet_d2 $(addprefix scnet_d2.,checkpoint config engine evaluation inference outputs \
	report tagging)
docs: setup
	$(PY) -W error::UserWarning -m pdoc --docformat google -o output/api $(API)
	@echo "pages of the public names: output/api/index.html"

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
