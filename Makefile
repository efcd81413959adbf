# libdartquant. `make help` lists the targets.
VERSION := 1.0.0
SOMAJOR := 1

PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
DESTDIR ?=
CC ?= gcc
BUILD ?= build
SANITIZE ?=
OPT ?= -O3
PKGS := openblas jansson libpcre2-8 libutf8proc libzip zlib

comma := ,
ifneq ($(SANITIZE),)
# A sanitized build lives beside the ordinary one.
O := $(BUILD)/sanitize-$(subst $(comma),-,$(SANITIZE))
# object-size together with address makes gcc 12 compute a product of the AVX2 kernels wrong; address finds what it would.
SANFLAGS := -fsanitize=$(SANITIZE) -fno-sanitize=object-size -fno-omit-frame-pointer -fno-sanitize-recover=undefined -g
else
O := $(BUILD)
SANFLAGS :=
endif
CFLAGS ?= $(OPT) -g
WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith $(WERROR)
CPPFLAGS_ALL = -Iinclude -Ilibdartquant -D_GNU_SOURCE -DDQ_VERSION_STRING='"$(VERSION)"' $(shell pkg-config --cflags $(PKGS) 2>/dev/null) $(CPPFLAGS)
# No contraction and no fast-math: results must be the same in every build of the same kernel.
CFLAGS_ALL = -std=c11 -ffp-contract=off -fno-math-errno $(WARN) -fPIC -fvisibility=hidden $(SANFLAGS) $(CFLAGS)
LDLIBS_ALL = $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lm -lpthread -ldl $(LDLIBS)

# ---- what is built -----------------------------------------------------------------------------------------------
LIB_SRC := $(wildcard libdartquant/base/*.c libdartquant/formats/*.c libdartquant/export/*.c libdartquant/backend/*.c libdartquant/backend/ref/*.c \
             libdartquant/backend/cpu/*.c libdartquant/graph/*.c libdartquant/model/*.c libdartquant/rotation/*.c \
             libdartquant/quant/*.c libdartquant/calib/*.c libdartquant/eval/*.c libdartquant/generate/*.c libdartquant/io/*.c libdartquant/text/*.c libdartquant/chat/*.c libdartquant/api/*.c)
LIB_OBJ := $(LIB_SRC:%.c=$(O)/obj/%.o)
CLI_SRC := $(wildcard examples/cli/*.c)
CLI_OBJ := $(CLI_SRC:%.c=$(O)/obj/%.o)
EXAMPLE_SRC := $(wildcard examples/*.c)
EXAMPLES := $(EXAMPLE_SRC:examples/%.c=$(O)/bin/%)
TEST_SRC := $(wildcard tests/unit/test_*.c tests/conformance/test_*.c tests/fault/test_*.c tests/fakes/test_*.c) \
  $(if $(SANITIZE),,$(wildcard tests/cuda/test_*.c))
TESTS := $(TEST_SRC:tests/%.c=$(O)/tests/%)
TEST_HELPER_OBJ := $(patsubst %.c,$(O)/obj/%.o,$(wildcard tests/support/*.c))
TEST_HELPERS := $(O)/tests/libsupport.a

STATIC := $(O)/libdartquant.a
SHARED := $(O)/libdartquant.so.$(VERSION)
SONAME := libdartquant.so.$(SOMAJOR)
CLI := $(if $(CLI_SRC),$(O)/bin/dartquant)

all: $(STATIC) $(SHARED) $(CLI) $(EXAMPLES)

# ISA kernels are compiled with their own flags and entered only after cpuid said yes (backend/cpu/cpuid.c).
ifeq ($(shell uname -m),x86_64)
$(O)/obj/libdartquant/backend/cpu/%_avx2.o: ISA := -mavx2 -mfma -mf16c
$(O)/obj/libdartquant/backend/cpu/%_avx512.o: ISA := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512
$(O)/obj/libdartquant/backend/cpu/%_vnni.o: ISA := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx2 -mfma -mf16c -mprefer-vector-width=512
$(O)/obj/libdartquant/backend/cpu/%_bf16.o: ISA := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mfma
$(O)/obj/libdartquant/backend/cpu/%_amx.o: ISA := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mamx-tile -mamx-bf16 -mfma
endif

$(O)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS_ALL) $(CFLAGS_ALL) $(ISA) -MMD -MP -c $< -o $@

$(STATIC): $(LIB_OBJ)
	@rm -f $@
	$(AR) rcs $@ $^

$(SHARED): $(LIB_OBJ) libdartquant/dartquant.map
	$(CC) -shared $(SANFLAGS) $(LDFLAGS) -Wl,-soname,$(SONAME) -Wl,--version-script=libdartquant/dartquant.map \
	  $(if $(SANITIZE),,-Wl,-z,defs) -o $@ $(LIB_OBJ) $(LDLIBS_ALL)
	ln -sf $(@F) $(O)/$(SONAME)
	ln -sf $(SONAME) $(O)/libdartquant.so

# Programs use only the public header and the shared library.
$(O)/obj/examples/%.o: examples/%.c
	@mkdir -p $(@D)
	$(CC) -Iinclude -D_GNU_SOURCE $(CPPFLAGS) -std=c11 $(WARN) $(SANFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@

$(O)/bin/dartquant: $(CLI_OBJ) $(SHARED)
	@mkdir -p $(@D)
	$(CC) $(SANFLAGS) $(LDFLAGS) -o $@ $(CLI_OBJ) -L$(O) -ldartquant -ljansson -lm -ldl -Wl,-rpath,'$$ORIGIN/..'

$(O)/bin/%: $(O)/obj/examples/%.o $(SHARED)
	@mkdir -p $(@D)
	$(CC) $(SANFLAGS) $(LDFLAGS) -o $@ $< -L$(O) -ldartquant -lm -Wl,-rpath,'$$ORIGIN/..'

# An archive, so that a test links only the helpers it calls.
$(TEST_HELPERS): $(TEST_HELPER_OBJ)
	@mkdir -p $(@D)
	@rm -f $@
	$(AR) rcs $@ $^

# Tests see the library's insides, so they link the archive.
$(O)/tests/%: tests/%.c $(TEST_HELPERS) $(STATIC)
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS_ALL) -Itests/support $(filter-out -fvisibility=hidden -Wmissing-prototypes,$(CFLAGS_ALL)) -MMD -MP -MF $@.d $< $(TEST_HELPERS) $(STATIC) \
	  -o $@ -lcmocka $(LDLIBS_ALL)

-include $(LIB_OBJ:.o=.d) $(CLI_OBJ:.o=.d) $(TESTS:=.d) $(TEST_HELPER_OBJ:.o=.d)

.SECONDARY: $(TEST_HELPER_OBJ)
tests-bin: $(TESTS)

.PHONY: all tests-bin test demo bench fuzz install install-headers uninstall check-format format clean help
include libdartquant/backend/cuda/cuda.mk
include tests/tests.mk

# ---- installation ------------------------------------------------------------------------------------------------
install-headers:
	install -d $(DESTDIR)$(PREFIX)/include/dartquant
	install -m 644 include/dartquant.h $(DESTDIR)$(PREFIX)/include/
	install -m 644 include/dartquant/*.h $(DESTDIR)$(PREFIX)/include/dartquant/

install: all install-headers
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(SHARED) $(DESTDIR)$(LIBDIR)/
	ln -sf $(notdir $(SHARED)) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/libdartquant.so
	install -m 644 $(STATIC) $(DESTDIR)$(LIBDIR)/
	sed -e 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|; s|@VERSION@|$(VERSION)|' libdartquant/dartquant.pc.in \
	  > $(DESTDIR)$(LIBDIR)/pkgconfig/dartquant.pc
	$(CC) $(SANFLAGS) $(LDFLAGS) -o $(DESTDIR)$(PREFIX)/bin/dartquant $(CLI_OBJ) -L$(O) -ldartquant -ljansson -lm -ldl \
	  -Wl,-rpath,'$$ORIGIN/../$(notdir $(LIBDIR))'

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/dartquant $(DESTDIR)$(LIBDIR)/libdartquant.* \
	  $(DESTDIR)$(LIBDIR)/pkgconfig/dartquant.pc $(DESTDIR)$(PREFIX)/include/dartquant.h
	rm -rf $(DESTDIR)$(PREFIX)/include/dartquant

# ---- housekeeping ------------------------------------------------------------------------------------------------
FORMATTED = $(shell git ls-files '*.c' '*.h' '*.cu' '*.cc')
check-format:
	@clang-format --dry-run --Werror $(FORMATTED) && echo 'format: ok'
format:
	clang-format -i $(FORMATTED)

clean:
	rm -rf $(BUILD)

help:
	@echo 'make              build the library, the dartquant program and the examples under build/'
	@echo 'make demo         one command: set up, fetch a small real model, quantize it, print and plot what it cost'
	@echo 'make test         one command: set up and run every test (SANITIZE=address,undefined for a checked build)'
	@echo 'make conformance  BACKEND=/abs/libdartquant-x.so: test your own backend against the reference, op by op'
	@echo 'make abi-check    symbols, headers and types against the committed interface; make abi-baseline writes that anew'
	@echo 'make docs         reference pages of the public headers in build/docs (doxygen)'
	@echo 'make cuda         the CUDA backend as a plug-in, where nvcc is installed (CUDA_ARCH=90 for one card alone)'
	@echo 'make cuda-test    all checks of that backend on a card; make cuda-bench its speed beside rooflines and PyTorch'
	@echo 'make cuda-sanitize  compute-sanitizer over its ops; make cuda-kit  all of these for a machine without our libraries'
	@echo 'make bench        measure against PyTorch, transformers, llama.cpp (sets up a virtual environment)'
	@echo 'make fuzz         run the fuzz targets briefly (needs clang)'
	@echo 'make install      PREFIX=/usr/local DESTDIR= ; make uninstall removes it again'
	@echo 'make wheel        the Python package with the library inside, in build/python/dist ; make sdist its sources'
	@echo 'make wheel-bundled  a wheel that brings the libraries it needs as well (manylinux; Debian or Ubuntu)'
	@echo 'make check-format / make format / make clean'
