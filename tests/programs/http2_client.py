"""Asks a gateway by HTTP/2, frame by frame: http2_client.py (check | drain) ADDRESS CA

`check` tries what a client may do, and ends with an error where the answer is not what it has to be. `drain` asks for
something that takes long, says so, and tells how the connection came to its end.
"""

import socket
import ssl
import sys

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings

FILES = "files.example.com"
GRPC = "grpc.example.com"
MEBIBYTE = bytes(number % 251 for number in range(1 << 20))
LIMIT = 20  # seconds that a word of the gateway may take


class Answer:
    """What came on a stream so far."""

    def __init__(self):
        self.headers = {}
        self.body = bytearray()
        self.trailers = {}
        self.ended = False
        self.reset = None
        self.held = 0  # bytes for which no window was given back

    @property
    def status(self):
        return int(self.headers.get(":status", 0))


class Patient(h2.connection.H2Connection):
    """Goes on when it is told to come no more, as RFC 9113 (6.8) has it; the library's own does not."""

    def _receive_goaway_frame(self, frame):
        event = h2.events.ConnectionTerminated()
        event.error_code, event.last_stream_id = frame.error_code, frame.last_stream_id
        return [], [event]


class Client:
    """One connection."""

    def __init__(self, address, ca, host, window=65535):
        context = ssl.create_default_context(cafile=ca)
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection((address, 443), timeout=LIMIT)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(plain, server_hostname=host)
        assert self.socket.selected_alpn_protocol() == "h2"
        self.host = host
        self.answers = {}
        self.holding = set()  # streams that get no window
        self.pongs = 0
        self.goaway = None
        self.closed = False
        config = h2.config.H2Configuration(header_encoding="utf-8")
        self.h2 = Patient(config=config)
        first = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        self.h2.local_settings = h2.settings.Settings(client=True, initial_values=first)
        self.h2.initiate_connection()
        self.flush()

    def flush(self):
        data = self.h2.data_to_send()
        if data:
            self.socket.sendall(data)

    def read(self):
        """Takes what has come; waits for it."""
        data = self.socket.recv(65536)
        if not data:
            self.closed = True
        for event in self.h2.receive_data(data) if data else []:
            self.take(event)
        self.flush()

    def take(self, event):
        answer = self.answers.get(getattr(event, "stream_id", None))
        if isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = event
        elif isinstance(event, h2.events.PingAckReceived):
            self.pongs += 1
        elif answer is None:
            return
        elif isinstance(event, h2.events.ResponseReceived):
            answer.headers = dict(event.headers)
        elif isinstance(event, h2.events.TrailersReceived):
            answer.trailers = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            answer.body += event.data
            answer.held += event.flow_controlled_length
            if event.stream_id not in self.holding:
                self.give(event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            answer.ended = True
        elif isinstance(event, h2.events.StreamReset):
            answer.reset = event.error_code

    def give(self, stream):
        """Lets as much come as has come."""
        answer = self.answers[stream]
        if answer.held:
            self.h2.acknowledge_received_data(answer.held, stream)
            answer.held = 0

    def begin(self, method, path, headers=(), end=True):
        stream = self.h2.get_next_available_stream_id()
        self.answers[stream] = Answer()
        head = [(":method", method), (":scheme", "https"), (":authority", self.host), (":path", path)]
        self.h2.send_headers(stream, head + list(headers), end_stream=end)
        self.flush()
        return stream

    def send(self, stream, data, end=True):
        """As fast as the gateway's windows let it."""
        while data:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room == 0:
                self.read()
                continue
            self.h2.send_data(stream, data[:room])
            data = data[room:]
            self.flush()
        if end:
            self.h2.end_stream(stream)
            self.flush()

    def wait(self, done):
        while not done():
            assert not self.closed, f"the gateway has hung up: {self.goaway}"
            self.read()

    def finish(self, stream):
        answer = self.answers[stream]
        self.wait(lambda: answer.ended or answer.reset is not None)
        return answer

    def get(self, path, headers=()):
        answer = self.finish(self.begin("GET", path, headers))
        assert answer.reset is None, answer.reset
        return answer


def bodies_go_both_ways_as_windows_allow(connect):
    client = connect(FILES, window=20_000)
    stream = client.begin("PUT", "/h2", [("content-length", str(len(MEBIBYTE)))], end=False)
    client.send(stream, MEBIBYTE)
    answer = client.finish(stream)
    assert answer.status in (201, 204), answer.headers
    # An answer that nobody reads stops at its own window, and no other does.
    held = client.begin("GET", "/h2")
    client.holding.add(held)
    client.wait(lambda: len(client.answers[held].body) == 20_000)
    assert client.get("/client").status == 200
    assert len(client.answers[held].body) == 20_000 and not client.answers[held].ended
    client.holding.remove(held)
    client.give(held)
    client.flush()
    assert client.finish(held).body == MEBIBYTE


def many_streams_share_a_connection(connect):
    client = connect(FILES)
    streams = [client.begin("GET", f"/client?{number}") for number in range(100)]
    for stream in streams:
        assert client.finish(stream).status == 200
    assert client.goaway is None


def a_stream_that_is_reset_is_alone_in_it(connect):
    client = connect(FILES)
    for _ in range(10):
        kept = client.begin("GET", "/h2")
        left = client.begin("GET", "/h2")
        client.wait(lambda: client.answers[left].body)
        client.h2.reset_stream(left, h2.errors.ErrorCodes.CANCEL)
        # What is on its way still takes of the connection's window; the library gives that back.
        answer = client.finish(kept)
        assert answer.status == 200 and answer.body == MEBIBYTE
    assert client.goaway is None


def pings_are_answered(connect):
    client = connect(FILES)
    client.h2.ping(b"12345678")
    client.flush()
    client.wait(lambda: client.pongs == 1)


def trailers_end_answers_and_requests(connect):
    client = connect(GRPC)
    head = [("content-type", "application/grpc"), ("te", "trailers")]
    stream = client.begin("POST", "/site.Echo/Once", head, end=False)
    client.send(stream, b"\0\0\0\0\5hello")
    answer = client.finish(stream)
    assert answer.status == 200 and answer.body[5:] == b"hello", answer.headers
    assert answer.trailers["grpc-status"] == "0" and answer.trailers["x-end"] == "reached"
    client = connect(FILES)
    stream = client.begin("PUT", "/trailers", end=False)
    client.send(stream, b"with trailers", end=False)
    client.h2.send_headers(stream, [("x-checksum", "17")], end_stream=True)
    client.flush()
    assert client.finish(stream).status in (201, 204)
    assert client.get("/trailers").body == b"with trailers"


def a_head_that_is_too_long_is_refused(connect):
    client = connect(FILES)
    assert client.get("/client", [("x-long", "x" * 7_000)]).status == 200
    long = [(f"x-{number}", "x" * 1000) for number in range(60)]
    answer = client.finish(client.begin("GET", "/client", long))
    assert answer.reset is not None or answer.status == 431, answer.headers
    assert client.get("/client").status == 200


def drain(connect):
    client = connect(FILES)
    stream = client.begin("GET", "/echo?msg=late&delay=500")
    # Who answers this has read what came before.
    client.h2.ping(b"12345678")
    client.flush()
    client.wait(lambda: client.pongs == 1)
    print("asked", flush=True)
    client.wait(lambda: client.goaway is not None)
    answer = client.finish(stream)
    while not client.closed:
        client.read()
    print(client.goaway.error_code, answer.status, answer.body.decode())


def main():
    what, address, ca = sys.argv[1:]

    def connect(host, **more):
        return Client(address, ca, host, **more)

    if what == "drain":
        return drain(connect)
    for check in (
        bodies_go_both_ways_as_windows_allow,
        many_streams_share_a_connection,
        a_stream_that_is_reset_is_alone_in_it,
        pings_are_answered,
        trailers_end_answers_and_requests,
        a_head_that_is_too_long_is_refused,
    ):
        check(connect)


main()
