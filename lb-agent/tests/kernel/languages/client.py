"""A client as people write them: `client.py tcp|udp|unconnected ADDRESS PORT`.

Prints the other end as it sees it, and what that says. An IPv4 address after "::ffff:" is dialled by
a socket of both families, as a JVM does it with every address.
"""

import errno
import socket
import sys


def main(way, address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if way == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as s:
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        s.settimeout(5)
        if way == "unconnected":
            s.sendto(b"who?\n", (address, int(port)))
            answer, peer = s.recvfrom(256)
        else:
            s.connect((address, int(port)))
            s.sendall(b"who?\n")
            answer, peer = s.recv(256), s.getpeername()
    print(peer[0], peer[1])
    print(answer.decode().strip())


try:
    main(*sys.argv[1:])
except OSError as error:
    sys.exit(errno.errorcode.get(error.errno, str(error)))
