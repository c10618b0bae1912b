# Every step of the workshop is a target. Bare `make` lists them.
PYTHON  ?= python3
VENV    ?= .venv
# How to reach a cluster; what is not set here is the harness's affair.
export KUBECTL NAMESPACE REGISTRY GATEWAY BASE_IMAGE STORE_BASE_IMAGE
# What is typed reaches commands by the environment, as it is: neither make nor a shell reads it.
# N=500 is DARK_LAUNCH_N there. A variable that is empty is as one that is not set.
TYPED   := ANSWER BUNDLE C CALLERS D F FOR HTML IGNORE MAX_FAILURES MAX_P95 MAX_P99_RATIO MESH N PORT PREFIX PROCESSES RATE SERVICE STEP STEPS STEP_TIME T TESTERS TIME URL USERS W WORKERS YES
$(foreach name,$(TYPED),$(eval $(if $(value $(name)),\
  export DARK_LAUNCH_$(name) := $$(value $(name)),unexport $(name) DARK_LAUNCH_$(name))))
HARNESS := $(VENV)/bin/python -m harness
# What `make lint` checks, and of that what `make format` formats.
SOURCES := common customer preference recommendation harness loadtest tests
PROSE   := README.md $(wildcard docs/*.md)
CALLING := --users "$${DARK_LAUNCH_USERS:-50}" --spawn-rate "$${DARK_LAUNCH_RATE:-10}"
LOCUST  := exec env MESH="$${DARK_LAUNCH_MESH:-local}" $(VENV)/bin/python -m locust --locustfile loadtest/locustfile.py \
  $(CALLING) $(if $(PROCESSES),--processes "$$DARK_LAUNCH_PROCESSES" --master-bind-host 127.0.0.1)
# Before Locust complains about an option that nobody typed.
define numbers
@for name in USERS RATE PROCESSES WORKERS TIME; do value=$$(printenv "DARK_LAUNCH_$$name"); \
  case "$$name=$$value" in \
    TIME=*[!0-9hms]*) kind='a time such as 30s or 1h30m';; [!T]*=*[!0-9.-]*) kind='a number';; *) continue;; \
  esac; \
  echo "Error: $$name=$$value: '$$value' is not $$kind" >&2; exit 2; done
endef

.DEFAULT_GOAL := help
# The harness's own commands. Most of them find what they take in the environment.
COMMANDS := demo next check step exercise up down status apply delete curl verify watch live release bail-out doctor \
  trace logs stop start deploy undeploy rooms rooms-down url dashboard
.PHONY: $(COMMANDS) help load load-ui soak bench install bundle test lint format lock clean

help:
	@awk 'BEGIN {FS = ":.*## "} \
	  /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {line = sprintf("  make %-10s", $$1); count = split($$2, words, " "); \
	    for (i = 1; i <= count; i++) { \
	      if (length(line " " words[i]) > 80) {print line; line = sprintf("%17s", "")} \
	      line = line " " words[i]} \
	    print line}' Makefile
	@echo
	@echo 'MESH=containers runs a step in a Docker engine,'
	@echo 'MESH=cluster on a cluster with Istio.'
	@echo 'SERVICE=, NAMESPACE=, URL= and CALLERS= judge another Service.'

##@ The workshop

demo: ## the whole dark launch, narrated and proven (PORT=8080)
next: ## print what to do next
check: ## say whether a step is done, or what is missing (STEP=3, else where you are; an exercise: ANSWER=)
step: ## catch up: bring the mesh to the state after a step, and prove it (N=5; N=0 starts afresh)
exercise: ## without a recipe: N=1, v2 has a defect, find it; N=2, somebody broke the mirror, mend it

##@ What the steps are made of

up: ## start the mesh (PORT=8080)
down: ## stop it and leave nothing behind
status: ## show pods, ports and applied routes
apply: ## apply a manifest: F=istio/mirror.yaml
delete: ## delete a manifest's objects: F=istio/mirror.yaml
curl: ## make one call and print the reply
verify: ## send traffic and judge every request (N=500 requests, C=8 callers, HTML=report.html to keep it)
watch: ## send nothing and judge the traffic that flows (FOR=60s, else until Ctrl-C)
live: ## show it all on a page for the room, with the states as buttons
release: ## from dark to everybody, step by step, on the traffic that flows, or on N= requests (STEPS='dark testers 1% 10% 50% 100%')
bail-out: ## back to v1 at once, whatever is applied
doctor: ## say why nothing arrives at v2, or why nothing is proven
trace: ## print one request's story: T=a ticket, or a request id
logs: ## print what a workload and its sidecar logged (W=recommendation-v2)
stop: ## scale a workload to 0 (W=recommendation-v2)
start: ## scale it back to 1 (W=recommendation-v2)

##@ On a cluster (then MESH=cluster for the steps above)

deploy: ## bring everything to the cluster of kubectl's context (NAMESPACE=tutorial, GATEWAY=own, REGISTRY=, YES=1)
undeploy: ## remove exactly what deploy made
rooms: ## for a trainer: a namespace and a kubeconfig for each seat (N=40, PREFIX=seat, REGISTRY=, FOR=24h)
rooms-down: ## remove the rooms with all that is in them (PREFIX=seat)
url: ## print how callers reach it
dashboard: ## open an addon of Istio's: D=kiali, grafana, jaeger or prometheus

# What a command cannot do without: $(call needs,variable,question,example).
needs = $(if $(value $1),,echo '$2? For example: make $@ $1=$3'; exit 2;)
required =
step:         required = $(call needs,N,To which step,5)
exercise:     required = $(call needs,N,Which exercise,2)
rooms:        required = $(call needs,N,How many,40)
apply delete: required = $(call needs,F,Which manifest,istio/mirror.yaml)
trace:        required = $(call needs,T,Which request,dark-launch/6e3a99a3/42)
argument =
apply delete:    argument = -- "$$DARK_LAUNCH_F"
trace:           argument = -- "$$DARK_LAUNCH_T"
logs stop start: argument = -- "$${DARK_LAUNCH_W:-recommendation-v2}"

$(COMMANDS): $(VENV)/harness
	@$(required) $(HARNESS) $@ $(argument)

##@ Load

load: $(VENV)/load ## load the mesh, judge every request (USERS=50, RATE=10 more each second, TIME=30s, PROCESSES=2, or WORKERS=2 in a cluster)
	$(numbers)
ifeq ($(MESH),cluster)
	@$(VENV)/bin/python -m loadtest.job $(CALLING) --run-time "$${DARK_LAUNCH_TIME:-30s}" --workers "$${DARK_LAUNCH_WORKERS:-1}"
else
	@$(LOCUST) --headless --run-time "$${DARK_LAUNCH_TIME:-30s}" --html .load/report.html --csv .load/requests
endif

load-ui: $(VENV)/load ## the same on a web page of Locust's, with the proof live (USERS=50, RATE=10, PROCESSES=2)
	$(numbers)
	@$(LOCUST) --web-host 127.0.0.1

soak: $(VENV)/load ## load the local mesh for long: do memory and open files stay flat? (USERS=50, TIME=30m)
	$(numbers)
	@$(VENV)/bin/python -m loadtest.soak --users "$${DARK_LAUNCH_USERS:-50}" --run-time "$${DARK_LAUNCH_TIME:-30m}"

bench: $(VENV)/load ## measure what mirror, sidecars and proof cost, in ten minutes
	@$(VENV)/bin/python -m loadtest.bench

##@ A room without network

install: ## install all that the steps need (BUNDLE=dark-launch-bundle.tar.gz: from that alone)
	$(if $(value BUNDLE),@$(unpack); [ ! -e $(VENV)/pyvenv.cfg ] || rm -rf $(VENV))
	@$(MAKE) --no-print-directory $(VENV)/load

bundle: $(VENV)/harness ## make that one archive, where there is network: wheels, lock files, images (BUNDLE=)
	@$(HARNESS) bundle

##@ The workshop itself

test: lint ## run all checks and tests (MESH=cluster: the end-to-end tests, on a cluster)
	@$(VENV)/bin/python -m pytest $(if $(value MESH),--mesh "$$DARK_LAUNCH_MESH") \
	  --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/dev ## check format, style, types and prose
	@$(VENV)/bin/ruff format --check --quiet $(SOURCES) || { echo 'Run: make format'; exit 1; }
	@$(VENV)/bin/ruff check --quiet $(SOURCES)
	@$(VENV)/bin/python -m mypy
	@$(VENV)/bin/codespell --dictionary - --dictionary docs/plain-words.txt $(PROSE)
	@! LC_ALL=C.UTF-8 grep -nE '^[^|].{120}' $(PROSE) || { echo 'Lines of prose have 120 columns at most.'; exit 1; }

format: $(VENV)/dev ## format the sources
	@$(VENV)/bin/ruff format $(SOURCES)
	@$(VENV)/bin/ruff check --fix --quiet $(SOURCES)

lock: $(VENV)/dev ## renew requirements/*.txt from pyproject.toml
	@for group in dev harness services envoy loadtest; do \
	  $(VENV)/bin/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
	    --custom-compile-command 'make lock' --no-emit-index-url --no-emit-find-links \
	    $$([ $$group = dev ] || echo --constraints requirements/dev.txt) \
	    $$(case $$group in dev | harness) echo pyproject.toml;; esac) \
	    --group $$group --output-file requirements/$$group.txt || exit 1; \
	done

clean: ## stop the mesh and remove all that was made here, .venv too
	@if [ -x $(VENV)/bin/python ]; then $(HARNESS) down --mesh local; fi
	@rm -rf $(VENV) .bundle .bundle.new .mesh .load .rooms .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A bundle that is damaged, or does not fit, leaves what is installed as it is.
define unpack
[ -r "$$DARK_LAUNCH_BUNDLE" ] || \
  { echo "There is no file $$DARK_LAUNCH_BUNDLE: write its whole path, without ~" >&2; exit 1; }; \
trap 'rm -rf "$(CURDIR)/.bundle.new"' EXIT; rm -rf .bundle.new; mkdir .bundle.new; \
tar -xf "$$DARK_LAUNCH_BUNDLE" -C .bundle.new 2>/dev/null && cd .bundle.new && \
$$(command -v sha256sum || echo shasum -a 256) -c SHA256SUMS >/dev/null 2>&1 || \
  { echo "$$DARK_LAUNCH_BUNDLE is damaged, or no bundle: copy it again" >&2; exit 1; }; \
for lock in requirements/*; do cmp -s "$$lock" "../$$lock" || \
  { echo "The bundle does not fit this clone: its $$lock differs. Take the clone that it was made from." >&2; \
    exit 1; }; done; \
commit=$$(cat COMMIT); [ -z "$$commit" ] || [ "$$commit" = "$$(git rev-parse HEAD 2>/dev/null)" ] || \
  echo 'The bundle is of another commit: images that differ will be built, which needs network.'; \
cd .. && rm -rf .bundle && mv .bundle.new .bundle
endef

# What stands here is installed once; it is installed again when its lock file changes.
# From a bundle, if one fits; with uv, which is faster, if it is installed.
BUNDLED = $(if $(shell cmp -s $< .bundle/$< && echo yes),--no-index --find-links .bundle/wheels)
UV      := $(shell command -v uv)
INSTALL = $(if $(UV),$(UV) pip install --python $(VENV)/bin/python,$(VENV)/bin/python -m pip --disable-pip-version-check install) \
  --quiet --require-hashes

$(VENV)/harness: requirements/harness.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed. If you have one: make PYTHON=python3.12 ...'; exit 1; }
	@echo 'Installing into $(VENV)$(if $(BUNDLED),.,: about 50 MB to download, once.)'
	@$(if $(UV),$(UV) venv --quiet --allow-existing $(if $(BUNDLED),,--seed) --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV),$(PYTHON) -m venv $(VENV)) || { rm -rf $(VENV); \
	  echo 'No virtual environment$(if $(UV),: see above what uv says.,: on Debian and Ubuntu, install the package python3-venv.)'; exit 1; }
	@$(INSTALL) $(BUNDLED) -r $<
	@touch $@

$(VENV)/load: requirements/loadtest.txt $(VENV)/harness
	@echo 'Installing Locust into $(VENV)$(if $(BUNDLED),.,: about 7 MB to download, once.)'
	@$(INSTALL) $(BUNDLED) -r $<
	@touch $@

$(VENV)/dev: requirements/dev.txt $(VENV)/harness
	@echo 'Installing the tools for tests into $(VENV): about 110 MB to download, once.'
	@$(INSTALL) -r $<
	@touch $(VENV)/load $@
