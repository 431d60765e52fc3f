"""Asks for a URL all the time, and asks another gateway where one fails: persistent_client.py CA HOST PATH ADDRESS...

Ends with standard input, and prints how many requests were answered, how many of them by another than the first that was
asked, and how many by nobody.
"""

import http.client
import itertools
import socket
import ssl
import sys
import threading
import time

PAUSE = 0.01  # seconds
LIMIT = 5


class Gateway:
    """A connection to one, that is made when it is needed."""

    def __init__(self, address, host, context):
        self.address, self.host, self.context = address, host, context
        self.connection = None

    def ask(self, path):
        if self.connection is None:
            plain = socket.create_connection((self.address, 443), timeout=LIMIT)
            secured = self.context.wrap_socket(plain, server_hostname=self.host)
            self.connection = http.client.HTTPConnection(self.host, timeout=LIMIT)
            self.connection.sock = secured
        self.connection.request("GET", path)
        answer = self.connection.getresponse()
        answer.read()
        if answer.will_close:
            self.leave()
        return answer.status

    def leave(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def main():
    ca, host, path, *addresses = sys.argv[1:]
    context = ssl.create_default_context(cafile=ca)
    gateways = [Gateway(address, host, context) for address in addresses]
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    answered = elsewhere = failed = 0
    for first in itertools.count():
        if ended.is_set():
            break
        for number in range(len(gateways)):
            gateway = gateways[(first + number) % len(gateways)]
            try:
                good = gateway.ask(path) == 200
            except (OSError, http.client.HTTPException):
                good = False
            if good:
                answered += 1
                elsewhere += number > 0
                break
            gateway.leave()
        else:
            failed += 1
        time.sleep(PAUSE)
    print(answered, elsewhere, failed)


main()
