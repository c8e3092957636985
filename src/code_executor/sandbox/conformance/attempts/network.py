"""No network: not the world's, not the host's, not its loopback."""

from __future__ import annotations

import os
import socket
import struct

from .harness import Reached, attempt, refused

HOST_PORTS = (22, 53, 80, 111, 443, 631, 2375, 3306, 5432, 6379, 8000, 8080, 9090)
"""Where services of the host commonly listen; the last but one is this service's own port."""


@attempt("P1", quick=True)
def no_interface_but_a_loopback() -> None:
    """See a network interface that leads somewhere."""
    try:
        names = {name for _, name in socket.if_nameindex()}
    except OSError:
        names = set()
    with open("/proc/self/net/dev") as file:
        names |= {line.split(":")[0].strip() for line in file.readlines()[2:]}
    if extra := names - {"lo"}:
        raise Reached(f"interfaces {sorted(extra)}")


@attempt("P1", quick=True)
def connect_to_the_host() -> None:
    """Connect to a service of the host over its loopback."""
    for port in HOST_PORTS:
        with socket.socket() as client, refused(f"connected to port {port}"):
            client.settimeout(0.5)
            client.connect(("127.0.0.1", port))


@attempt("P1", quick=True)
def connect_to_the_world() -> None:
    """Send a datagram or open a connection to another machine."""
    for address in (
        "1.1.1.1",
        "8.8.8.8",
        "10.0.0.1",
        "172.17.0.1",
        "192.168.0.1",
        "169.254.169.254",
    ):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, refused(f"sent to {address}"):
            udp.sendto(b"x", (address, 53))
        with socket.socket() as tcp, refused(f"connected to {address}"):
            tcp.settimeout(0.5)
            tcp.connect((address, 80))


@attempt("P1")
def connect_over_ipv6() -> None:
    """The same over IPv6."""
    for address in ("::1", "2606:4700:4700::1111", "fe80::1"):
        with refused(f"connected to {address}"), socket.socket(socket.AF_INET6) as tcp:
            tcp.settimeout(0.5)
            tcp.connect((address, 80))


@attempt("P1")
def resolve_a_name() -> None:
    """Resolve a name of the internet."""
    with refused("example.com has an address"):
        socket.getaddrinfo("example.com", 80)


@attempt("P1")
def raw_and_packet_sockets() -> None:
    """Open raw, packet and other privileged sockets."""
    kinds = [
        (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        (socket.AF_INET6, socket.SOCK_RAW, 58),
        (socket.AF_PACKET, socket.SOCK_RAW, 0x0300),
        (socket.AF_PACKET, socket.SOCK_DGRAM, 0x0300),
    ]
    for family, kind, protocol in kinds:
        with refused(f"socket({family}, {kind}, {protocol})"):
            socket.socket(family, kind, protocol).close()


@attempt("P1")
def rare_socket_families() -> None:
    """Open sockets of the families through which kernels were broken."""
    families = {
        "AF_ALG": 38, "AF_VSOCK": 40, "AF_XDP": 44, "AF_CAN": 29, "AF_BLUETOOTH": 31, "AF_TIPC": 30,
        "AF_RXRPC": 33, "AF_RDS": 21, "AF_KEY": 15, "AF_APPLETALK": 5, "AF_X25": 9, "AF_AX25": 3,
        "AF_NFC": 39, "AF_KCM": 41, "AF_QIPCRTR": 42, "AF_SMC": 43, "AF_PHONET": 35, "AF_LLC": 26,
    }  # fmt: skip
    for name, family in families.items():
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RAW):
            with refused(name):
                socket.socket(family, kind, 0).close()


@attempt("P1")
def netlink_beyond_routes() -> None:
    """Talk to the kernel over netlink: audit, netfilter, uevents, generic, xfrm."""
    for protocol in (4, 6, 9, 12, 15, 16, 21):
        with refused(f"netlink protocol {protocol}"):
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol).close()


@attempt("P1")
def abstract_sockets_of_the_host() -> None:
    """See abstract unix sockets that somebody else has bound."""
    with open("/proc/self/net/unix") as file:
        foreign = [line.split()[-1] for line in file.readlines()[1:] if "@" in line]
    if foreign:
        raise Reached(f"sockets {foreign}")
    for name in ("/tmp/.X11-unix/X0", "/tmp/dbus", "/run/containerd/s/x"):
        with socket.socket(socket.AF_UNIX) as client, refused(f"connected to @{name}"):
            client.connect("\0" + name)


@attempt("P1")
def sockets_in_the_file_system() -> None:
    """Connect to a daemon of the host through its socket file."""
    for path in ("/run/docker.sock", "/var/run/docker.sock", "/run/dbus/system_bus_socket",
                 "/run/containerd/containerd.sock", "/run/systemd/private",
                 "/run/snapd.socket"):  # fmt: skip
        with socket.socket(socket.AF_UNIX) as client, refused(f"connected to {path}"):
            client.connect(path)


@attempt("P1")
def bring_an_interface_up() -> None:
    """Configure the loopback interface or make a tunnel."""
    import fcntl

    with refused("the loopback interface was configured"), socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS
    with refused("/dev/net/tun was opened"):
        os.close(os.open("/dev/net/tun", os.O_RDWR))


@attempt("P1")
def listen_for_others() -> None:
    """Bind a privileged port."""
    with refused("port 80 was bound"), socket.socket() as server:
        server.bind(("0.0.0.0", 80))
