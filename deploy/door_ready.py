"""The door's health check: does the engine answer through this socket?"""

import socket
import sys

with socket.socket(socket.AF_UNIX) as door:
    door.settimeout(3)
    door.connect(sys.argv[1])
    door.sendall(b"GET /_ping HTTP/1.1\r\nHost: engine\r\n\r\n")
    sys.exit(not door.recv(64).startswith(b"HTTP/1.1 200 "))
