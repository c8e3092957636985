# Runs a command with a directory as /work and the Python runtime as /opt/python, and no isolation
# beyond what that takes: a private mount namespace with a root made of binds of the host's own.
# The command replaces this shell, so its process id and its end are the caller's to see.
#
#   unshare --mount [...] sh bare_root.sh ROOT WORK RUNTIME CACHE [-u UID] -- NAME=value... COMMAND
set -eu
root=$1 work=$2 runtime=$3 cache=$4
shift 4
identity=
if [ "$1" = -u ]; then
    identity="/usr/bin/setpriv --reuid=$2 --regid=$2 --clear-groups --"
    shift 2
fi
shift # --

mount -t tmpfs -o mode=0755 bare "$root"
mkdir "$root/work" "$root/tmp" "$root/opt" "$root/opt/python" "$root/opt/cache"
chmod 1777 "$root/tmp"
for name in bin sbin lib lib64 usr etc proc dev sys; do
    if [ -L "/$name" ]; then
        cp -P "/$name" "$root/$name"
    elif [ -d "/$name" ]; then
        mkdir "$root/$name"
        mount --rbind "/$name" "$root/$name"
    fi
done
for pair in "$work:work" "$runtime:opt/python" "$cache:opt/cache"; do
    [ ! -d "${pair%%:*}" ] || mount --bind "${pair%%:*}" "$root/${pair##*:}"
done
# shellcheck disable=SC2086 # identity is a command with its arguments, or nothing
exec chroot "$root" $identity /usr/bin/env -i -C /work "$@"
