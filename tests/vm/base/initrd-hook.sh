#!/bin/sh
# mmdebstrap's essential hook, given the tree: before the kernel is installed, ask
# initramfs-tools for an initrd with only what it takes to mount the root disk.
set -eu
mkdir -p "$1/etc/initramfs-tools/conf.d"
echo MODULES=list >"$1/etc/initramfs-tools/conf.d/vm"
printf '%s\n' virtio_pci virtio_blk ext4 >>"$1/etc/initramfs-tools/modules"
