"""No kernel interface beyond what honest programs use."""

from __future__ import annotations

import ctypes
import fcntl
import os

from .harness import REFUSALS, Reached, attempt, forbidden, refused, syscall

NAMESPACES = {
    "mount": 0x00020000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000,
    "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000, "time": 0x00000080,
}  # fmt: skip
AT_FDCWD = -100


@attempt("P1", quick=True)
def new_namespaces() -> None:
    """Make a new namespace: a user namespace is the door to most kernel bugs."""
    for name, flag in NAMESPACES.items():
        if (code := syscall("unshare", flag)) not in REFUSALS:
            raise Reached(f"unshare of the {name} namespace: {code}")


@attempt("P1")
def clone_into_namespaces() -> None:
    """The same through clone and clone3."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = 220 if os.uname().machine == "aarch64" else 56
    for name, flag in NAMESPACES.items():
        if name == "time":  # clone reads these bits as a signal number
            continue
        pid = libc.syscall(number, ctypes.c_ulong(flag | 17), 0, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        if pid > 0:
            os.waitpid(pid, 0)
            raise Reached(f"clone into a new {name} namespace")
    arguments = (ctypes.c_uint64 * 11)(NAMESPACES["user"], 0, 0, 0, 17)
    number = 435
    pid = libc.syscall(number, ctypes.byref(arguments), ctypes.sizeof(arguments))
    if pid == 0:
        os._exit(0)
    if pid > 0:
        os.waitpid(pid, 0)
        raise Reached("clone3 into a new user namespace")


@attempt("P1")
def enter_a_namespace() -> None:
    """Enter another namespace."""
    descriptor = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        forbidden("setns", descriptor, 0)
    finally:
        os.close(descriptor)


@attempt("P1", quick=True)
def mounting() -> None:
    """Mount, unmount, remount or move anything, by the old calls or the new ones."""
    forbidden("mount", b"none", b"/tmp", b"tmpfs", 0, 0)
    forbidden("mount", b"/", b"/tmp", 0, 4096, 0)  # MS_BIND
    forbidden("mount", b"none", b"/usr", 0, 4096 | 32, 0)  # MS_BIND | MS_REMOUNT
    forbidden("umount2", b"/proc", 2)
    forbidden("pivot_root", b"/tmp", b"/tmp")
    forbidden("fsopen", b"tmpfs", 0)
    forbidden("open_tree", AT_FDCWD, b"/", 1)
    forbidden("move_mount", AT_FDCWD, b"/", AT_FDCWD, b"/tmp", 0)
    forbidden("fspick", AT_FDCWD, b"/", 0)
    forbidden("mount_setattr", AT_FDCWD, b"/", 0, 0, 0)


@attempt("P1")
def change_the_root() -> None:
    """Change the root directory."""
    forbidden("chroot", b"/tmp")


@attempt("P1", quick=True)
def dangerous_subsystems() -> None:
    """Reach bpf, perf, keys, io_uring, userfaultfd: where kernels break."""
    forbidden("bpf", 0, 0, 0)
    forbidden("perf_event_open", 0, 0, -1, -1, 0)
    forbidden("io_uring_setup", 1, 0)
    forbidden("io_uring_enter", -1, 0, 0, 0, 0, 0)
    forbidden("io_uring_register", -1, 0, 0, 0)
    forbidden("userfaultfd", 0)
    forbidden("userfaultfd", 1)
    forbidden("memfd_secret", 0)
    forbidden("fanotify_init", 0, 0)


@attempt("P6", quick=True)
def kernel_keys() -> None:
    """Use the kernel's keys, which are shared by user id."""
    forbidden("add_key", b"user", b"name", b"x", 1, -3)
    forbidden("request_key", b"user", b"name", 0, 0)
    forbidden("keyctl", 0, -3, 0)


@attempt("P1")
def modules_and_kernels() -> None:
    """Load a module or another kernel, stop the machine, or change what it is."""
    forbidden("init_module", 0, 0, b"")
    forbidden("finit_module", -1, b"", 0)
    forbidden("delete_module", b"x", 0)
    forbidden("kexec_load", 0, 0, 0, 0)
    forbidden("kexec_file_load", -1, -1, 0, 0, 0)
    forbidden("reboot", 0, 0, 0, 0)
    forbidden("swapon", b"/tmp/none", 0)
    forbidden("acct", b"/tmp/none")
    forbidden("quotactl", 0, 0, 0, 0)
    forbidden("syslog", 3, 0, 0)


@attempt("P1")
def clocks_and_names() -> None:
    """Set the clock or the host's name."""
    forbidden("settimeofday", 0, 0)
    forbidden("clock_settime", 0, 0)
    forbidden("sethostname", b"x", 1)


@attempt("P1")
def files_by_handle() -> None:
    """Open files by handle, past the root directory."""
    forbidden("name_to_handle_at", AT_FDCWD, b"/", 0, 0, 0)
    forbidden("open_by_handle_at", AT_FDCWD, 0, 0)


@attempt("P1")
def personalities() -> None:
    """Take a personality that weakens the address space layout."""
    for persona in (0x0040000, 0x0100000, 0x0400000, 0x0020000 | 0x8):
        code = syscall("personality", persona)
        if code not in REFUSALS:
            raise Reached(f"personality {persona:#x}: {code}")


@attempt("P1")
def type_into_a_terminal() -> None:
    """Push characters into the terminal that the service was started from."""
    for number in (0x5412, 0x541C, 0x100005412):  # TIOCSTI, TIOCLINUX, and bits the kernel ignores
        for descriptor in (0, 1, 2):
            libc = ctypes.CDLL(None, use_errno=True)
            ctypes.set_errno(0)
            done = libc.ioctl(descriptor, ctypes.c_ulong(number), ctypes.create_string_buffer(b"x"))
            if done == 0 or ctypes.get_errno() not in REFUSALS:
                raise Reached(f"ioctl {number:#x} on {descriptor}: errno {ctypes.get_errno()}")
    with refused("/dev/tty was opened"):
        os.close(os.open("/dev/tty", os.O_RDWR))


@attempt("P1")
def foreign_architecture() -> None:
    """Call the kernel through another architecture's door (int 0x80): the caller must die."""
    if os.uname().machine != "x86_64":
        return
    import mmap

    code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20 (getpid); int 0x80; ret
    if (pid := os.fork()) == 0:
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        got = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
        os._exit(0 if got > 0 else 1)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
        raise Reached("int 0x80 answered")


@attempt("P1")
def x32_calls() -> None:
    """Call the kernel by x32 numbers."""
    if os.uname().machine != "x86_64":
        return
    if (pid := os.fork()) == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        os._exit(0 if libc.syscall(0x40000000 + 39) > 0 else 1)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
        raise Reached("an x32 call answered")


@attempt("P1")
def weaken_the_filter() -> None:
    """Turn no_new_privs off or leave the seccomp mode."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 0, 0, 0, 0) == 0 and libc.prctl(39, 0, 0, 0, 0) != 1:
        raise Reached("no_new_privs was turned off")
    if libc.prctl(22, 0, 0, 0, 0) == 0:
        raise Reached("seccomp was turned off")


@attempt("P1")
def control_tracing() -> None:
    """Write to the kernel's tracing or debugging file systems."""
    for path in ("/sys/kernel/debug", "/sys/kernel/tracing", "/sys/fs/bpf", "/sys/kernel/security"):
        with refused(f"{path} can be listed"):
            os.listdir(path)


@attempt("P4")
def large_pipes() -> None:
    """Grow a pipe past the system's limit for users."""
    reader, writer = os.pipe()
    with refused("a pipe of 64 MiB"):
        fcntl.fcntl(writer, 1031, 64 << 20)  # F_SETPIPE_SZ
    os.close(reader)
    os.close(writer)
