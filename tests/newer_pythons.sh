#!/usr/bin/env bash
# Python 3.14 and a free-threaded 3.13, in a small Debian of their own, and the tests on both.
#
#     tests/newer_pythons.sh FOLDER [what pytest takes]
#
# Needs root, debootstrap, 3 GB and half an hour; no part of .ci/run. What is in FOLDER already is used
# again. 3.14 comes with Debian 14 (forky), the free-threaded one is built from the source of Debian 13.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
root=${1:?a folder}
shift
mirror=${MIRROR:-http://deb.debian.org/debian}
mounts=(proc dev dev/pts dev/shm sys)

if [ ! -e "$root/usr/bin/python3.14" ]; then
    debootstrap --variant=minbase --include=python3.14-venv,ca-certificates forky "$root" "$mirror" sid
fi
for file in /etc/resolv.conf /etc/pip.conf /etc/xdg/pip /etc/ssl/certs/ca-certificates.crt; do
    if [ -e "$file" ]; then
        mkdir -p "$root$(dirname "$file")"
        cp -rL "$file" "$root$(dirname "$file")/"
    fi
done
leave() {
    for ((i = ${#mounts[@]} - 1; i >= 0; i--)); do umount "$root/${mounts[i]}" || true; done
}
trap leave EXIT
for mount in "${mounts[@]}"; do mount --bind "/$mount" "$root/$mount"; done

rm -rf "$root/src"
mkdir "$root/src"
(cd "$here" && git ls-files -z | xargs -0 tar cf -) | tar xf - -C "$root/src"

cat > "$root/inside.sh" << 'INSIDE'
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
valid="-o Acquire::Check-Valid-Until=false"
if [ ! -x /opt/free-threaded/bin/python3.13t ]; then
    echo "deb-src $MIRROR trixie main" > /etc/apt/sources.list.d/source.list
    apt-get $valid update -qq
    apt-get install -y -qq --no-install-recommends gcc make libc6-dev pkgconf dpkg-dev xz-utils \
        zlib1g-dev libssl-dev libffi-dev libbz2-dev liblzma-dev libsqlite3-dev
    mkdir -p /build && cd /build
    apt-get $valid source --download-only -qq python3.13
    tar xf python3.13_*.orig.tar.xz --strip-components=1
    ./configure -q --disable-gil --prefix=/opt/free-threaded --without-ensurepip CFLAGS=-O2
    make -s -j"$(nproc)"
    make -s install
fi
cd /src
[ -d /venv-3.14 ] || python3.14 -m venv /venv-3.14
/venv-3.14/bin/pip install -q -e '.[dev]'
[ -d /venv-3.13t ] || /opt/free-threaded/bin/python3.13t -m venv --without-pip /venv-3.13t
# Few packages have free-threaded wheels, and posix_ipc has none: what the core's tests need.
/venv-3.14/bin/pip --python /venv-3.13t/bin/python install -q \
    channels msgpack 'hypothesis<6.140' pytest pytest-asyncio pytest-timeout setuptools
/venv-3.14/bin/pip --python /venv-3.13t/bin/python install -q --no-deps --no-build-isolation -e .
core="test_aio test_bell test_deleted test_descriptors test_fanout test_forks test_inbox test_joining
    test_ledger test_membership test_mutex test_opening test_runtimes test_segment test_shm test_store
    test_sync test_thrown_away test_twin test_waiting test_witness"
failed=0
echo "== Python 3.14"
/venv-3.14/bin/python -m pytest --ignore=tests/docs --ignore=tests/package --ignore=tests/channels1 \
    --ignore=tests/interface/test_channels1_site.py "$@" || failed=1
echo "== Python 3.13, free-threaded"
/venv-3.13t/bin/python -m pytest -k 'not test_switches_for_the_command' \
    $(printf 'tests/%s.py ' $core) || failed=1
exit $failed
INSIDE
chroot "$root" env MIRROR="$mirror" bash /inside.sh "$@"
