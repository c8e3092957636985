#!/bin/sh
# The native service's entry point. The engine has mounted the container's own control groups
# read-only; those that the sandboxes' are made in become writable. The rest of them, devices with
# version 1 above all, stay as they are.
set -eu
while read -r _ point kind options _; do
    case "$kind,$options," in
        cgroup2,* | cgroup,*,memory,* | cgroup,*,pids,* | cgroup,*,cpu,* | cgroup,*,cpuacct,*)
            mount -o remount,bind,rw,nosuid,nodev,noexec "$point"
            ;;
    esac
done </proc/self/mounts
exec "$@"
