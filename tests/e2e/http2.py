"""Just enough HTTP/2 to misbehave: raw frames on a socket."""

import socket
import struct
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ACK = 1
ENHANCE_YOUR_CALM = 0xb


def frame(kind, payload=b"", flags=0, stream=0):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class Connection:
    """A connection that has said hello; frames are read as (kind, flags, payload)."""

    def __init__(self, target):
        host, port = target.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self._bytes = b""
        self.socket.sendall(PREFACE + frame(SETTINGS))

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.socket.close()

    def ping(self, number):
        self.socket.sendall(frame(PING, struct.pack(">Q", number)))

    def _read(self, size):
        while len(self._bytes) < size:
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionError("the server closed the connection")
            self._bytes += more
        taken, self._bytes = self._bytes[:size], self._bytes[size:]
        return taken

    def read(self):
        header = self._read(9)
        size = struct.unpack(">I", b"\0" + header[:3])[0]
        kind, flags = header[3], header[4]
        return kind, flags, self._read(size)

    def wait_for(self, wanted, flags=None, seconds=20):
        """The payload of the first frame of that kind (and flags)."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            kind, got_flags, payload = self.read()
            if kind == wanted and (flags is None or got_flags == flags):
                return payload
        raise TimeoutError(f"no frame of kind {wanted} in {seconds} s")

    def settings(self):
        """What the server announces: {identifier: value}."""
        payload = self.wait_for(SETTINGS, flags=0)
        return dict(struct.unpack(">HI", payload[at:at + 6]) for at in range(0, len(payload), 6))
