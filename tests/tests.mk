# Targets that set up what they need and run things. Included by the top Makefile.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

test:
	@tests/setup.sh test
	@$(MAKE) --no-print-directory -j$(JOBS) all tests-bin $(if $(SANITIZE),,cuda cudasim simcheck)
	@tests/run.sh $(O)

demo:
	@tests/setup.sh build
	@$(MAKE) --no-print-directory -j$(JOBS) all
	@examples/demo/run.sh $(O)

# farsim is a backend in a file of its own: it and its tests see installed headers and no others, and it links nothing of
# the library.
FARSIM := $(O)/tests/fakes/libdartquant-farsim.so
INSTALLED := $(O)/tests/installed
$(INSTALLED)/usr/include/dartquant.h: $(wildcard include/*.h include/dartquant/*.h)
	@rm -rf $(INSTALLED)
	@$(MAKE) --no-print-directory -s install-headers PREFIX=/usr DESTDIR=$(INSTALLED)

$(FARSIM): $(wildcard tests/fakes/farsim/*.[ch]) $(INSTALLED)/usr/include/dartquant.h
	@mkdir -p $(@D)
	$(CC) -I$(INSTALLED)/usr/include -D_GNU_SOURCE -std=c11 -ffp-contract=off $(WARN) -fPIC -fvisibility=hidden $(SANFLAGS) \
	  $(CFLAGS) -shared $(if $(SANITIZE),,-Wl,-z,defs) $(LDFLAGS) $(filter %.c,$^) -o $@ -lm -lpthread

FAKES_SUPPORT := $(foreach name,farsim_jobs host refusing_heap,tests/support/$(name).c)
$(O)/tests/fakes/%: tests/fakes/%.c $(FAKES_SUPPORT) $(FAKES_SUPPORT:.c=.h) tests/support/ok.h $(FARSIM) $(SHARED)
	$(CC) -I$(INSTALLED)/usr/include -Itests/support -D_GNU_SOURCE -std=c11 $(WARN) $(SANFLAGS) $(CFLAGS) $(LDFLAGS) \
	  $< $(FAKES_SUPPORT) -o $@ \
	  -L$(O) -ldartquant -lcmocka -lm -ldl -lpthread -Wl,-rpath,$(abspath $(O))

# Whole jobs on a card, or on the simulated one.
$(O)/tests/cuda/test_%: tests/cuda/test_%.c $(wildcard tests/cuda/*.h) $(INSTALLED)/usr/include/dartquant.h $(SHARED)
	@mkdir -p $(@D)
	$(CC) -I$(INSTALLED)/usr/include -D_GNU_SOURCE -std=c11 $(WARN) $(SANFLAGS) $(CFLAGS) $(LDFLAGS) $< -o $@ \
	  -L$(O) -ldartquant -lcmocka -lm -ldl -lpthread -Wl,-rpath,$(abspath $(O))

$(filter $(O)/tests/conformance/%,$(TESTS)): | $(FARSIM)

# A backend of somebody else against the reference, op by op: make conformance BACKEND=/abs/libdartquant-x.so[:options]
conformance: $(filter $(O)/tests/conformance/%,$(TESTS))
	@test -n "$(BACKEND)" || { echo 'usage: make conformance BACKEND=NAME|/abs/path.so[:options]'; exit 2; }
	@for t in $^; do echo "== $$t"; DQ_TEST_BACKEND='$(BACKEND)' $$t || exit 1; done
.PHONY: conformance

# The CUDA backend on a real card: all checks, figures beside rooflines and peers, compute-sanitizer. Each takes less than nine
# minutes and no network. KIT=FOLDER: with the programs that `make cuda-kit` put there, nothing is built.
KIT ?=
CUDA_AT := $(or $(KIT),$(O))
CUDA_PROGRAMS := $(filter $(O)/tests/conformance/% $(O)/tests/cuda/test_card,$(TESTS)) $(O)/tests/cuda/bench_ops $(O)/tests/cuda/bench_jobs
CUDA_NEEDS := $(if $(KIT),,cuda all $(CUDA_PROGRAMS))
cuda-test: $(CUDA_NEEDS)
	@bash tests/cuda/card.sh test $(CUDA_AT) "$(JSON)" $(TEST_FLAGS)
cuda-bench: $(CUDA_NEEDS)
	@BACKEND=$(BACKEND) bash tests/cuda/card.sh bench $(CUDA_AT) "$(JSON)" $(BENCH_FLAGS)
cuda-sanitize: $(CUDA_NEEDS)
	@bash tests/cuda/card.sh sanitize $(CUDA_AT) "$(JSON)" $(SANITIZE_FLAGS)
cuda-kit: cuda all $(CUDA_PROGRAMS)
	@bash tests/cuda/kit.sh $(O) $(or $(KIT),$(O)/cuda-kit)
.PHONY: cuda-test cuda-bench cuda-sanitize cuda-kit

# The binary interface against the one of the first release (docs/abi.md); abi-baseline writes that file anew.
abi-check: $(SHARED)
	@tests/setup.sh test
	@for t in symbols entries headers abidiff; do bash tests/abi/run_$$t.sh $(O) || exit 1; done
abi-baseline: $(SHARED)
	@tests/setup.sh test
	@bash tests/abi/run_abidiff.sh $(O) --baseline
.PHONY: abi-check abi-baseline

# Reference pages of the public headers, as HTML.
DOCS ?= $(O)/docs
docs:
	@command -v doxygen >/dev/null || tests/setup.sh test
	@mkdir -p $(DOCS)
	@DQ_VERSION=$(VERSION) DQ_DOCS=$(DOCS) doxygen docs/Doxyfile && echo 'written: $(DOCS)/index.html'
.PHONY: docs

# Micro-benchmarks of single kernels; they see the insides like tests do.
BENCH_PROGRAMS := $(patsubst tests/%.c,$(O)/tests/%,$(wildcard tests/bench/bench_*.c))
bench-programs: $(BENCH_PROGRAMS)
.PHONY: bench-programs

bench:
	@tests/setup.sh bench
	@$(MAKE) --no-print-directory -j$(JOBS) all
	@tests/bench/run.sh $(O)

fuzz:
	@tests/setup.sh fuzz
	@tests/fuzz/run.sh $(O)

# The Python package: one wheel with the library inside, or sources that compile it. Results lie in $(O)/python/dist.
shared: $(SHARED)
wheel: $(SHARED)
	@tests/python/package.sh wheel $(O)
wheel-bundled: $(SHARED)
	@tests/python/package.sh bundled $(O)
sdist:
	@tests/python/package.sh sdist $(O)
.PHONY: shared wheel wheel-bundled sdist
