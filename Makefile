# make            build/vmsnapfs
# make check      what scripts/test runs, without setting anything up
# make bench      what scripts/bench runs
# make install    to DESTDIR PREFIX
# make fuzz       libFuzzer's targets, by clang, into build-fuzz/
# make SAN=address,undefined  or  SAN=thread   into build-SAN/
ifeq ($(origin CC),default)
CC := gcc
endif
PREFIX ?= /usr/local
VERSION := 0.1
SAN ?=
BUILD ?= build$(if $(SAN),-$(firstword $(subst $(comma), ,$(SAN))))
comma := ,
# make V=1 shows the commands
ifneq ($(V),1)
Q = @echo '  $(@:$(BUILD)/%=%)';
endif

PKGS := fuse3 libxml-2.0 uuid zlib libzstd libdeflate
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS))
LIB_PKGS := libxml-2.0 uuid zlib libzstd libdeflate
WARN := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wformat=2 -Wundef -Wpointer-arith
OPT ?= -O2 -g
CPPFLAGS += -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DFUSE_USE_VERSION=314 -DVMSNAPFS_VERSION='"$(VERSION)"' -Ilib -I. $(PKG_CFLAGS)
ALL_CFLAGS = -std=gnu11 $(WARN) $(OPT) -pthread -fno-strict-aliasing $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer) $(CFLAGS)
ALL_LDFLAGS = -pthread $(if $(SAN),-fsanitize=$(SAN)) $(LDFLAGS)

LIB_SRC := $(sort $(wildcard lib/*/*.c))
FS_SRC := $(sort $(wildcard fs/*.c))
TOOL_SRC := $(sort $(wildcard tests/tools/*.c))
BENCH_SRC := $(sort $(wildcard tests/bench/*.c))
UNIT_SRC := $(sort $(wildcard tests/unit/*.c))
FAULT_SRC := $(sort $(wildcard tests/fault/*.c))
FAULT_COMMON_SRC := $(sort $(wildcard tests/fault/common/*.c))
FUZZ_SRC := $(sort $(wildcard tests/fuzz/*.c))
FUZZ_COMMON_SRC := $(sort $(wildcard tests/fuzz/common/*.c))
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/%.o)
FS_OBJ := $(FS_SRC:%.c=$(BUILD)/%.o)
LIB := $(BUILD)/libvmsnapfs.a
FAULT_LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/fault-lib/%.o)
FAULT_LIB := $(BUILD)/fault-lib/libvmsnapfs.a
TOOLS := $(TOOL_SRC:tests/tools/%.c=$(BUILD)/tools/%)
BENCHES := $(BENCH_SRC:tests/bench/%.c=$(BUILD)/bench/%)
UNITS := $(UNIT_SRC:tests/unit/%.c=$(BUILD)/unit/%)
FAULTS := $(FAULT_SRC:tests/fault/%.c=$(BUILD)/fault/%)
FAULT_COMMON := $(FAULT_COMMON_SRC:%.c=$(BUILD)/%.o)
FUZZERS := $(FUZZ_SRC:tests/fuzz/%.c=build-fuzz/fuzz/%)
FUZZ_COMMON := build-fuzz/libfuzz.a

.PHONY: all lib tests bench fuzz fuzzers check clean install uninstall format
all: $(BUILD)/vmsnapfs
lib: $(LIB)
tests: $(TOOLS) $(UNITS) $(FAULTS) $(BENCHES)
bench: all $(BENCHES) $(BUILD)/tools/makehosts $(BUILD)/tools/stamper

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

$(LIB): $(LIB_OBJ)
	@rm -f $@
	$(Q)$(AR) rcs $@ $^

$(BUILD)/vmsnapfs: $(FS_OBJ) $(LIB)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $(FS_OBJ) $(LIB) $(shell pkg-config --libs $(PKGS))

$(BUILD)/tools/slowfs: LIB_PKGS += fuse3

$(BUILD)/tools/%: $(BUILD)/tests/tools/%.o $(LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $< $(LIB) $(shell pkg-config --libs $(LIB_PKGS))

$(BUILD)/bench/%: $(BUILD)/tests/bench/%.o
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $< $(shell pkg-config --libs fuse3)

# Their own idea of what a write is: see tests/unit/powercut.h.
$(BUILD)/unit/block_powercut $(BUILD)/unit/block_mergecut: LDFLAGS += -Wl,--wrap=file_write,--wrap=file_sync,--wrap=fallocate64,--wrap=ftruncate64

$(BUILD)/unit/%: $(BUILD)/tests/unit/%.o $(LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $< $(LIB) $(shell pkg-config --libs $(LIB_PKGS))

# They name their steps by who called: all callers must be on the stack.
$(FAULT_LIB_OBJ) $(BUILD)/tests/fault/%.o: ALL_CFLAGS += -fno-optimize-sibling-calls
$(BUILD)/fault-lib/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

$(FAULT_LIB): $(FAULT_LIB_OBJ)
	@rm -f $@
	$(Q)$(AR) rcs $@ $^

# The calls that change what a disk holds: tests/fault/common/disk.h says what becomes of them.
FAULT_WRAPS := pread64 pwrite64 fdatasync fsync fallocate64 ftruncate64 openat64 open64 mkdir mkdirat renameat renameat2 linkat unlink unlinkat \
	symlinkat ioctl copy_file_range sync_file_range clock_gettime
$(BUILD)/fault/%: $(BUILD)/tests/fault/%.o $(FAULT_COMMON) $(FAULT_LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) $(FAULT_WRAPS:%=-Wl,--wrap=%) -o $@ $< $(FAULT_COMMON) $(FAULT_LIB) $(shell pkg-config --libs $(LIB_PKGS))

fuzz:
	$(MAKE) CC=clang BUILD=build-fuzz SAN=address,undefined CFLAGS='$(CFLAGS) -fsanitize=fuzzer-no-link -fno-sanitize-recover=undefined' fuzzers
fuzzers: $(FUZZERS)
# What the library reads, writes and opens: tests/fuzz/common/fuzz.h.
FUZZ_WRAPS := pread64 pwrite64 openat64 open64 readlink syscall
# What is looked for are new ways through the library, not through its judges.
build-fuzz/tests/fuzz/%.o: override CFLAGS := $(filter-out -fsanitize=fuzzer-no-link,$(CFLAGS))
$(FUZZ_COMMON): $(FUZZ_COMMON_SRC:%.c=build-fuzz/%.o)
	@rm -f $@
	$(Q)$(AR) rcs $@ $^
build-fuzz/fuzz/%: build-fuzz/tests/fuzz/%.o $(FUZZ_COMMON) $(LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -fsanitize=fuzzer $(FUZZ_WRAPS:%=-Wl,--wrap=%) -o $@ $< $(FUZZ_COMMON) $(LIB) $(shell pkg-config --libs $(LIB_PKGS))

check: all tests
	scripts/test --no-setup

clean:
	rm -rf build build-*

install: all
	install -D -m 755 $(BUILD)/vmsnapfs $(DESTDIR)$(PREFIX)/bin/vmsnapfs
	install -D -m 644 scripts/vmsnapfs.8 $(DESTDIR)$(PREFIX)/share/man/man8/vmsnapfs.8
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's,@BINDIR@,$(PREFIX)/bin,' scripts/vmsnapfs@.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/vmsnapfs@.service

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/vmsnapfs $(DESTDIR)$(PREFIX)/share/man/man8/vmsnapfs.8 \
		$(DESTDIR)$(PREFIX)/lib/systemd/system/vmsnapfs@.service

format:
	clang-format -i lib/*/*.[ch] fs/*.[ch] tests/*/*.[ch]

.SECONDARY:
-include $(LIB_OBJ:.o=.d) $(FAULT_LIB_OBJ:.o=.d) $(FS_OBJ:.o=.d) $(wildcard $(BUILD)/tests/*/*.d $(BUILD)/tests/*/*/*.d)
