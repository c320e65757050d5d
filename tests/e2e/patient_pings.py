"""An idle client that pings every 30 s, on a server with its defaults: patient_pings.py [PINGS]."""

import sys
import time

import http2
from server import Server


def run(pings):
    with Server() as server, http2.Connection(server.target) as connection:
        connection.socket.settimeout(90)
        for number in range(pings):
            connection.ping(number)
            answer = connection.wait_for(http2.PING, http2.ACK, seconds=60)
            assert int.from_bytes(answer, "big") == number, answer
            time.sleep(30)
        connection.ping(pings)
        connection.wait_for(http2.PING, http2.ACK, seconds=60)
    print(f"{pings + 1} pings, 30 s apart, all answered")


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
