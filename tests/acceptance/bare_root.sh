# Runs a command with a directory as /work and the Python runtime as /opt/python, and no isolation
# beyond what that takes: a private mount namespace with a root made of binds of the host's own, or
# of another system's TREE. The command replaces this shell, so its process id and its end are the
# caller's to see.
#
#   unshare --mount [...] sh bare_root.sh ROOT TREE WORK RUNTIME CACHE [-u UID] -- NAME=value... COMMAND
set -eu
root=$1 tree=${2%/} work=$3 runtime=$4 cache=$5
shift 5
identity=
if [ "$1" = -u ]; then
    identity="/usr/bin/setpriv --reuid=$2 --regid=$2 --clear-groups --"
    shift 2
fi
shift # --

mount -t tmpfs -o mode=0755 bare "$root"
mkdir "$root/work" "$root/tmp" "$root/opt" "$root/opt/python" "$root/opt/cache"
chmod 1777 "$root/tmp"
for path in "$tree"/bin "$tree"/sbin "$tree"/lib "$tree"/lib64 "$tree"/usr "$tree"/etc /proc /dev /sys; do
    name=${path##*/}
    if [ -L "$path" ]; then
        cp -P "$path" "$root/$name"
    elif [ -d "$path" ]; then
        mkdir "$root/$name"
        mount --rbind "$path" "$root/$name"
    fi
done
for pair in "$work:work" "$runtime:opt/python" "$cache:opt/cache"; do
    [ ! -d "${pair%%:*}" ] || mount --bind "${pair%%:*}" "$root/${pair##*:}"
done
# shellcheck disable=SC2086 # identity is a command with its arguments, or nothing
exec chroot "$root" $identity /usr/bin/env -i -C /work "$@"
