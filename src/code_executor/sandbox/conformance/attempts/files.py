"""No file of the host beyond the read-only system, and no writing outside one's own directories."""

from __future__ import annotations

import os
import stat

from .harness import Reached, absent, attempt, refused, unreadable

OWN = ("/work", "/tmp", "/dev/shm")
"""The places a program may write to."""


@attempt("P1", quick=True)
def files_of_the_host() -> None:
    """Look at homes, state, configuration and sockets of the host."""
    absent("/root/.bashrc", "/root/.ssh", "/etc/shadow", "/etc/ssh", "/etc/sudoers",
           "/etc/machine-id", "/var/lib/dpkg", "/var/log", "/boot/vmlinuz", "/run/systemd",
           "/run/docker.sock", "/srv", "/mnt", "/media", "/lost+found", "/initrd.img")  # fmt: skip
    unreadable(
        "/root",
        "/home",
        "/var/lib",
        "/var/tmp",
        "/boot",
        "/run/user",
        "/sys",
        "/etc/shadow-",
        "/etc/gshadow",
    )


@attempt("P1", quick=True)
def traces_of_an_engine() -> None:
    """Tell from files that an engine has made the sandbox."""
    absent("/.dockerenv", "/run/.containerenv")


@attempt("P1", quick=True)
def write_outside() -> None:
    """Create a file anywhere but in /work, /tmp and /dev/shm."""
    for place in ("/", "/usr", "/usr/bin", "/etc", "/opt", "/opt/python", "/dev", "/proc", "/lib",
                  "/bin", "/usr/lib/python3.11", "/usr/local/bin", "/var", "/run", "/home",
                  "/sys"):  # fmt: skip
        path = os.path.join(place, "written-by-a-sandbox")
        with refused(f"{path} was created"):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            os.unlink(path)


@attempt("P1")
def write_outside_anywhere() -> None:
    """Find any writable directory outside the program's own, by walking the whole root."""
    for root, directories, _ in os.walk("/", onerror=None):
        if root.startswith((*OWN, "/proc")):
            directories.clear()
            continue
        if os.access(root, os.W_OK):
            raise Reached(f"{root} is writable")
        if root.count("/") > 4:
            directories.clear()


@attempt("P1")
def change_system_files() -> None:
    """Change mode, owner, time, name or content of system files."""
    for path in ("/usr/bin/env", "/etc/passwd", "/usr", "/", "/etc"):
        with refused(f"chmod {path}"):
            os.chmod(path, 0o777)
        with refused(f"chown {path}"):
            os.chown(path, os.getuid(), os.getgid())
        with refused(f"utime {path}"):
            os.utime(path, (0, 0))
        with refused(f"rename {path}"):
            os.rename(path, "/tmp/taken")
        with refused(f"setxattr {path}"):
            os.setxattr(path, "user.x", b"y")
    with refused("/usr/bin/env was opened for writing"):
        os.close(os.open("/usr/bin/env", os.O_WRONLY))


@attempt("P5")
def link_system_files() -> None:
    """Make a hard link to a system file in one's own directory."""
    for path in ("/usr/bin/env", "/etc/passwd"):
        with refused(f"link to {path}"):
            os.link(path, "/work/linked")


def _is_mask(point: str, options: list[str]) -> bool:
    """Whether it only hides part of /proc, as runc does it: /dev/null, or empty for ever."""
    if not point.startswith("/proc/"):
        return False
    about = os.stat(point)
    if stat.S_ISCHR(about.st_mode):
        return about.st_rdev == os.makedev(1, 3)
    return "ro" in options and stat.S_ISDIR(about.st_mode) and not os.listdir(point)


@attempt("P1", quick=True)
def set_user_id_programs() -> None:
    """Gain anything from set-user-id programs: every mount must be nosuid."""
    with open("/proc/self/mountinfo") as file:
        for line in file:
            options = line.split()[5].split(",")
            if "nosuid" not in options and not _is_mask(line.split()[4], options):
                raise Reached(f"{line.split()[4]} is mounted without nosuid")


@attempt("P1")
def devices_on_mounts() -> None:
    """Use a device file anywhere but in /dev."""
    with open("/proc/self/mountinfo") as file:
        for line in file:
            point, options = line.split()[4], line.split()[5].split(",")
            outside = not point.startswith("/dev") and not _is_mask(point, options)
            if "nodev" not in options and outside:
                raise Reached(f"{point} is mounted without nodev")


@attempt("P1", quick=True)
def devices_beyond_the_minimum() -> None:
    """See a device beyond null, zero, full, random, urandom and the terminal."""
    minimal = {"null", "zero", "full", "random", "urandom", "tty", "ptmx"}
    for root, _, names in os.walk("/dev"):
        if root.startswith("/dev/shm"):
            continue
        for name in names:
            mode = os.lstat(os.path.join(root, name)).st_mode
            if (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and name not in minimal:
                raise Reached(f"{root}/{name}")


@attempt("P1")
def make_a_device() -> None:
    """Make a device file for memory or a disk."""
    for kind, major, minor in ((stat.S_IFCHR, 1, 1), (stat.S_IFBLK, 8, 0), (stat.S_IFBLK, 254, 0)):
        for place in OWN:
            with refused(f"device {major}:{minor} was made in {place}"):
                os.mknod(f"{place}/device", kind | 0o666, os.makedev(major, minor))


@attempt("P1", quick=True)
def kernel_interfaces_in_proc() -> None:
    """Read or write what /proc shows of the kernel."""
    unreadable("/proc/kcore", "/proc/kmsg", "/proc/sched_debug",
               "/proc/timer_list", "/proc/keys", "/proc/key-users", "/proc/latency_stats",
               "/proc/acpi", "/proc/scsi")  # fmt: skip
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe",
                 "/proc/sys/vm/drop_caches", "/proc/sys/fs/binfmt_misc/register",
                 "/proc/irq/0/smp_affinity", "/proc/sysrq-trigger", "/proc/sys/kernel/hostname",
                 "/proc/sys/user/max_user_namespaces", "/proc/mtrr",
                 "/proc/sys/net/ipv4/ip_forward", "/proc/bus/pci/00"):  # fmt: skip
        with refused(f"{path} was opened for writing"):
            os.close(os.open(path, os.O_WRONLY))
    # Everybody may open his own maps; to change them, once they are set, nobody may.
    for path in ("/proc/self/uid_map", "/proc/self/gid_map"):
        with refused(f"{path} was written"), open(path, "w") as file:
            file.write("0 0 1")


@attempt("P1")
def up_and_out() -> None:
    """Leave the root through .., /proc/*/root, /proc/*/cwd or an open descriptor."""
    inside = os.stat("/")
    for path in (
        "/..",
        "/../../../..",
        "/proc/self/root",
        "/proc/1/root",
        "/proc/1/cwd",
        "/proc/self/cwd/../..",
    ):
        try:
            found = os.stat(path)
        except OSError:
            continue
        if (found.st_dev, found.st_ino) != (inside.st_dev, inside.st_ino):
            names = os.listdir(path)
            if set(names) - set(os.listdir("/")):
                raise Reached(f"{path} shows {sorted(names)[:8]}")


@attempt("P7")
def secrets_of_the_service() -> None:
    """Find a file of the service itself: its data, keys, configuration or source."""
    words = (b"SIGNING_KEY=", b"API_KEYS=", b"DATABASE_URL=")
    for root, directories, names in os.walk("/"):
        if root.startswith(("/proc", "/usr", "/opt/python", "/work/attempts", "/sys", "/opt/go")):
            directories.clear()
            continue
        for name in names:
            path = os.path.join(root, name)
            try:
                if stat.S_ISREG(os.lstat(path).st_mode) and _mentions(path, words):
                    raise Reached(path)
            except OSError:
                continue


def _mentions(path: str, words: tuple[bytes, ...]) -> bool:
    with open(path, "rb") as file:
        content = file.read(1 << 20)
    return any(word in content for word in words)


@attempt("P6")
def quotas_by_user() -> None:
    """Meet another user's files by sharing a user id: nothing foreign is owned by this one."""
    for root, directories, names in os.walk("/", followlinks=False):
        if root.startswith((*OWN, "/proc")) or root.count("/") > 3:
            directories.clear()
            continue
        for name in (*directories, *names):
            path = os.path.join(root, name)
            try:
                owner = os.lstat(path).st_uid
            except OSError:
                continue
            if owner == os.getuid() and not path.startswith(("/dev", *OWN)) and path != "/proc":
                raise Reached(f"{path} belongs to this user")
