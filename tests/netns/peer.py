"""What clients and real servers do in the namespaces; runs as a program, imports nothing but the standard library.

serve SINK ECHO               TCP sink on SINK: reads to the end, answers with the SHA-256; UDP echo on ECHO
upload HOST PORT BYTES        send BYTES pseudo-random bytes, half-close, read the answer
echo HOST PORT COUNT FLOWS [SIZE]  COUNT UDP request/answer pairs over FLOWS source ports, of up to SIZE (1200) bytes
connect HOST PORT             try to connect, report the error's name
talk HOST PORT                one TCP connection; each line on stdin is an HTTP request on it, answered on stdout by a
line with
                              the body, or with the error's name
ask HOST PORT                 one TCP connection: a question, half-close; prints "asked", then the whole answer
later PORT FILE               a TCP server: reads each question to its end, answers it doubled as soon as FILE is there
frames DEVICE                 sends the frames on stdin (hexadecimal, one a line) as they are
Reports are one JSON object on stdout.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import select
import socket
import sys
import threading
import time


def _sink(connection: socket.socket) -> None:
    with connection:
        digest = hashlib.sha256()
        while chunk := connection.recv(1 << 20):
            digest.update(chunk)
        connection.sendall(digest.hexdigest().encode())


def _quiet_sink(connection: socket.socket) -> None:
    try:
        _sink(connection)
    except OSError:
        connection.close()


def serve(sink_port: int, echo_port: int) -> None:
    def echo() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(("::", echo_port))
            while True:
                data, sender = sock.recvfrom(65536)
                sock.sendto(data, sender)

    threading.Thread(target=echo, daemon=True).start()
    with socket.create_server(("::", sink_port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024) as server:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_quiet_sink, args=(connection,), daemon=True).start()


def upload(host: str, port: int, size: int) -> dict[str, object]:
    block = random.Random(size).randbytes(1 << 20)
    digest = hashlib.sha256()
    with socket.create_connection((host, port), timeout=60) as sock:
        left = size
        while left:
            part = block[: min(left, len(block))]
            sock.sendall(part)
            digest.update(part)
            left -= len(part)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := sock.recv(4096):
            answer += chunk
    return {"sent": digest.hexdigest(), "received": answer.decode()}


def echo(host: str, port: int, count: int, flows: int, size: int = 1200) -> dict[str, object]:
    """A window of one request per flow; an answer not seen within 2 s is lost."""
    socks = []
    for _ in range(flows):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((host, port))
        sock.setblocking(False)
        socks.append(sock)
    answered = wrong = sent = 0
    waiting: dict[socket.socket, bytes] = {}
    idle = list(socks)
    while answered + wrong < count:
        while idle and sent < count:
            sock = idle.pop()
            waiting[sock] = f"{sent}:".encode() + b"x" * (sent * 97 % size)
            sock.send(waiting[sock])
            sent += 1
        ready, _, _ = select.select(list(waiting), [], [], 2.0)
        if not ready:
            break
        for sock in ready:
            try:
                data = sock.recv(65536)
            except OSError:
                data = b""
            if data == waiting.pop(sock):
                answered += 1
            else:
                wrong += 1
            idle.append(sock)
    for sock in socks:
        sock.close()
    return {"sent": sent, "answered": answered, "wrong": wrong}


def connect(host: str, port: int) -> dict[str, object]:
    begin = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=2):
            end = "connected"
    except TimeoutError:
        end = "TIMEOUT"
    except OSError as error:
        end = errno.errorcode.get(error.errno or 0, str(error))
    return {"end": end, "seconds": time.monotonic() - begin}


def talk(host: str, port: int) -> None:
    with socket.create_connection((host, port), timeout=5) as sock:
        print(f"local {sock.getsockname()[1]}", flush=True)
        for _ in sys.stdin:
            try:
                name = f"[{host}]" if ":" in host else host
                sock.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                answer = sock.recv(65536)
                line = answer.rpartition(b"\r\n\r\n")[2].decode().strip() if answer else "closed"
            except TimeoutError:
                line = "TIMEOUT"
            except OSError as error:
                line = errno.errorcode.get(error.errno or 0, str(error))
            print(line, flush=True)


def ask(host: str, port: int) -> None:
    with socket.create_connection((host, port), timeout=5) as sock:
        sock.settimeout(30)
        sock.sendall(b"question")
        sock.shutdown(socket.SHUT_WR)
        print(f"asked {sock.getsockname()[1]}", flush=True)
        answer = b""
        try:
            while chunk := sock.recv(4096):
                answer += chunk
        except OSError as error:
            answer += type(error).__name__.encode()
        print(answer.decode(), flush=True)


def later(port: int, path: str) -> None:
    def wait(connection: socket.socket) -> None:
        with connection:
            question = b""
            while chunk := connection.recv(4096):
                question += chunk
            while not os.path.exists(path):
                time.sleep(0.05)
            connection.sendall(question * 2)

    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=wait, args=(connection,), daemon=True).start()


def frames(device: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((device, 0))
        for line in sys.stdin:
            sock.send(bytes.fromhex(line))


def main(words: list[str]) -> None:
    verb, *rest = words
    if verb == "serve":
        serve(int(rest[0]), int(rest[1]))
    elif verb == "upload":
        print(json.dumps(upload(rest[0], int(rest[1]), int(rest[2]))))
    elif verb == "echo":
        print(json.dumps(echo(rest[0], *map(int, rest[1:]))))
    elif verb == "connect":
        print(json.dumps(connect(rest[0], int(rest[1]))))
    elif verb == "talk":
        talk(rest[0], int(rest[1]))
    elif verb == "ask":
        ask(rest[0], int(rest[1]))
    elif verb == "later":
        later(int(rest[0]), rest[1])
    elif verb == "frames":
        frames(rest[0])


if __name__ == "__main__":
    main(sys.argv[1:])
