#!/bin/sh
# mmdebstrap's customize hook, given the tree: adds what the project needs beside the packages.
set -eu
recipe=$(dirname "$0")

# The program that the kernel starts.
install -m 755 "$recipe/vm-init.sh" "$1/sbin/vm-init"

# The ordinary user; useradd also writes /etc/subuid and /etc/subgid.
chroot "$1" useradd --create-home --uid 1000 --shell /bin/bash runner

# Go's standard library as `make up` builds it: seconds here, minutes on an emulated machine.
cp -r "$recipe/../../../src" "$1/tmp/src"
chroot "$1" env PYTHONPATH=/tmp/src PYTHONDONTWRITEBYTECODE=1 \
    python3 -m code_executor.languages.goindex /var/lib/go-runtime
rm -rf "$1/tmp/src"
