"""A page in headless Chromium that keeps a WebSocket: `chromium.py PORT AUTHORITY`. Each line is a path, which the page
fetches, and a message, whose echo it waits for. The protocol is in ../program.rs, but for the port and the version of TLS, of
which a page does not learn: a WebSocket that has closed stays closed."""

import base64
import hashlib
import itertools
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile

port, authority = int(sys.argv[1]), sys.argv[2]

# Chromium asks for an authority in a database of its own. It takes the fingerprint of a key as well (RFC 7469, section 2.4).
context = ssl.create_default_context(cafile=authority)
with context.wrap_socket(socket.create_connection(("localhost", port)), server_hostname="localhost") as server:
    certificate = ssl.DER_cert_to_PEM_cert(server.getpeercert(True)).encode()
key = subprocess.run(["openssl", "x509", "-pubkey", "-noout"], input=certificate, capture_output=True, check=True).stdout
key = subprocess.run(["openssl", "pkey", "-pubin", "-outform", "der"], input=key, capture_output=True, check=True).stdout
fingerprint = base64.b64encode(hashlib.sha256(key).digest()).decode()

# The DevTools protocol: Chromium reads it from descriptor 3 and writes it to 4, with a NUL behind each message.
profile = tempfile.TemporaryDirectory()
(read_commands, commands), (events, write_events) = os.pipe(), os.pipe()
browser = subprocess.Popen(
    ["sh", "-c", f'exec "$@" 3<&{read_commands} 4>&{write_events}', "sh", "chromium", "--headless=new", "--no-sandbox",
     "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={profile.name}",
     f"--ignore-certificate-errors-spki-list={fingerprint}"],
    pass_fds=(read_commands, write_events), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
)
os.close(read_commands)
os.close(write_events)
numbers, pending = itertools.count(1), bytearray()


def command(method, session=None, **parameters):
    number = next(numbers)
    message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
    os.write(commands, json.dumps(message).encode() + b"\0")
    while True:
        while b"\0" not in pending:
            pending.extend(os.read(events, 1 << 16) or sys.exit("Chromium has ended"))
        answer, _, rest = bytes(pending).partition(b"\0")
        pending[:] = rest
        answer = json.loads(answer)
        if answer.get("id") == number:
            return answer["result"] if "result" in answer else sys.exit(f"{method}: {answer}")


def evaluate(expression):
    answer = command("Runtime.evaluate", page, expression=expression, awaitPromise=True, returnByValue=True)
    return answer["result"].get("value") if "exceptionDetails" not in answer else sys.exit(f"{expression}: {answer}")


target = command("Target.createTarget", url="about:blank")["targetId"]
page = command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
command("Page.navigate", page, url=f"https://localhost:{port}/")
evaluate("""new Promise(loaded => document.readyState == 'complete' ? loaded() : addEventListener('load', loaded))""")
evaluate(
    """new Promise((opened, failed) => {
        socket = new WebSocket(`wss://${location.host}/app/socket`)
        socket.onopen = opened
        socket.onclose = event => failed(`the WebSocket was closed: ${event.code}`)
    })"""
)
try:
    for line in map(str.strip, sys.stdin):
        status = evaluate(
            """new Promise(async (done, failed) => {
                socket.onclose = event => failed(`the WebSocket was closed: ${event.code}`)
                if (socket.readyState != WebSocket.OPEN) socket.onclose({code: "some time ago"})
                const echo = new Promise(heard => { socket.onmessage = event => heard(event.data) })
                socket.send(%(line)s)
                if (await echo != %(line)s) failed(`${await echo} is no echo`)
                fetch(%(line)s).then(answer => answer.text().then(() => done(answer.status)), failed)
            })"""
            % {"line": json.dumps(line)}
        )
        print(status, 0, "unknown", flush=True)
finally:
    os.close(commands)  # it ends with its pipe
    browser.wait(20)
