# nbdelta
#
#   make                      build everything into $(O)
#   make check                install what is missing, build, run all tests;
#                             T='qcow2-* error' runs the tests of these names
#   make check-peers          run the tests that have QEMU, libnbd and nbdkit as
#                             peers, with the peers of Debian 13, in a tree of
#                             it below $(O); then libnbd's own tests of servers
#                             (needs root); T='?*' runs all tests there
#   make demo                 install what is missing, build, show the main job;
#                             KEEP=DIR leaves its backups there
#   make check-valgrind       unit tests under valgrind (T= as above)
#   make check-locks          clang's thread-safety analysis, as errors
#   make check-headers        every header compiles alone
#   make check-layers         hold what each folder includes and links with
#                             against HACKING.md
#   make lint                 check-layers, clang-format, clang-tidy, cppcheck,
#                             shellcheck
#   make fuzz                 build the fuzzers (clang), run each FUZZ_TIME=60 s;
#                             F='options qmp' runs these
#   make check-iotests IOTESTS=DIR [T="124 055"]
#                             run QEMU's own tests, from a QEMU source tree
#   make stress [SECONDS=60]  eight QMP clients at once send random commands;
#                             hostile backup directories
#   make crash [ROUNDS=200] [SEED=N]
#                             kill the server, and cut its power, again and
#                             again while bitmaps change; kill a prune at
#                             every step; back up a real guest, and kill it;
#                             change qcow2 images of all kinds
#   make faults [SEED=N] [CASE='OPERATION/SHAPE/KIND-K/ERROR...']
#                             have storage fail in each operation that changes
#                             metadata, at each request, and check what is left;
#                             CASE='clear resize' runs these operations
#   make many [IMAGES=500]    back up so many images of Ceph in one run
#   make bench                measure nbdelta beside its peers: a table, and what
#                             goals are met; W='read-* start' measures these
#                             rows, W=list lists all, QUICK=1 only sees that it
#                             works, JSON=FILE keeps all results, PEERS=13 takes
#                             the peers of Debian 13 (needs root); SIZE=4G of
#                             disks, ROUNDS=5
#   make bench-check          the same, and fail when a row misses its goal by
#                             more than the spread; RESULTS=FILE looks at what
#                             JSON= has kept
#   make bench-compare A=REV B=REV
#                             build two revisions, and measure one beside the
#                             other; W= and so on as above
#   make bench-instructions   compare what a request of each hot path costs, in
#                             instructions, with tests/bench/instructions.json;
#                             UPDATE=1 writes that
#   make bench-chart RESULTS='FILE...'
#                             draw tests/bench/chart.svg
#   make packages             install the Debian packages of all of the above
#   make install              DESTDIR=... prefix=/usr/local; moduledir= is where
#                             nbdelta will look for its modules, sysconfdir=
#                             where the units for systemd look for their files,
#                             plugindir= where the plugin goes
#   make uninstall            the same variables: take away what that brought
#   make dist                 the sources, in $(O)/nbdelta-VERSION.tar.gz: the
#                             same commit gives the same bytes
#   make deb                  Debian packages, in $(O)/deb
#   make check-packages       build them in trees of Debian 12 and 13, look at
#                             them, install, use and purge them in fresh trees
#                             (needs root; RELEASES='trixie' takes that one)
#   make check-systemd        install in trees of Debian 12 and 13, and have their
#                             systemd run the units, in namespaces of its own
#                             (needs root; RELEASES= as above)
#   make clean
#
# Variables: V=1 shows commands.  DEBUG=1 turns off optimisation.
# SANITIZE=address,undefined or SANITIZE=thread builds into its own $(O), and so
# does LOCKCHECK=1, with which a wrong order of locks ends the program.
# O=DIR is the output directory.  CC=, CFLAGS=, LDFLAGS= as usual.
# JOBS=N is how many compilers and checks run at once, TESTS=N how many tests
# (twice as many: they wait for storage and for each other).  TEST_TIMEOUT=SECONDS
# goes to the tests.
# Put your own settings into config.mak.  It is read first and never committed.

-include config.mak

VERSION := 0.1.0

prefix        ?= /usr/local
bindir        ?= $(prefix)/bin
libdir        ?= $(prefix)/lib
datadir       ?= $(prefix)/share
mandir        ?= $(datadir)/man
bashcompdir   ?= $(datadir)/bash-completion/completions
zshcompdir    ?= $(datadir)/zsh/site-functions
fishcompdir   ?= $(datadir)/fish/vendor_completions.d
docdir        ?= $(datadir)/doc/nbdelta
# A user's own prefix has its own.
sysconfdir    ?= $(if $(filter-out /usr /usr/local,$(prefix)),$(prefix))/etc
unitdir       ?= $(prefix)/lib/systemd/system
sysusersdir   ?= $(prefix)/lib/sysusers.d
tmpfilesdir   ?= $(prefix)/lib/tmpfiles.d
# Where nbdelta looks for its modules.
moduledir     ?= $(libdir)/nbdelta
# nbdkit looks into one directory, below the prefix that it has itself.
nbdkit_prefix  = $(shell $(PKG_CONFIG) nbdkit --variable=prefix 2>/dev/null)
plugindir     ?= $(if $(filter $(nbdkit_prefix),$(prefix)),$(shell \
    $(PKG_CONFIG) nbdkit --variable=plugindir),$(libdir)/nbdkit/plugins)

PKG_CONFIG ?= pkg-config
INSTALL    ?= install
JOBS       ?= $(shell nproc)
TESTS      ?= $(shell expr $(JOBS) \* 2)
T          ?= *
F          ?= *
FUZZ_TIME  ?= 60

comma := ,
quote := '
hash  := \#
O ?= build$(if $(SANITIZE),-$(subst $(comma),-,$(SANITIZE)))$(if \
    $(LOCKCHECK),-lockcheck)

# A release has what Debian's packages are built with (dpkg-buildflags), of the
# newest Debian that we know.
MACHINE := $(shell $(CC) -dumpmachine 2>/dev/null)
HARDEN := -D_FORTIFY_SOURCE=2 -fstack-protector-strong \
    -fstack-clash-protection -Wformat -Werror=format-security \
    $(if $(filter x86_64-%,$(MACHINE)),-fcf-protection) \
    $(if $(filter aarch64-%,$(MACHINE)),-mbranch-protection=standard)
ifneq ($(SANITIZE)$(DEBUG),)
CFLAGS ?= $(if $(DEBUG),-O0 -g3,-O2 -g)
else
CFLAGS ?= -O2 -g -ffile-prefix-map=$(CURDIR)=. $(HARDEN)
endif
WARN := -Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes \
    -Wpointer-arith -Wwrite-strings -Wformat=2 -Wundef -Wcast-qual -Wdate-time
SANITIZE_FLAGS := $(if $(SANITIZE),-fsanitize=$(SANITIZE) \
    -fno-sanitize-recover=all -fno-omit-frame-pointer)
# GCC 12 takes the head of a list out of a loop that empties it (seen at -O2:
# the same element was taken for ever), although nbdelta/list.h is within the
# rules of aliasing.
ND_CFLAGS := -std=gnu17 -D_GNU_SOURCE -fvisibility=hidden -fPIC -pthread \
    -fno-strict-aliasing \
    $(WARN) $(SANITIZE_FLAGS) $(if $(LOCKCHECK),-DLOCKCHECK)
# A sanitizer looks for the functions that it wraps when a program starts.  So
# libtirpc, which comes with libvirt later, has to be there by then.
LIBTIRPC := $(if $(SANITIZE),$(wildcard $(shell \
    $(CC) -print-file-name=libtirpc.so.3)))
ND_LDFLAGS := -pthread -Wl,-z,relro,-z,now $(SANITIZE_FLAGS) \
    $(if $(LIBTIRPC),-Wl$(comma)--push-state$(comma)--no-as-needed \
    $(LIBTIRPC) -Wl$(comma)--pop-state)

# server/ and plugin/ can see only the public headers of blocklib.  The other
# headers are visible only to blocklib itself, and to tests.
INC_PUBLIC  := -Iblocklib/include
INC_PRIVATE := $(INC_PUBLIC) -Iblocklib
INC_SERVER  := $(INC_PUBLIC) -Iserver
INC_TESTS   := $(INC_PRIVATE) -Iserver

#--- libraries we need ----------------------------------------------------

# pkg-config name : Debian package
PKGS := jansson:libjansson-dev zlib:zlib1g-dev libzstd:libzstd-dev \
    gnutls:libgnutls28-dev nettle:nettle-dev libnbd:libnbd-dev nbdkit:nbdkit-plugin-dev \
    check:check

# Without liburing threads do all I/O.  libnbd and gnutls are loaded when they
# are first used (blocklib/lazy).
HAVE_URING  := $(shell $(PKG_CONFIG) --exists liburing 2>/dev/null && echo yes)
LIB_PKGS    := jansson zlib libzstd nettle $(if $(HAVE_URING),liburing)
SERVER_PKGS := $(LIB_PKGS)
PLUGIN_PKGS := $(LIB_PKGS)
LIBVIRT_PKGS := libvirt libxml-2.0
# Ceph's libraries have no files for pkg-config.
RBD_LIBS := -lrbd -lrados

# These goals build nothing themselves; check and demo install what is
# missing before they start the make that looks.
NO_LOOKUP := check check-peers check-iotests demo bench bench-check bench-compare bench-chart packages clean help uninstall \
    install-files dist deb check-packages check-systemd
goals := $(filter-out $(NO_LOOKUP),$(or $(MAKECMDGOALS),all))

name = $(firstword $(subst :, ,$(1)))
package = $(lastword $(subst :, ,$(1)))
exists = $(shell $(PKG_CONFIG) --exists $(1) 2>/dev/null && echo yes)
define missing
$(info nbdelta: $(1) not found: install the Debian package '$(2)')
lacking := yes
endef

ifneq ($(goals),)
  ifeq ($(shell command -v $(firstword $(CC))),)
    $(eval $(call missing,the compiler '$(firstword $(CC))',gcc))
  endif
  ifeq ($(shell command -v $(PKG_CONFIG)),)
    $(eval $(call missing,'$(PKG_CONFIG)',pkgconf))
  else ifeq ($(call exists,$(foreach p,$(PKGS),$(call name,$(p)))),)
    $(foreach p,$(PKGS),$(if $(call exists,$(call name,$(p))),,$(eval \
        $(call missing,the library '$(call name,$(p))',$(call package,$(p))))))
  endif
  ifneq ($(lacking),)
    $(error packages are missing ('tests/packages.sh build' installs all that a build needs; 'make check' and 'make demo' do, too))
  endif
  pkg_libs = $(shell $(PKG_CONFIG) --libs $(1))
  # Modules are built where their libraries are.
  ifneq ($(call exists,$(LIBVIRT_PKGS)),)
    HAVE_LIBVIRT := yes
    LIBVIRT_CFLAGS := $(shell $(PKG_CONFIG) --cflags $(LIBVIRT_PKGS))
  endif
  HAVE_RBD := $(shell echo '$(hash)include <rbd/librbd.h>' | \
      $(CC) $(CPPFLAGS) $(CFLAGS) -E - >/dev/null 2>&1 && echo yes)
  ND_CFLAGS += $(if $(HAVE_URING),-DHAVE_LIBURING) $(shell $(PKG_CONFIG) --cflags \
      $(foreach p,$(PKGS),$(call name,$(p))))
endif

#--- what is built from what ----------------------------------------------

RBD_SRC      := $(sort $(wildcard blocklib/ceph/*.c))
BLOCKLIB_SRC := $(filter-out $(RBD_SRC),$(sort $(wildcard blocklib/*/*.c)))
LIBVIRT_SRC  := $(sort $(wildcard server/source/libvirt*.c))
SERVER_SRC   := $(filter-out $(LIBVIRT_SRC),$(sort \
    $(wildcard server/*.c server/*/*.c)))
MODULE_SRC   := $(if $(HAVE_LIBVIRT),$(LIBVIRT_SRC)) $(if $(HAVE_RBD),$(RBD_SRC))
PLUGIN_SRC   := $(sort $(wildcard plugin/*.c))
UNIT_SRC     := $(sort $(wildcard tests/unit/test-*.c))
# A part of each.
MARK_SRC     := tests/unit/mark-point.c
FUZZ_SRC     := $(sort $(wildcard tests/fuzz/fuzz-*.c))
# Programs that functional tests use.
TOOL_SRC     := $(sort $(wildcard tests/func/*.c))
# Programs that measure: three, and what they share.
BENCH_SRC    := $(sort $(wildcard tests/bench/*.c))
FUNC_TESTS   := $(sort $(filter-out %/lib.sh,$(wildcard tests/func/*.sh)))
MAN_PAGES    := $(sort $(wildcard man/*.1))
MAN5_PAGES   := $(sort $(wildcard man/*.5))
MAN7_PAGES   := $(sort $(wildcard man/*.7))
ALL_SRC := $(BLOCKLIB_SRC) $(SERVER_SRC) $(MODULE_SRC) $(PLUGIN_SRC) \
    $(UNIT_SRC) $(MARK_SRC) $(FUZZ_SRC) $(TOOL_SRC) $(BENCH_SRC)

obj = $(patsubst %.c,$(O)/%.o,$(1))
UNIT_TESTS := $(patsubst tests/unit/%.c,$(O)/%,$(UNIT_SRC))
FUZZERS    := $(patsubst tests/fuzz/%.c,$(O)/%,$(FUZZ_SRC))
TOOLS      := $(patsubst %.c,$(O)/%,$(TOOL_SRC))
NBD_LOAD   := $(O)/tests/bench/nbd-load
NBD_STATUS := $(O)/tests/bench/nbd-status
NBD_START  := $(O)/tests/bench/nbd-start
BENCH_TOOLS := $(NBD_LOAD) $(NBD_STATUS) $(NBD_START)

CARELESS   := $(O)/tests/func/careless
FAULTY     := $(O)/tests/func/faulty

SERVER    := $(O)/nbdelta
PLUGIN    := $(O)/nbdkit-nbdelta-plugin.so
LIBVIRT   := $(O)/nbdelta-source-libvirt.so
RBD       := $(O)/nbdelta-block-rbd.so
# Linked with the libraries that are loaded late, for tools that look at what a
# package needs.
NEEDS     := $(O)/nbdelta-needs.so
MODULES   := $(if $(HAVE_LIBVIRT),$(LIBVIRT)) $(if $(HAVE_RBD),$(RBD))
BLOCKLIB  := $(O)/libnbdelta.a
# The server without main(), for tests and fuzzers that look inside it.
SERVERLIB := $(O)/libserver.a
# A test or fuzzer looks inside if it includes one of the server's headers.
space := $(subst ,, )
SERVER_H := $(subst $(space),\|,$(strip $(patsubst server/%,%,$(wildcard server/*.h server/*/*.h))))
INSIDE := $(if $(UNIT_SRC)$(FUZZ_SRC),$(shell grep -l \
    '^$(hash)include "\($(SERVER_H)\)"' $(UNIT_SRC) $(FUZZ_SRC)))

.PHONY: all
.DELETE_ON_ERROR:
.SUFFIXES:
all: $(SERVER) $(PLUGIN) $(MODULES) $(BLOCKLIB) $(NEEDS)

#--- rules ----------------------------------------------------------------

Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-7s %s\n' $(1) $(2);)

$(call obj,$(BLOCKLIB_SRC) $(RBD_SRC)): INC := $(INC_PRIVATE)
$(call obj,$(SERVER_SRC)): INC := $(INC_SERVER)
$(call obj,$(LIBVIRT_SRC)): INC := $(INC_SERVER) $(LIBVIRT_CFLAGS)
$(call obj,$(PLUGIN_SRC)): INC := $(INC_PUBLIC)
$(call obj,$(UNIT_SRC) $(FUZZ_SRC) $(TOOL_SRC)): INC := $(INC_TESTS)

# Only these objects know the version, so a new one does not rebuild the rest.
VERSIONED := $(call obj,$(if $(SERVER_SRC)$(PLUGIN_SRC),$(shell \
    grep -l NBDELTA_VERSION $(BLOCKLIB_SRC) $(SERVER_SRC) $(MODULE_SRC) \
    $(PLUGIN_SRC))))
$(VERSIONED): DEFS := -DNBDELTA_VERSION='"$(VERSION)"'
$(VERSIONED): $(O)/.version
# What --dump-config tells, and where modules are looked for.
PATHS = -DNBDELTA_MODULES='"$(moduledir)"' -DNBDELTA_PREFIX='"$(prefix)"' \
    -DNBDELTA_BINDIR='"$(bindir)"' -DNBDELTA_LIBDIR='"$(libdir)"' \
    -DNBDELTA_MANDIR='"$(mandir)"' -DNBDELTA_PLUGINDIR='"$(plugindir)"' \
    -DNBDELTA_DOCDIR='"$(docdir)"' -DNBDELTA_SYSCONFDIR='"$(sysconfdir)"'
KNOWS_PATHS := $(O)/blocklib/util/module.o $(O)/server/cli/dump-config.o
$(KNOWS_PATHS): DEFS += $(PATHS)

# Rebuild when flags, version or the list of sources change.
FLAGS := $(CC) $(CPPFLAGS) $(ND_CFLAGS) $(CFLAGS) $(ND_LDFLAGS) $(LDFLAGS)
$(O)/.flags: WORDS = $(FLAGS)
$(O)/.version: WORDS = $(VERSION) $(PATHS)
$(O)/.sources: WORDS = $(BLOCKLIB_SRC) $(SERVER_SRC) $(MODULE_SRC) $(PLUGIN_SRC)
$(O)/.flags $(O)/.version $(O)/.sources: FORCE
	@mkdir -p $(O); w='$(subst $(quote),$(quote)\$(quote)$(quote),$(WORDS))'; \
	printf '%s\n' "$$w" | cmp -s - $@ || printf '%s\n' "$$w" >$@

$(O)/%.o: %.c $(O)/.flags
	@mkdir -p $(@D)
	$(call say,CC,$<)$(CC) $(INC) $(DEFS) $(CPPFLAGS) $(ND_CFLAGS) \
	    $(CFLAGS) -MMD -MP -c -o $@ $<

$(BLOCKLIB): $(call obj,$(BLOCKLIB_SRC)) $(O)/.sources
	$(call say,AR,$@)rm -f $@ && $(AR) rcs $@ $(filter %.o,$^)

$(SERVERLIB): $(call obj,$(filter-out server/main.c,$(SERVER_SRC))) \
    $(O)/.sources
	$(call say,AR,$@)rm -f $@ && $(AR) rcs $@ $(filter %.o,$^)

link = $(call say,LD,$@)$(CC) $(1) $(ND_LDFLAGS) $(LDFLAGS) -o $@ \
    $(filter %.o,$^) $(filter $(SERVERLIB),$^) $(filter $(BLOCKLIB),$^) \
    $(call pkg_libs,$(2))

$(SERVER): $(O)/server/main.o $(SERVERLIB) $(BLOCKLIB)
	$(call link,,$(SERVER_PKGS))

$(PLUGIN): $(call obj,$(PLUGIN_SRC)) $(BLOCKLIB)
	$(call link,-shared -Wl$(comma)--exclude-libs$(comma)ALL,$(PLUGIN_PKGS))

$(NEEDS):
	@mkdir -p $(@D)
	$(call say,LD,$@)$(CC) -shared $(LDFLAGS) -Wl$(comma)--no-as-needed \
	    -o $@ $(call pkg_libs,libnbd gnutls)

# With copies of what it uses of the server.
$(LIBVIRT): $(call obj,$(LIBVIRT_SRC)) $(SERVERLIB) $(BLOCKLIB)
	$(call link,-shared -Wl$(comma)--exclude-libs$(comma)ALL,jansson \
	    $(LIBVIRT_PKGS))

$(RBD): $(call obj,$(RBD_SRC)) $(BLOCKLIB)
	$(call link,-shared -Wl$(comma)--exclude-libs$(comma)ALL,jansson) \
	    $(RBD_LIBS)

$(UNIT_TESTS): $(O)/%: $(O)/tests/unit/%.o $(call obj,$(MARK_SRC)) $(BLOCKLIB)
	$(call link,-Wl$(comma)--wrap=_mark_point,check gnutls libnbd \
	    $(SERVER_PKGS))

$(FUZZERS): $(O)/%: $(O)/tests/fuzz/%.o $(BLOCKLIB)
	$(call link,$(FUZZ_LINK),$(SERVER_PKGS))

$(filter-out $(CARELESS) $(FAULTY),$(TOOLS)): $(O)/%: $(O)/%.o $(BLOCKLIB)
	$(call link,,$(SERVER_PKGS))
$(O)/tests/func/source-tool: $(SERVERLIB)

# These need nothing of ours, and no library.
link_bench = $(call say,LD,$@)$(CC) $(ND_LDFLAGS) $(LDFLAGS) -o $@ \
    $(filter %.o,$^)
$(NBD_LOAD): $(call obj,$(filter %/nbd-load.c %/nbd-raw.c \
    tests/bench/load-%,$(BENCH_SRC)))
	$(link_bench)
$(NBD_STATUS) $(NBD_START): $(O)/%: $(O)/%.o $(O)/tests/bench/nbd-raw.o
	$(link_bench)

# It makes what only the server can.
$(O)/tests/func/make-point: $(SERVERLIB)

# The server with one function of qcow2 replaced.
$(CARELESS): $(O)/tests/func/careless.o $(O)/server/main.o $(SERVERLIB) \
    $(BLOCKLIB)
	$(call link,-Wl$(comma)--wrap=qcow2_bitmap_arm,$(SERVER_PKGS))

# The server, on a file system that fails.
$(FAULTY): $(O)/tests/func/faulty.o $(O)/server/main.o $(SERVERLIB) $(BLOCKLIB)
	$(call link,$(addprefix -Wl$(comma)--wrap=,pwritev2 pwrite ftruncate \
	    fdatasync fsync write renameat unlinkat ioctl),$(SERVER_PKGS))

$(filter $(INSIDE:tests/unit/%.c=$(O)/%),$(UNIT_TESTS)) \
$(filter $(INSIDE:tests/fuzz/%.c=$(O)/%),$(FUZZERS)): $(SERVERLIB)

-include $(patsubst %.c,$(O)/%.d,$(ALL_SRC))

#--- tests ----------------------------------------------------------------

# Tests whose name, with or without "test-" and ".sh", T matches.
picked = $(shell set -f; for t in $(UNIT_TESTS) $(FUNC_TESTS); do \
    n=$${t$(hash)$(hash)*/}; n=$${n%.sh}; for g in $(T); do \
    case $$n in ($$g|test-$$g) echo $$t; break;; esac; done; \
    done)
FOR_TESTS = BUILD='$(abspath $(O))' SRCDIR='$(CURDIR)' CC='$(CC)' \
    SANITIZE='$(SANITIZE)' JOBS='$(TESTS)'
# A make of its own, which looks for the packages that are there by now.
SUBMAKE = $(MAKE) --no-print-directory $(if $(filter -j%,$(MAKEFLAGS)),,-j$(JOBS))

.PHONY: check check-run check-peers check-iotests check-iotests-run check-valgrind demo crash faults many stress demo-run bench bench-check bench-compare packages \
        FORCE
check:
	$(Q)tests/packages.sh build test
	$(Q)tests/packages.sh ceph || echo 'Tests with a cluster of Ceph are skipped.'
	$(Q)+$(SUBMAKE) check-run
	$(Q)$(if $(filter-out *,$(T))$(SANITIZE)$(LOCKCHECK),,+$(SUBMAKE) \
	    check-run LOCKCHECK=1 O='$(O)-lockcheck' T='$(LOCK_TESTS)')

# Once more with LOCKCHECK=1: where many threads meet below the server.
# `make check LOCKCHECK=1` runs all tests so.
LOCK_TESTS := test-backup test-bitmap-disks test-copy test-job test-point \
    test-thread test-transfer

# Built in Debian 13, with its libraries: the tests that have its clients and
# servers for peers, then libnbd's own.  T='?*' runs all of `make check` there;
# qsd-compare is not among these: QEMU 10 deletes exports in another order.
PEERS := trixie
PEER_TESTS := backup-qemu bitmap-interop bitmaps-persistent check create \
    data-file events fleecing foreign-formats info iotest-124 libvirt-disks \
    map metrics mirror nbd-bitmaps nbd-clients nbd-interop nbd-list nbd-node \
    nbd-node-backup nbd-node-tls nbd-online nbd-serve nbd-servers nbd-tls \
    odd-sizes plugin-* pull-others qcow2-matrix qcow2-overlap qmp-backup \
    qmp-commit qmp-exports qmp-help qmp-snapshot qmp-stream qsd-options \
    snapshot snapshot-view source-libvirt source-qemu track trim vm-compat
peer_tests = $(if $(filter-out *,$(T)),$(T),$(PEER_TESTS))
in_peers = tests/peers.sh '$(O)/$(PEERS)' $(PEERS)
check-peers:
	$(Q)tests/packages.sh peers
	$(Q)rc=0; $(in_peers) env IOTEST_DISKS=qcow2 sh -c \
	    'tests/packages.sh build test || exit 77; exec make "$$@"' sh \
	    --no-print-directory check O='$(O)/$(PEERS)/build' CC=gcc \
	    SANITIZE= T='$(peer_tests)' JOBS='$(JOBS)' TESTS='$(TESTS)' || rc=$$?; \
	if [ $$rc -eq 0 ] && [ '$(T)' = '*' ]; then \
	    $(in_peers) env BUILD='$(abspath $(O)/$(PEERS)/build)' \
	        tests/peers-libnbd.sh '$(O)/$(PEERS)/libnbd' || rc=$$?; fi; \
	[ $$rc -eq 0 ] || [ $$rc -eq 77 ]

demo:
	$(Q)tests/packages.sh build test
	$(Q)+$(SUBMAKE) demo-run

packages:
	$(Q)tests/packages.sh build test bench dev

ifneq ($(filter check-run check-valgrind,$(MAKECMDGOALS)),)
PICKED := $(picked)
ifeq ($(PICKED),)
$(error no test has a name like '$(T)')
endif
# A few unit tests do not need the programs.
check-run: $(if $(filter %.sh,$(PICKED)),all $(TOOLS) $(BENCH_TOOLS))
check-run: $(filter $(UNIT_TESTS),$(PICKED))
check-valgrind: $(filter $(UNIT_TESTS),$(PICKED))
endif

check-run:
	$(Q)$(FOR_TESTS) tests/run $(PICKED)

VALGRIND := valgrind -q --error-exitcode=119 --leak-check=full \
    --show-leak-kinds=definite
# The unit tests only: their code is what the programs run.
check-valgrind:
	$(call tool,valgrind,valgrind)
	$(Q)$(FOR_TESTS) CK_FORK=no TEST_TIMEOUT=900 WRAPPER='$(VALGRIND)' \
	    tests/run $(filter $(UNIT_TESTS),$(PICKED))

demo-run: all
	$(Q)$(FOR_TESTS) KEEP='$(KEEP)' tests/demo.sh

check-iotests:
	$(Q)tests/packages.sh build test
	$(Q)+$(SUBMAKE) check-iotests-run
check-iotests-run: all
	$(Q)NBDELTA='$(abspath $(SERVER))' IOTESTS='$(IOTESTS)' FMT='$(FMT)' \
	    tests/iotests/run $(if $(filter-out *,$(T)),$(T))

# The long form of tests/func/qmp-stress.sh; SANITIZE= as usual.
stress: all
	$(Q)$(FOR_TESTS) STRESS_SECONDS='$(or $(SECONDS),60)' TEST_TIMEOUT=7200 \
	    HOSTILE_ROUNDS=200 tests/run tests/func/qmp-stress.sh \
	    tests/func/backup-hostile.sh

# The long campaigns of these tests.
crash: all $(TOOLS)
	$(Q)$(FOR_TESTS) ROUNDS='$(or $(ROUNDS),200)' SEED='$(SEED)' \
	    LIBVIRT_CASES=all STEPS=all GUEST='$(abspath $(O))/guest' \
	    TEST_TIMEOUT=7200 tests/run \
	    tests/func/bitmap-kill.sh tests/func/bitmap-power.sh \
	    tests/func/qcow2-campaign.sh \
	    tests/func/pull-kill.sh tests/func/backup-kill.sh \
	    tests/func/backup-libvirt-cases.sh \
	    tests/func/prune.sh tests/func/prune-reflink.sh \
	    tests/func/backup-guest.sh \
	    tests/func/backup-libvirt-remote.sh

# All cases of this test.
faults: all $(TOOLS)
	$(Q)$(FOR_TESTS) SEED='$(SEED)' FAULTS_CASES='$(or $(CASE),all)' \
	    TEST_TIMEOUT=14400 tests/run tests/func/faults.sh

# The same of this one.
many: all $(TOOLS)
	$(Q)$(FOR_TESTS) RBD_IMAGES='$(or $(IMAGES),500)' TEST_TIMEOUT=7200 \
	    tests/run tests/func/rbd-many.sh

# What is asked of tests/bench/bench.py, in words of make.
W ?= *
# PEERS=13: another Debian's peers, in a tree that stays in the output directory.
BENCH_TREE := $(if $(filter command,$(origin PEERS)),$(if \
    $(filter 13,$(PEERS)),trixie,$(PEERS)))
bench_words = --rows '$(W)' $(if $(QUICK),--quick) $(if $(SIZE),--size $(SIZE)) \
    $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(JSON),--json '$(JSON)') \
    $(if $(BENCH_TREE),--tree '$(abspath $(O))/$(BENCH_TREE)/root')
BENCH = $(FOR_TESTS) PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 tests/bench
bench bench-check bench-compare:
	$(Q)tests/packages.sh build test bench $(if $(BENCH_TREE),peers)
	$(Q)$(if $(BENCH_TREE),tests/bench/tree.sh '$(O)/$(BENCH_TREE)' \
	    '$(BENCH_TREE)')
	$(Q)+$(SUBMAKE) $@-run

.PHONY: bench-run bench-check-run bench-compare-run bench-instructions \
    bench-chart
bench-run: all $(BENCH_TOOLS)
	$(Q)$(BENCH)/bench.py run $(bench_words)
bench-check-run: all $(BENCH_TOOLS)
	$(Q)$(BENCH)/bench.py $(if $(RESULTS),judge --results '$(RESULTS)',check \
	    $(bench_words))
bench-compare-run: $(BENCH_TOOLS)
	$(Q)$(BENCH)/bench.py compare --a '$(A)' --b '$(B)' $(bench_words)
bench-instructions: all $(BENCH_TOOLS)
	$(call tool,valgrind,valgrind)
	$(Q)$(BENCH)/instructions.py $(if $(UPDATE),update,check)
bench-chart:
	$(Q)$(BENCH)/chart.py $(RESULTS) >tests/bench/chart.svg

#--- checks of the source -------------------------------------------------

tool = @command -v $(1) >/dev/null || { echo "nbdelta: $(1) not found:" \
    "install the Debian package '$(2)' ('make packages' does)" >&2; exit 1; }

.PHONY: check-locks check-headers check-layers lint
check-locks:
	$(call tool,clang,clang)
	$(Q)clang $(INC_TESTS) $(LIBVIRT_CFLAGS) $(ND_CFLAGS) \
	    -DNBDELTA_VERSION='""' -Wthread-safety -Werror -fsyntax-only $(PATHS) \
	    $(BLOCKLIB_SRC) $(SERVER_SRC) $(MODULE_SRC) $(PLUGIN_SRC)

# Included twice, which needs a guard; with the include paths of its users.
one_header = printf '$(hash)include "%s"\n' $$h $$h | \
    $(CC) $(1) -I. $(ND_CFLAGS) -Werror -fsyntax-only -x c - || exit 1
check-headers:
	$(Q)for h in blocklib/include/nbdelta/*.h; do \
	    $(call one_header,$(INC_PUBLIC)); done
	$(Q)for h in $$(find blocklib -name '*.h' ! -path '*/include/*' \
	    $(if $(HAVE_RBD),,! -path blocklib/ceph/priv.h)); do \
	    $(call one_header,$(INC_PRIVATE)); done
	$(Q)for h in $$(find server plugin -name '*.h'); do \
	    $(call one_header,$(INC_SERVER)); done

check-layers: all
	$(Q)tests/layers.py '$(O)'

LINT_SRC := $(BLOCKLIB_SRC) $(SERVER_SRC) $(MODULE_SRC) $(PLUGIN_SRC)
# cppcheck does not know attribute cleanup, either (see .clang-tidy).
lint: check-layers
	$(call tool,clang-format,clang-format)
	$(call tool,clang-tidy,clang-tidy)
	$(call tool,cppcheck,cppcheck)
	$(call tool,shellcheck,shellcheck)
	$(Q)clang-format --dry-run -Werror $$(find blocklib server plugin tests \
	    -name '*.[ch]')
	$(Q)printf '%s\n' $(LINT_SRC) | xargs -P $(JOBS) -I{} \
	    clang-tidy --quiet {} -- $(INC_TESTS) $(LIBVIRT_CFLAGS) $(ND_CFLAGS) \
	    -DNBDELTA_VERSION='""' $(PATHS)
	$(Q)cppcheck -q --error-exitcode=1 --inline-suppr -j $(JOBS) \
	    --suppress=memleak --std=c11 $(INC_TESTS) blocklib server plugin
	$(Q)shellcheck -x tests/run .ci/run tests/*.sh tests/func/*.sh tests/bench/*.sh \
	    tests/iotests/run tests/iotests/qemu tests/iotests/qemu-nbd \
	    packaging/*.sh packaging/debian/tests/readme \
	    packaging/debian/tests/installed
	$(Q)shellcheck -s bash completion/nbdelta.bash

#--- fuzzing --------------------------------------------------------------

FO := $(O)-fuzz
FUZZ_CFLAGS := -O1 -g -fsanitize=fuzzer-no-link,address,undefined \
    -fno-sanitize-recover=all
.PHONY: fuzz fuzzers fuzzers-run
fuzzers:
	$(call tool,clang,clang libclang-rt-dev)
	$(Q)+$(SUBMAKE) O='$(FO)' CC=clang SANITIZE= FUZZ_LINK=-fsanitize=fuzzer \
	    CFLAGS='$(FUZZ_CFLAGS)' LDFLAGS='-fsanitize=address,undefined' \
	    fuzzers-run
fuzzers-run: $(FUZZERS)

# New inputs that a run finds are kept in the output directory.  Copy the ones
# that are worth keeping to tests/corpus/NAME by hand.
fuzz: fuzzers
	$(Q)set -f; for g in $(F); do set +f; for f in $(FO)/fuzz-$$g; do \
	    [ -x $$f ] || continue; \
	    n=$${f##*/fuzz-}; d=tests/fuzz/$$n.dict; c=tests/corpus/$$n; \
	    [ -d $$c ] || c=; [ -f $$d ] && d=-dict=$$d || d=; \
	    mkdir -p $(FO)/corpus/$$n; echo "fuzz-$$n, $(FUZZ_TIME) s"; \
	    $$f -max_total_time=$(FUZZ_TIME) -timeout=20 -rss_limit_mb=2048 \
	        -verbosity=0 -print_final_stats=1 -artifact_prefix=$(FO)/$$n- \
	        $$d $(FO)/corpus/$$n $$c || exit 1; done; done

#--- install --------------------------------------------------------------

MAN1    := $(DESTDIR)$(mandir)/man1
MAN5    := $(DESTDIR)$(mandir)/man5
MAN7    := $(DESTDIR)$(mandir)/man7
PLUGINS  = $(DESTDIR)$(plugindir)
# These have paths in them.
UNITS   := $(patsubst systemd/%.in,%,$(wildcard systemd/nbdelta*@*.in))
CONFS   := backup.conf serve.conf
CONF    := $(DESTDIR)$(sysconfdir)/nbdelta/backup
FILL     = sed -e 's|@bindir@|$(bindir)|' -e 's|@sysconfdir@|$(sysconfdir)|'

.PHONY: install install-files uninstall clean help
install: all install-files
install-files: | $(if $(filter install,$(MAKECMDGOALS)),all)
	$(INSTALL) -D -m 755 $(SERVER) $(DESTDIR)$(bindir)/nbdelta
	$(INSTALL) -D -m 755 $(PLUGIN) $(PLUGINS)/$(notdir $(PLUGIN))
	$(Q)for m in $(LIBVIRT) $(RBD); do [ ! -e $$m ] || \
	    $(INSTALL) -D -m 755 $$m $(DESTDIR)$(moduledir)/$${m##*/}; done
	$(INSTALL) -d -m 755 $(MAN1)
	$(INSTALL) -m 644 $(MAN_PAGES) $(MAN1)
	$(INSTALL) -d -m 755 $(MAN5)
	$(INSTALL) -m 644 $(MAN5_PAGES) $(MAN5)
	$(INSTALL) -d -m 755 $(MAN7)
	$(INSTALL) -m 644 $(MAN7_PAGES) $(MAN7)
	$(INSTALL) -D -m 644 completion/nbdelta.bash \
	    $(DESTDIR)$(bashcompdir)/nbdelta
	$(INSTALL) -D -m 644 completion/_nbdelta \
	    $(DESTDIR)$(zshcompdir)/_nbdelta
	$(INSTALL) -D -m 644 completion/nbdelta.fish \
	    $(DESTDIR)$(fishcompdir)/nbdelta.fish
	$(INSTALL) -d -m 755 $(DESTDIR)$(unitdir) $(DESTDIR)$(docdir) $(CONF)
	$(Q)set -e; for u in $(UNITS); do \
	    $(FILL) systemd/$$u.in >$(DESTDIR)$(unitdir)/$$u; \
	    chmod 644 $(DESTDIR)$(unitdir)/$$u; done; \
	    for c in $(CONFS); do \
	    $(FILL) systemd/$$c.in >$(DESTDIR)$(docdir)/$$c; \
	    chmod 644 $(DESTDIR)$(docdir)/$$c; done
	$(INSTALL) -D -m 644 systemd/nbdelta.sysusers \
	    $(DESTDIR)$(sysusersdir)/nbdelta.conf
	$(INSTALL) -D -m 644 systemd/nbdelta.tmpfiles \
	    $(DESTDIR)$(tmpfilesdir)/nbdelta.conf

INSTALL_DIRS = $(docdir) $(moduledir) $(sysconfdir)/nbdelta/backup $(bindir) \
    $(mandir)/man1 $(mandir)/man5 $(mandir)/man7 $(bashcompdir) \
    $(zshcompdir) $(fishcompdir) $(unitdir) $(sysusersdir) $(tmpfilesdir) \
    $(plugindir)
# The system keeps its directories when they are empty.
EMPTIED := $(or $(DESTDIR),$(filter-out /usr /usr/local,$(prefix)))

uninstall:
	rm -f $(DESTDIR)$(bindir)/nbdelta $(PLUGINS)/$(notdir $(PLUGIN)) \
	    $(DESTDIR)$(moduledir)/$(notdir $(LIBVIRT)) \
	    $(DESTDIR)$(moduledir)/$(notdir $(RBD)) \
	    $(patsubst man/%,$(MAN1)/%,$(MAN_PAGES)) \
	    $(patsubst man/%,$(MAN5)/%,$(MAN5_PAGES)) \
	    $(patsubst man/%,$(MAN7)/%,$(MAN7_PAGES)) \
	    $(DESTDIR)$(bashcompdir)/nbdelta \
	    $(DESTDIR)$(zshcompdir)/_nbdelta \
	    $(DESTDIR)$(fishcompdir)/nbdelta.fish \
	    $(addprefix $(DESTDIR)$(unitdir)/,$(UNITS)) \
	    $(addprefix $(DESTDIR)$(docdir)/,$(CONFS)) \
	    $(DESTDIR)$(sysusersdir)/nbdelta.conf \
	    $(DESTDIR)$(tmpfilesdir)/nbdelta.conf
	$(Q)for d in $(INSTALL_DIRS); do while [ "$$d" ]; do \
	    case $$d in \
	    */nbdelta|*/nbdelta/backup) ;; \
	    '$(prefix)'|'$(prefix)'/*) [ '$(EMPTIED)' ] || break;; \
	    *) [ '$(DESTDIR)' ] || break;; esac; \
	    rmdir "$(DESTDIR)$$d" 2>/dev/null || break; \
	    d=$${d%/*}; done; done

#--- packages -------------------------------------------------------------

DIST := nbdelta-$(VERSION)
RELEASES ?= bookworm trixie

.PHONY: dist deb check-packages
dist:
	$(call say,DIST,$(O)/$(DIST).tar.gz)packaging/dist.sh '$(DIST)' \
	    '$(O)/$(DIST).tar.gz'

deb: dist
	$(Q)tests/packages.sh build deb
	$(Q)packaging/deb.sh '$(O)/$(DIST).tar.gz' '$(VERSION)' '$(O)/deb'

check-packages: dist
	$(Q)tests/packages.sh peers
	$(Q)for r in $(RELEASES); do \
	    packaging/check-packages.sh '$(abspath $(O))/$(DIST).tar.gz' \
	        '$(VERSION)' $$r '$(abspath $(O))/packages/'$$r || exit 1; done

.PHONY: check-systemd
check-systemd:
	$(Q)tests/packages.sh peers
	$(Q)for r in $(RELEASES); do packaging/check-systemd.sh \
	    '$(abspath $(O))/systemd/'$$r $$r || exit 1; done

#--- the rest -------------------------------------------------------------

clean:
	rm -rf build build-*/ $(if $(filter-out build,$(O)),'$(O)')

# NAME=VALUE of a variable.
value-%:
	@echo '$*=$($*)'

help:
	@sed -n '2,/^$$/s/^# \{0,1\}//p' Makefile
