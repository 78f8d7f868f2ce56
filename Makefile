# Each target is a command of dev.py, which sets up .venv/ on first use: `make test ARGS="-k settings"`.
PYTHON ?= python3
ARGS ?=

.PHONY: demo demo-redis test lint bench bench-quality clean

demo demo-redis test lint bench bench-quality clean:
	@$(PYTHON) dev.py $@ $(ARGS)
