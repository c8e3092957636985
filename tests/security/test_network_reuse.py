"""A network namespace used again is as good as new: nothing one run did in it is to be seen.

Runs follow each other in one sandbox at a time, so that each could get the namespace of the one
before. What a program can leave behind takes packets, if only such as have no route; a namespace
that has seen one is not used again (``init/network.c``). The native backend alone does so: every
sandbox of the others has a new one, and ``neighbours.nothing_is_left_for_the_next`` of the
conformance suite looks into it.
"""

from __future__ import annotations

import pytest

from code_executor.ports import Backend
from code_executor.sandbox.conformance.bench import python

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="session")]

LOOK = """
import os
for name in sorted(("dev", "snmp", "snmp6", "netstat", "tcp", "tcp6", "udp", "udp6", "raw", "unix",
                    "sockstat", "route", "ipv6_route", "rt6_stats", "arp", "igmp", "if_inet6",
                    "dev_mcast", "netlink")):
    try: text = open(f"/proc/self/net/{name}").read()
    except OSError as error: text = str(error)
    if name == "unix": text = "".join(l for l in text.splitlines(True) if "@" in l)
    if name in ("sockstat", "netlink"): text = ""  # of all namespaces together, and our own
    print(name, text)
"""

LEAVING = {
    "a port in TIME_WAIT": """
        import socket
        server = socket.create_server(("127.0.0.1", 4711))
        client = socket.create_connection(("127.0.0.1", 4711))
        accepted, _ = server.accept()
        client.sendall(b"x")
        accepted.close(); client.close(); server.close()
    """,
    "a datagram": """
        import socket
        here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); here.bind(("127.0.0.1", 4712))
        there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        there.sendto(b"left for the next", ("127.0.0.1", 4712))
    """,
    "a refused connection": """
        import socket
        try: socket.create_connection(("127.0.0.1", 9))
        except OSError: pass
    """,
    "no route": """
        import socket
        try: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9))
        except OSError: pass
    """,
    "no route, IPv6": """
        import socket
        try: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"x", ("2001:db8::1", 9))
        except OSError: pass
    """,
    "a route of a connected socket, IPv6": """
        import socket
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).connect(("::1", 9))
    """,
    "an abstract socket of a daemon": """
        import os, socket, time
        if os.fork() == 0:
            os.setsid()
            server = socket.socket(socket.AF_UNIX); server.bind("\\0left"); server.listen()
            time.sleep(9)
        time.sleep(0.1)
    """,
    "a listener": """
        import os, socket
        servers = [socket.create_server(("", port)) for port in range(5000, 5020)]
        os._exit(0)
    """,
    "a multicast group": """
        import os, socket
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        try: s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                          socket.inet_aton("224.0.0.9") + socket.inet_aton("127.0.0.1"))
        except OSError: pass
        os._exit(0)
    """,
    "sockets that hold each other, in a circle": """
        import socket
        name = socket.socket(socket.AF_UNIX); name.bind("\\0left"); name.listen()
        port = socket.create_server(("127.0.0.1", 4713))
        pairs = [socket.socketpair() for _ in range(30)]
        for here, there in pairs:
            fds = [here.fileno(), there.fileno(), name.fileno(), port.fileno()]
            socket.send_fds(here, [b"x"], fds)
    """,
    "nothing": "",
}


@pytest.mark.parametrize("left", list(LEAVING))
async def test_the_next_run_sees_nothing_of_it(native: Backend, left: str) -> None:
    first = await python(native, LOOK)
    for _ in range(3):
        assert (await python(native, LEAVING[left])).exit_code == 0
        after = await python(native, LOOK)
        assert after.stdout.data.decode().splitlines() == first.stdout.data.decode().splitlines()
