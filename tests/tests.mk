# Targets that set up what they need and run things. Included by the top Makefile.

test:
	@tests/setup.sh test
	@$(MAKE) --no-print-directory all tests-bin
	@tests/run.sh $(O)

demo:
	@tests/setup.sh build
	@$(MAKE) --no-print-directory all
	@examples/demo/run.sh $(O)

# Micro-benchmarks of single kernels; they see the insides like tests do.
BENCH_PROGRAMS := $(patsubst tests/%.c,$(O)/tests/%,$(wildcard tests/bench/bench_*.c))
bench-programs: $(BENCH_PROGRAMS)
.PHONY: bench-programs

bench:
	@tests/setup.sh bench
	@$(MAKE) --no-print-directory all
	@tests/bench/run.sh $(O)

fuzz:
	@tests/setup.sh fuzz
	@tests/fuzz/run.sh $(O)
