"""A WebSocket over TLS (RFC 6455): `websocket.py PORT AUTHORITY`. Each line is a message, whose echo is waited for. The
protocol is in ../program.rs."""

import base64
import hashlib
import os
import socket
import ssl
import sys

port, authority = int(sys.argv[1]), sys.argv[2]
context = ssl.create_default_context(cafile=authority)
connection = context.wrap_socket(socket.create_connection(("localhost", port), timeout=60), server_hostname="localhost")
received = connection.makefile("rb")

key = base64.b64encode(os.urandom(16)).decode()
connection.sendall(
    f"GET /app/socket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
)
head = b"".join(iter(received.readline, b"\r\n")).decode()
accepted = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
assert head.startswith("HTTP/1.1 101 ") and base64.b64encode(accepted).decode() in head, head

for line in sys.stdin:
    message, mask = line.strip().encode(), os.urandom(4)
    assert len(message) < 126
    masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(message))
    connection.sendall(bytes([0x81, 0x80 | len(message)]) + mask + masked)
    echo = received.read(2 + len(message))
    assert echo == bytes([0x81, len(message)]) + message, echo
    print(101, connection.getsockname()[1], connection.version(), flush=True)
