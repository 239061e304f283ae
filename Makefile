# fnat: `make help` lists the verbs. Everything lives in .venv; only missing Debian packages are installed outside it.

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
ARGS    ?=
SECONDS ?= 60
SANITIZE := -fsanitize=address,undefined -fno-sanitize=alignment -fno-sanitize-recover=all -fno-omit-frame-pointer

BUILD_PACKAGES := python3 python3-venv python3-dev gcc libc6-dev clang libbpf-dev pkg-config
RUN_PACKAGES   := nginx-light curl wrk iproute2 ethtool iputils-ping nftables procps
TEST_PACKAGES  := haproxy systemd openssl openssh-client openssh-server dnsmasq-base bind9-dnsutils iperf3 iputils-tracepath traceroute keepalived
CHECK_PACKAGES := clang-format
FUZZ_RUNTIME    = libclang-rt-$$(clang -dumpversion | cut -d. -f1)-dev
BENCH_PACKAGES := haproxy nftables util-linux clang libbpf-dev
SOURCES        := $(shell find cext fnat -name '*.[ch]' -o -name '*.py' -o -name '*.pyx' -o -name '*.def') setup.py pyproject.toml
C_FILES        := $(shell find cext tests -name '*.[ch]' ! -path '*/bpf/*')

.PHONY: demo test bench check fuzz debug build wheel bundle deb test-deb clean help
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 10

demo: build ## client, balancer and two nginx in namespaces, real traffic, live table (ARGS=--once: prove and end)
	@$(call need,$(RUN_PACKAGES))
	@$(BIN)/python tests/netns/demo.py $(ARGS)

test: build ## every test; those with namespaces need root
	@$(call need,$(RUN_PACKAGES) $(TEST_PACKAGES))
	@$(call need,$(FUZZ_RUNTIME))
	$(BIN)/python -m pytest $(ARGS)

bench: build ## fnat beside its peers, to bench/results (ARGS=--quick: three short runs); root for what needs namespaces
	@[ "$$(id -u)" != 0 ] || { $(call need,$(RUN_PACKAGES) $(BENCH_PACKAGES)); }
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(BIN)/pip install -qq --disable-pip-version-check \
		$$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"])')
	$(BIN)/python bench/run.py $(ARGS)

check: $(BIN)/ruff ## ruff, mypy --strict, clang-format, gcc -Wall -Wextra -Werror
	@$(call need,$(CHECK_PACKAGES))
	$(BIN)/ruff check .
	$(BIN)/mypy --strict fnat
	clang-format --dry-run -Werror $(C_FILES)
	gcc -std=gnu11 -D_GNU_SOURCE -O1 -Wall -Wextra -Werror -iquote cext -fsyntax-only $(filter-out %/xdp.c,$(filter cext/%.c,$(C_FILES)))

fuzz: ## libFuzzer with ASan and UBSan, SECONDS=60 of it
	@$(call need,clang)
	@$(call need,$(FUZZ_RUNTIME))
	sh tests/fuzz/run.sh $(SECONDS)

debug: ## the tests without namespaces once more, with ASan, UBSan and assertions in the core
	@$(call need,$(BUILD_PACKAGES))
	@rm -f $(VENV)/installed
	FNAT_CFLAGS="-O1 -UNDEBUG $(SANITIZE)" FNAT_LDFLAGS="$(SANITIZE)" $(MAKE) build
	@rm -f $(VENV)/installed
	ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		$(BIN)/python -m pytest -m "not netns" $(ARGS)

build: $(VENV)/installed ## .venv with fnat in it

$(BIN)/ruff:
	@$(MAKE) build

$(VENV)/installed: $(SOURCES)
	@$(call need,$(BUILD_PACKAGES))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fnat needs Python 3.11 or newer; set PYTHON=" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check 'setuptools>=68' wheel 'cython>=3' cffi
	@echo "building fnat"
	@$(BIN)/pip install -qq --disable-pip-version-check --no-build-isolation -e '.[test]'
	@touch $@

wheel: build ## dist/fnat-*.whl, with what `make build` has compiled and the tests have proven; the target is FNAT_MARCH
	@rm -rf build/wheel dist/fnat-*.whl
	@mkdir -p build/wheel/lib/fnat/drivers
	@cp -p fnat/*.so build/wheel/lib/fnat/
	@cp -p fnat/drivers/*.so build/wheel/lib/fnat/drivers/
	@printf '[build]\nbuild-base = build/wheel\nbuild-lib = build/wheel/lib\n' >build/wheel/setup.cfg
	DIST_EXTRA_CONFIG=build/wheel/setup.cfg $(BIN)/pip wheel -qq --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir dist .

bundle: wheel ## dist/fnat-*-wheels.tar: fnat and all that it needs, for hosts without network and compiler
	@rm -rf dist/wheels dist/fnat-*-wheels.tar
	$(BIN)/pip wheel -qq --disable-pip-version-check --prefer-binary --no-build-isolation --wheel-dir dist/wheels dist/fnat-*.whl
	cd dist && tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@$(SOURCE_DATE_EPOCH) -cf "$$(basename fnat-*.whl .whl)-wheels.tar" wheels

deb: bundle ## dist/fnat_*_amd64.deb for Debian 12, everything inside
	conf/debian/build $(BIN)/python

test-deb: deb ## install, run, update, remove and purge it in a fresh Debian 12 without network (root, debootstrap)
	@$(call need,debootstrap)
	$(BIN)/python -m pytest tests/packaging -m deb $(ARGS)

clean: ## remove everything built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f fnat/_core*.so fnat/_core.c fnat/drivers/*.so fnat/drivers/*.o fnat/drivers/_xdp.c
	find . -name __pycache__ -prune -exec rm -rf {} +

# Install those Debian packages that are missing. A server among them (nginx) is not started on this host.
define need
missing=""; for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
if [ -n "$$missing" ]; then \
	[ "$$(id -u)" = 0 ] || { echo "missing packages:$$missing; run as root, or apt-get install them" >&2; exit 1; }; \
	echo "installing$$missing"; policy=/usr/sbin/policy-rc.d; mine=""; \
	[ -e $$policy ] || { printf '#!/bin/sh\nexit 101\n' >$$policy && chmod +x $$policy && mine=yes; }; \
	export DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes; \
	{ apt-get update -qq && apt-get install -qq -y --no-install-recommends $$missing >/dev/null; }; code=$$?; \
	[ -z "$$mine" ] || rm -f $$policy; \
	[ $$code = 0 ] || { echo "apt-get could not install$$missing" >&2; exit 1; }; \
fi
endef
