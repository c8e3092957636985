# Two commands matter: `make up` and `make down`. The work is in scripts/, one file per target.
.DEFAULT_GOAL := help
.PHONY: help up down setup check test test-unit test-conformance test-integration test-security \
	test-acceptance test-vm bench fmt images compose-up compose-down lock clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' Makefile

up: ## install what is missing, start the service, run one program in each language
	@scripts/up.sh

down: ## stop the service
	@scripts/down.sh

setup: ## install what the service and the tests need, start nothing
	@scripts/setup.sh --tests

check: ## format, lint, types, imports, documentation
	@scripts/check.sh

test: ## everything: set up, check, all tests
	@scripts/test.sh

test-unit: ## no kernel feature, no network: seconds
	@scripts/test.sh tests/unit

test-conformance: ## what every sandbox backend must do, on this host
	@scripts/test.sh tests/conformance

test-integration: ## several parts together
	@scripts/test.sh tests/integration

test-security: ## hostile programs
	@scripts/test.sh tests/security

test-acceptance: ## the service from outside; programs compared with the bare interpreters
	@scripts/test.sh tests/acceptance

test-vm: ## the sandbox on a booted cgroup v2 host, as root and as an ordinary user
	@tests/vm/run

bench: ## measure the service beside the bare interpreters; ARGS=--help for what else
	@scripts/setup.sh && .venv/bin/python -m benchmarks $(ARGS)

fmt: ## format the code and apply the linter's safe fixes
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

images: ## the docker backend's images, one for each language; ARGS are for docker build
	@scripts/images.sh $(ARGS)

PROFILE ?= native
compose-up: ## the service in containers; PROFILE=native or docker, API_KEYS=token:label
	@scripts/compose.sh up $(PROFILE)

compose-down: ## stop what compose-up started; keeps its data
	@scripts/compose.sh down

lock: ## resolve the lock files anew
	@scripts/lock.sh

clean: ## remove everything that was installed or built here; keeps .data
	@scripts/down.sh
	rm -rf .venv .runtime .cache build dist src/code_executor/sandbox/_build
