"""Functions that look at the container they run in, and some that overstep its limits."""

import os
import socket
import subprocess
import time
import urllib.request

import modal

app = modal.App("containers")


@app.function()
def look() -> dict:
    """Returns what a program sees of its container."""
    return {
        "pid": os.getpid(),
        "uname": " ".join(os.uname()),
        "hostname": socket.gethostname(),
        "environment": dict(os.environ),
        "root": sorted(os.listdir("/")),
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "task": os.environ.get("MODAL_TASK_ID"),
    }


@app.function()
def write_everywhere(mark: str) -> list[str]:
    """Writes into folders of the image and returns where a mark of an earlier container was found."""
    found = []
    for folder in ("/root", "/usr/local", "/tmp", "/etc"):
        path = f"{folder}/mark-of-a-container"
        if os.path.exists(path):
            found.append(path)
        with open(path, "w") as file:
            file.write(mark)
    return found


@app.function(memory=(256, 512))
def eat_memory(mebibytes: int) -> int:
    eaten = []
    for _ in range(mebibytes):
        eaten.append(b"\x01" * (1 << 20))
    return len(eaten)


@app.function(cpu=(0.5, 0.5))
def burn(seconds: float) -> float:
    """Burns one core by the clock and returns the CPU seconds it got per second."""
    begin, used = time.monotonic(), time.process_time()
    while time.monotonic() - begin < seconds:
        pass
    return (time.process_time() - used) / (time.monotonic() - begin)


@app.function(timeout=3)
def too_long(seconds: float) -> str:
    time.sleep(seconds)
    return "not stopped"


@app.function(timeout=3)
def too_long_and_deaf(seconds: float) -> str:
    """Swallows every polite request to stop."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(0.1)
        except BaseException:
            pass
    return "not stopped"


@app.function()
def try_connect(targets: list[tuple[str, int]]) -> dict[str, str]:
    """Returns for each address whether a connection could be made."""
    answers = {}
    for host, port in targets:
        try:
            socket.create_connection((host, port), timeout=2).close()
            answers[f"{host}:{port}"] = "connected"
        except OSError as error:
            answers[f"{host}:{port}"] = type(error).__name__
    return answers


@app.function()
def fetch(url: str) -> int:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.status


@app.function(block_network=True)
def fetch_blocked(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return f"status {answer.status}"
    except OSError as error:
        return type(error).__name__


@app.function(block_network=True)
def measure_blocked(data: bytes) -> int:
    """Takes a payload that is too big for a message, without a network."""
    return len(data)


@app.function()
def channel() -> dict:
    """Returns what a task holds to speak to the node with."""
    return {
        "server": os.environ.get("MODAL_SERVER_URL", ""),
        "secrets": [name for name in os.environ if "TOKEN_ID" in name or "TOKEN_SECRET" in name],
        "mounts": subprocess.run(["cat", "/proc/mounts"], capture_output=True, text=True).stdout,
    }


@app.function()
def call_rpc(method: str, request: bytes) -> tuple[str, str]:
    """Calls one RPC of the node by the task's own channel and returns the status's name and message."""
    import asyncio
    from urllib.parse import urlparse

    from grpclib.client import Channel
    from grpclib.const import Cardinality
    from grpclib.exceptions import GRPCError

    from modal_proto import api_pb2

    name = method.rsplit("/", 1)[1]
    rpc = api_pb2.DESCRIPTOR.services_by_name["ModalClient"].methods_by_name[name]
    url = urlparse(os.environ["MODAL_SERVER_URL"])

    async def call() -> tuple[str, str]:
        channel = Channel(path=url.path) if url.scheme == "unix" else Channel(url.hostname, url.port)
        input_type, output_type = rpc.input_type._concrete_class, rpc.output_type._concrete_class
        try:
            async with channel.request(
                method,
                Cardinality.UNARY_STREAM if rpc.server_streaming else Cardinality.UNARY_UNARY,
                input_type,
                output_type,
                timeout=10,
                metadata={"x-modal-client-type": "3", "x-modal-client-version": modal.__version__},
            ) as stream:
                await stream.send_message(input_type.FromString(request), end=True)
                await stream.recv_message()
                await stream.recv_trailing_metadata()
            return "OK", ""
        except GRPCError as error:
            return error.status.name, error.message or ""
        finally:
            channel.close()

    return asyncio.run(call())


@app.function()
def die(number: int):
    os.kill(os.getpid(), number)
