# make run     set up what is missing, build, fetch the models, serve on 127.0.0.1:8080
# make test    set up what is missing, then formatting, lints and every test
# make bench   set up what is missing, then the benchmarks, each beside its rivals
#              (BENCH="--quick" for a look)
# make models  fetch the models into the user's cache
# make sanitize  the kernels' tests under AddressSanitizer, in target/sanitize: everything is
#              built once more for it, so it is no part of `make test`
#
# run and test share one profile (release) and one target folder: nothing is built twice.

CARGO ?= cargo
HOMEOSTAT = $(or $(CARGO_TARGET_DIR),target)/release/homeostat
PYTEST = target/venv/bin/python -m pytest

.PHONY: run test bench sanitize models build setup fmt lint unit e2e clean

run: models
	$(HOMEOSTAT) serve

setup:
	@.ci/setup build

# The selection matters: cargo picks the features of shared packages by what is built
# together, and with this one `make test` finds everything as `make run` has left it.
build: setup
	$(CARGO) build --release --locked --workspace --exclude homeostat-tests

models: build
	$(HOMEOSTAT) models pull

test: fmt lint unit e2e
	@echo "make test: all passed"

fmt:
	$(CARGO) fmt --all --check

lint: setup
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings

unit: models
	$(CARGO) test --release --locked --workspace

e2e: models
	@.ci/setup test
	$(PYTEST) tests/e2e -q

bench: models
	@.ci/setup test
	$(CARGO) bench --locked -p homeostat-tests --bench hook_cost
	@.ci/setup bench
	$(CARGO) build --release --locked --workspace --exclude homeostat-tests --examples
	target/bench-venv/bin/python tests/bench/run.py $(BENCH)

# The sanitizer is in the stable toolchain, its flag is not stable. With a target named,
# build scripts and macros, which run in the compiler, are built without it. A test asks for more
# memory than there is, and is to be refused as the system refuses it.
sanitize: setup
	ASAN_OPTIONS=allocator_may_return_null=1 RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$(or $(CARGO_TARGET_DIR),target)/sanitize \
		$(CARGO) test --release --locked --target $(shell rustc -vV | sed -n 's/^host: //p') \
		-p homeostat-engine --lib kernels::

clean:
	$(CARGO) clean
