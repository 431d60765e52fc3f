"""A gRPC server and a client of it, whose messages are bytes: grpc_echo.py (serve PORT | check ADDRESS CA CLIENT)"""

import collections
import os
import sys
import threading
from concurrent import futures

import grpc

HOST = "grpc.example.com"
LIMIT = 20  # seconds that a call may take


class Echo:
    """The methods of site.Echo."""

    def __init__(self):
        # By what clients call themselves.
        self.come = collections.defaultdict(threading.Event)
        self.left = collections.defaultdict(threading.Event)

    def once(self, request, context):
        context.set_trailing_metadata([("x-end", "reached")])
        return request

    def client(self, _, context):
        """Who asks, as the server is told."""
        told = dict(context.invocation_metadata())
        return f"{told.get('x-forwarded-for')} {told.get('x-mine')}".encode()

    def many(self, request, _):
        number, size = map(int, request.split())
        for _ in range(number):
            yield b"x" * size

    def talk(self, requests, _):
        for request in requests:
            yield request.upper()

    def fail(self, request, context):
        yield request
        context.set_trailing_metadata([("x-hint-bin", b"\0\xff")])
        context.abort(grpc.StatusCode.NOT_FOUND, "kein Gef\u00e4\u00df")

    def refuse(self, _, context):
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")

    def wait(self, request, context):
        """Until the client has left."""
        context.add_callback(self.left[request].set)
        self.come[request].set()
        self.left[request].wait(LIMIT)
        return request

    def has_come(self, request, _):
        return b"yes" if self.come[request].wait(5) else b"no"

    def has_left(self, request, _):
        return b"yes" if self.left[request].wait(5) else b"no"


def serve(port):
    echo = Echo()
    methods = {
        "Once": grpc.unary_unary_rpc_method_handler(echo.once),
        "Client": grpc.unary_unary_rpc_method_handler(echo.client),
        "Many": grpc.unary_stream_rpc_method_handler(echo.many),
        "Talk": grpc.stream_stream_rpc_method_handler(echo.talk),
        "Fail": grpc.unary_stream_rpc_method_handler(echo.fail),
        "Refuse": grpc.unary_unary_rpc_method_handler(echo.refuse),
        "Wait": grpc.unary_unary_rpc_method_handler(echo.wait),
        "HasCome": grpc.unary_unary_rpc_method_handler(echo.has_come),
        "HasLeft": grpc.unary_unary_rpc_method_handler(echo.has_left),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("site.Echo", methods)])
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    server.wait_for_termination()


def fails(call):
    """The status of a call that has to fail."""
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call did not fail")


def check(address, ca, client):
    with open(ca, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    options = [("grpc.ssl_target_name_override", HOST), ("grpc.default_authority", HOST)]
    with grpc.secure_channel(f"{address}:443", credentials, options) as channel:
        check_calls(channel, client)


def check_calls(channel, client):
    def once(name):
        return channel.unary_unary(f"/site.Echo/{name}")

    big = b"x" * 3_000_000
    answer, call = once("Once").with_call(big, timeout=LIMIT)
    assert answer == big
    assert ("x-end", "reached") in [tuple(pair) for pair in call.trailing_metadata()]
    told = once("Client")(b"", timeout=LIMIT, metadata=[("x-mine", "1")]).decode()
    assert told == f"{client} 1", told

    many = channel.unary_stream("/site.Echo/Many")
    sizes = [len(message) for message in many(b"1000 1000", timeout=LIMIT)]
    assert sizes == [1000] * 1000

    # Each answer comes before the next question is asked.
    turn = threading.Semaphore(0)

    def questions():
        for number in range(50):
            yield b"question %d" % number
            assert turn.acquire(timeout=LIMIT)

    answers = 0
    for answer in channel.stream_stream("/site.Echo/Talk")(questions(), timeout=LIMIT):
        assert answer == b"QUESTION %d" % answers
        answers += 1
        turn.release()
    assert answers == 50

    # An error comes in trailers, after messages or without any.
    messages = []
    call = channel.unary_stream("/site.Echo/Fail")(b"one", timeout=LIMIT)
    error = fails(lambda: [messages.append(message) for message in call])
    assert messages == [b"one"] and error.code() == grpc.StatusCode.NOT_FOUND
    assert error.details() == "kein Gef\u00e4\u00df"
    assert ("x-hint-bin", b"\0\xff") in [tuple(pair) for pair in error.trailing_metadata()]
    error = fails(lambda: once("Refuse")(b"", timeout=LIMIT))
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED and error.details() == "not you"
    error = fails(lambda: once("Missing")(b"", timeout=LIMIT))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED

    # The server hears that nobody waits any more.
    name = b"%d" % os.getpid()
    call = once("Wait").future(name)  # without a deadline, which the server would know of
    assert once("HasCome")(name, timeout=LIMIT) == b"yes"
    call.cancel()
    assert once("HasLeft")(name, timeout=LIMIT) == b"yes"


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    check(*sys.argv[2:])
