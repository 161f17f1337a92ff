"""Python's `http.client`: `client.py PORT AUTHORITY`. The protocol is in ../program.rs."""

import http.client
import ssl
import sys

port, authority = int(sys.argv[1]), sys.argv[2]
connection = http.client.HTTPSConnection("localhost", port, context=ssl.create_default_context(cafile=authority), timeout=60)
connection.connect()
connection.auto_open = 0  # what has closed stays closed
for path in sys.stdin:
    connection.request("GET", path.strip())
    answer = connection.getresponse()
    answer.read()
    print(answer.status, connection.sock.getsockname()[1], connection.sock.version(), flush=True)
