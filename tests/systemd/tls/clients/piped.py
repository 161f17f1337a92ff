"""A TLS client of the command line, driven by its pipes: `piped.py PORT AUTHORITY TOOL`. A line that is no path is one of
the tool's own commands. The protocol is in ../program.rs."""

import os
import re
import subprocess
import sys
import threading

port, authority, tool = sys.argv[1:]

# Each tool's command line, and its commands: what is written, and what it says when that is done.
TOOLS = {
    "openssl": (
        ["openssl", "s_client", "-brief", "-connect", f"127.0.0.1:{port}", "-servername", "localhost",
         "-CAfile", authority, "-verify_return_error", "-verify_hostname", "localhost"],
        # New keys for what it sends; with a capital the server is asked for the same (s_client(1), "CONNECTED COMMANDS").
        {"k": (b"k\n", b"KEYUPDATE"), "K": (b"K\n", b"KEYUPDATE")},
    ),
    "gnutls-cli": (
        ["gnutls-cli", "localhost", "--port", port, "--x509cafile", authority, "--inline-commands"],
        {"k": (b"^rekey1^\n", b"Rekey was completed"), "K": (b"^rekey^\n", b"Rekey was completed")},
    ),
}
command, commands = TOOLS[tool]
client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
said = bytearray()
more = threading.Condition()


def listen():
    while piece := os.read(client.stdout.fileno(), 1 << 16):
        with more:
            said.extend(piece)
            more.notify()
    with more:
        print(said.decode(errors="replace"), file=sys.stderr)
        os._exit(1)


def wait_for(pattern):
    """Takes all that was said up to the end of this pattern, and returns the match."""
    expression = re.compile(pattern, re.DOTALL)
    with more:
        more.wait_for(lambda: expression.search(said), timeout=60) or sys.exit(f"no {pattern} in {bytes(said)}")
        match = expression.search(bytes(said))
        del said[: match.end()]
        return match


def local_port():
    """The port of the tool's one connection, by its socket's number. The kernel's table is read in pieces: beside sockets that
    come and go a row may come several times."""
    descriptors = f"/proc/{client.pid}/fd"
    links = [os.readlink(f"{descriptors}/{descriptor}") for descriptor in os.listdir(descriptors)]
    with open(f"/proc/{client.pid}/net/tcp") as file:
        sockets = [line.split() for line in file.readlines()[1:]]
    (local,) = {socket[1] for socket in sockets if f"socket:[{socket[9]}]" in links}
    return int(local.split(":")[1], 16)


threading.Thread(target=listen, daemon=True).start()
version = "TLSv1." + wait_for(rb"TLS-?v?1\.([23])").group(1).decode()
for line in map(str.strip, sys.stdin):
    if line.startswith("/"):
        client.stdin.write(f"GET {line} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        client.stdin.flush()
        head = wait_for(rb"HTTP/1\.1 (\d+)[^\n]*\n.*?\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head.group(), re.IGNORECASE).group(1)
        wait_for(rb".{%d}" % int(length))
        print(head.group(1).decode(), local_port(), version, flush=True)
    else:
        written, done = commands[line]
        client.stdin.write(written)
        client.stdin.flush()
        wait_for(re.escape(done))
        print(line, local_port(), version, flush=True)
