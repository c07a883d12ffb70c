#!/bin/bash
# tests/packages.sh GROUP...    install the missing Debian packages of groups
#
# Groups: build (compile), test (make check, demo), ceph (make check, too: where
# they cannot be had, its tests are skipped), bench (more for make bench),
# peers (make check-peers), deb (make deb), units (make check-systemd), dev (the
# rest).
# With everything there it does nothing and needs neither root nor network.
set -eu -o pipefail

packages_of() {
    case $1 in
    build)
        echo gcc libc6-dev make pkgconf libjansson-dev zlib1g-dev libzstd-dev \
            libgnutls28-dev nettle-dev libnbd-dev nbdkit-plugin-dev libvirt-dev \
            libxml2-dev librados-dev librbd-dev liburing-dev check ;;
    test)
        echo btrfs-progs check e2fsprogs fio fish fuse3 gnutls-bin groff-base \
            iproute2 jq \
            libnbd-bin libvirt-clients libvirt-daemon \
            libvirt-daemon-driver-qemu nbdkit openssh-client openssh-server \
            procps python3-libnbd qemu-system-common qemu-system-x86 \
            qemu-utils rsync socat openssl xfsprogs zsh ;;
    ceph)
        echo ceph-common ceph-mon ceph-osd qemu-block-extra ;;
    bench)
        echo virtnbdbackup ;;
    peers)
        echo debootstrap ;;
    deb)
        echo build-essential check debhelper dh-apparmor lintian ;;
    units)
        echo dbus jq libnbd-bin systemd systemd-sysv ;;
    dev)
        echo clang clang-format clang-tidy cppcheck libclang-rt-dev \
            nbd-client prometheus shellcheck valgrind ;;
    *)
        echo "usage: tests/packages.sh build|test|ceph|bench|peers|deb|units|dev..." >&2
        return 2 ;;
    esac
}

wanted=()
for group in "$@"; do
    list=$(packages_of "$group")
    # shellcheck disable=SC2206  # a list of words
    wanted+=($list)
done

if ! command -v dpkg-query >/dev/null; then
    echo "This is no Debian: the needed packages are there called" \
         "${wanted[*]}"
    exit 0
fi

# dpkg-query exits 1 when it does not know one of the names.
have=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${wanted[@]}" \
       2>/dev/null || true)
missing=()
for package in "${wanted[@]}"; do
    if ! grep -qx "installed $package" <<<"$have"; then
        missing+=("$package")
    fi
done
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi

echo "Installing Debian packages: ${missing[*]}"
become=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "nbdelta: packages: neither root nor sudo; install them by hand" \
             "with: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    become=(sudo)
fi
apt=("${become[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q)
"${apt[@]}" update
"${apt[@]}" install -y --no-install-recommends "${missing[@]}"
