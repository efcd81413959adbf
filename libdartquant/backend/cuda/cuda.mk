# The CUDA backend: a plug-in of its own. `make cuda` builds it when nvcc is found and says so when not; the library
# neither links nor needs it. SPDX-License-Identifier: Apache-2.0
NVCC ?= $(shell command -v nvcc 2>/dev/null)
CUDA_SRC := $(wildcard libdartquant/backend/cuda/*.cu)
CUDA_HEADERS := $(wildcard libdartquant/backend/cuda/*.h) include/dartquant/backend.h
CUDA_OBJ := $(CUDA_SRC:%.cu=$(O)/obj/%.o)
# Beside the library, where a backend is looked for by its bare name.
CUDA_PLUGIN := $(O)/dartquant/backends-1/libdartquant-cuda.so
# Machine code for the cards of today, and PTX for what comes later. CUDA_ARCH=90 makes a build for one card.
ifdef CUDA_ARCH
CUDA_GENCODE := -gencode arch=compute_$(CUDA_ARCH),code=sm_$(CUDA_ARCH)
else
CUDA_GENCODE := -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 \
  -gencode arch=compute_100,code=sm_100 -gencode arch=compute_100,code=compute_100
endif
NVCCFLAGS ?= -O3
# No contraction: products and sums round as written; fmaf is used where one rounding is wanted.
NVCCFLAGS_ALL = -std=c++17 -fmad=false -Iinclude -Ilibdartquant $(CUDA_GENCODE) -lineinfo \
  -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror $(NVCCFLAGS)

$(O)/obj/libdartquant/backend/cuda/%.o: libdartquant/backend/cuda/%.cu $(CUDA_HEADERS)
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS_ALL) -Xptxas -v -c $< -o $@ 2> $(@:.o=.usage) || { cat $(@:.o=.usage); rm -f $@; exit 1; }

$(CUDA_PLUGIN): $(CUDA_OBJ)
	@mkdir -p $(@D)
	$(NVCC) -shared $(CUDA_GENCODE) -cudart static -o $@ $^ -lcublas -lcusolver -Xlinker -z,defs \
	  -Xlinker -rpath,$(abspath $(dir $(NVCC))../lib64)

ifneq ($(NVCC),)
cuda: $(CUDA_PLUGIN)
	@echo 'built: $(CUDA_PLUGIN); use it with --backend cuda'
else
cuda:
	@echo 'skipped: nvcc is not on the PATH, so the CUDA backend is not built (everything else works without it)'
endif
.PHONY: cuda

# ---- the same sources on a made-up card (tests/fakes/cudasim), for machines without one ----
CUDASIM := $(O)/tests/fakes/libdartquant-cudasim.so
CUDASIM_SRC := $(wildcard tests/fakes/cudasim/*.cc)
CUDASIM_OBJ := $(CUDA_SRC:%.cu=$(O)/obj/cudasim/%.o) \
  $(patsubst %.cc,$(O)/obj/cudasim/%.o,$(filter-out tests/fakes/cudasim/check_%,$(CUDASIM_SRC)))
CUDASIM_FLAGS := -std=c++17 -O2 -g -ffp-contract=off -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unknown-pragmas \
  -Wno-unused-parameter -Itests/fakes/cudasim/include -Iinclude -Ilibdartquant

$(O)/obj/cudasim/%.o: %.cu $(CUDA_HEADERS) $(wildcard tests/fakes/cudasim/include/*.h)
	@mkdir -p $(@D)
	$(CXX) -x c++ $(CUDASIM_FLAGS) -c $< -o $@
$(O)/obj/cudasim/%.o: %.cc $(wildcard tests/fakes/cudasim/*.h tests/fakes/cudasim/include/*.h)
	@mkdir -p $(@D)
	$(CXX) $(CUDASIM_FLAGS) -c $< -o $@
$(CUDASIM): $(CUDASIM_OBJ)
	@mkdir -p $(@D)
	$(CXX) -shared -o $@ $^ -Wl,-z,defs $(shell pkg-config --libs openblas) -lpthread
cudasim: $(CUDASIM)
.PHONY: cudasim

# Once more with hooks before every load and store, and a checker behind them: what compute-sanitizer would find on a card.
# Less optimization, so that accesses stay those of the source. By g++: clang++ does not check where whole structs are copied from.
SIMCHECK_CXX ?= g++
SIMCHECK := $(O)/tests/fakes/libdartquant-simcheck.so
SIMCHECK_SIM := $(patsubst %.cc,$(O)/obj/simcheck/%.o,$(CUDASIM_SRC))
SIMCHECK_OBJ := $(CUDA_SRC:%.cu=$(O)/obj/simcheck/%.o) $(SIMCHECK_SIM)
SIMCHECK_HOOKS := -O1 -fno-omit-frame-pointer -fsanitize=thread,alignment,bounds
$(O)/obj/simcheck/%.o: %.cu $(CUDA_HEADERS) $(wildcard tests/fakes/cudasim/include/*.h)
	@mkdir -p $(@D)
	$(SIMCHECK_CXX) -x c++ $(CUDASIM_FLAGS) -DCUDASIM_CHECK $(SIMCHECK_HOOKS) -c $< -o $@
$(O)/obj/simcheck/%.o: %.cc $(wildcard tests/fakes/cudasim/*.h tests/fakes/cudasim/include/*.h)
	@mkdir -p $(@D)
	$(SIMCHECK_CXX) $(CUDASIM_FLAGS) -DCUDASIM_CHECK -c $< -o $@
$(SIMCHECK): $(SIMCHECK_OBJ)
	@mkdir -p $(@D)
	$(SIMCHECK_CXX) -shared -o $@ $^ -Wl,-z,defs $(shell pkg-config --libs openblas) -lpthread -ldl
# Kernels that the checker must find wrong.
SIMCHECK_BROKEN := $(O)/tests/fakes/simcheck-broken
$(SIMCHECK_BROKEN): $(O)/obj/simcheck/tests/fakes/cudasim/selftest/broken.o $(SIMCHECK_SIM)
	@mkdir -p $(@D)
	$(SIMCHECK_CXX) -o $@ $^ $(shell pkg-config --libs openblas) -lpthread -ldl
simcheck: $(SIMCHECK) $(SIMCHECK_BROKEN)
.PHONY: simcheck
