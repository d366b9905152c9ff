"""Bad input: each gets an error that names the thing and the cure, at once, and the node stays up.

What could hurt the node (garbage, floods, a full disk) goes to a node of its own, `rough`. Everything that is random
comes from a seed, which a failure names; SHOAL_TEST_SEED sets it.
"""

import asyncio
import json
import os
import random
import re
import resource
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor
from grpclib.client import Channel
from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from harness import Client, Machine, Node, Token, free_ports, node_environment, wait_for
from modal_proto import api_pb2

SEED = int(os.environ.get("SHOAL_TEST_SEED", "7470"))
pytestmark = pytest.mark.timeout(240)
RPCS = api_pb2.DESCRIPTOR.services_by_name["ModalClient"].methods


@pytest.fixture(scope="module")
def rough(module_folder: Path) -> Iterator[Node]:
    """A node of this module's own, for what may not be done to the shared one."""
    node = Node(module_folder / "data")
    node.start()
    yield node
    node.stop()
    assert not Machine.now(node).since(Machine.nothing())


@pytest.fixture
def rough_client(rough: Node, tmp_path: Path) -> Iterator[Client]:
    """Client processes of the rough node."""
    one = Client(rough, rough.create_token(), tmp_path / "rough-home")
    yield one
    one.close()


def one_line(text: str) -> str:
    """Takes the frames and line ends of the client's error boxes out of a text."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)


def fails(client: Client, *arguments: str, seconds: float = 60) -> str:
    """Runs `modal ARGUMENTS`, which must end with an error and no traceback of the client; returns what it printed."""
    running = client.modal(*arguments)
    assert running.wait(seconds) != 0, running.text()
    assert "Traceback" not in running.text(), running.text()
    return one_line(running.text())


def start_anyway(node: Node, *arguments: str) -> tuple[int, str, float]:
    """Starts another node that cannot start; returns its exit code, what it said and how long it took."""
    began = time.monotonic()
    done = subprocess.run(
        [str(node.binary), "start", *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, env=node_environment(),
    )  # fmt: skip
    return done.returncode, done.stderr, time.monotonic() - began


# What a node is started with.


def test_a_port_in_use(rough, tmp_path):
    """A port that another process has: the answer names it, who has it, and the flag that chooses another."""
    free, other = free_ports(2)
    code, said, seconds = start_anyway(
        rough, "--data", str(tmp_path / "d"), "--api", f"127.0.0.1:{rough.api_port}", "--web", f"127.0.0.1:{free}"
    )
    assert code == 1 and seconds < 20
    assert f"127.0.0.1:{rough.api_port}" in said and "--api" in said and re.search(r"process \d+ \(\S*shoal\S*\)", said), said
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", other))
        taken.listen()
        code, said, _ = start_anyway(rough, "--data", str(tmp_path / "d"), "--api", f"127.0.0.1:{free}", "--web", f"127.0.0.1:{other}")
    assert code == 1 and f"process {os.getpid()} " in said and "--web" in said, said


def test_a_second_node_on_the_same_folder(rough):
    """A data folder has one node: a second is refused at once, told which process has it, and the first goes on."""
    before = rough.child()
    api, web = free_ports(2)
    code, said, seconds = start_anyway(rough, "--data", str(rough.data), "--api", f"127.0.0.1:{api}", "--web", f"127.0.0.1:{web}")
    assert code == 1 and seconds < 20
    assert str(rough.data) in said and f"process {before}" in said and "--data" in said, said
    assert rough.child() == before and rough.json("status")["pid"] == before


def test_a_folder_of_a_newer_version(rough, tmp_path):
    """A data folder that a newer version wrote is left alone, and the answer names both versions and what to do."""
    folder = tmp_path / "newer"
    folder.mkdir()
    (folder / "format.json").write_text(json.dumps({"format": 99, "writer": "9.9.9"}))
    api, web = free_ports(2)
    code, said, seconds = start_anyway(rough, "--data", str(folder), "--api", f"127.0.0.1:{api}", "--web", f"127.0.0.1:{web}")
    assert code == 1 and seconds < 20
    assert str(folder) in said and "shoal 9.9.9" in said and "layout 99" in said and "--data" in said, said
    assert sorted(path.name for path in folder.iterdir()) == ["format.json", "run"]


def test_a_configuration_that_cannot_be(rough, tmp_path):
    """A key that is none, and a value of another type: the answer names the file and the key."""
    file = tmp_path / "shoal.toml"
    for text, named in (("no_such_key = 1\n", "no_such_key"), ("cpu_milli = 'many'\n", "cpu_milli")):
        file.write_text(text)
        code, said, _ = start_anyway(rough, "--data", str(tmp_path / "d"), "--config", str(file))
        assert code == 1 and str(file) in said and named in said, said


# What programs ask.


def test_an_app_that_is_not_there(client, sdk, token):
    """Look-ups of what is not there name it, the environment, and where to look."""
    with pytest.raises(sdk.exception.NotFoundError, match="'no-such-app'.*environment 'main'.*modal app list"):
        sdk.Function.from_name("no-such-app", "f").hydrate()
    with pytest.raises(sdk.exception.NotFoundError, match="'no-such-env'.*There are: .*main"):
        sdk.Function.from_name("no-such-app", "f", environment_name="no-such-env").hydrate()
    for arguments in (["app", "logs", "no-such-app"], ["app", "stop", "--yes", "no-such-app"], ["app", "history", "no-such-app"]):
        assert "no-such-app" in fails(client, *arguments)


def test_a_function_that_is_not_in_its_app(sdk, token, deployed, unique):
    """A function that its app lacks is named together with those that there are."""
    name = deployed("functions.py", unique)
    with pytest.raises(sdk.exception.NotFoundError, match=f"'{name}' has no function 'sqare'.*square"):
        sdk.Function.from_name(name, "sqare").hydrate()


PROGRAMS = {
    "gpu": ('@app.function(gpu="H100")', "gpu=\"H100\".*this cluster has no GPU.*leave gpu= out"),
    "gpus": ('@app.function(gpu=["H100:4", "A100"])', "gpu=\"H100:4\" or \"A100\".*this cluster has no GPU"),
    "registry": (
        '@app.function(image=modal.Image.from_registry("127.0.0.1:1/none:latest"))',
        "127.0.0.1:1/none:latest.*registry 127.0.0.1:1 cannot be reached",
    ),
    "containers": ("@app.function(max_containers=0)", "function 'f' has max_containers=0, with which no container could ever run it"),
    "command": ('@app.function(image=modal.Image.debian_slim().run_commands("exit 3"))', "exit 3.*3"),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_that_asks_for_what_is_not_here(client, tmp_path, kind):
    """A GPU, a registry or a command that this machine does not have, no container at all: one sentence at once, not a wait."""
    decorator, expected = PROGRAMS[kind]
    program = tmp_path / "program.py"
    program.write_text(f"import modal\n\napp = modal.App()\n\n\n{decorator}\ndef f():\n    return 1\n")
    began = time.monotonic()
    said = fails(client, "run", str(program), seconds=100)
    assert re.search(expected, said), said
    assert time.monotonic() - began < 60, "it was a wait"


# What comes to the port.


def still_well(node: Node, client: Client, before: int) -> None:
    """Fails unless the node is the process that it was, answers, and did not panic."""
    client.modal("app", "list").ok(60)
    assert node.child() == before, f"the node was started anew:\n{node.log_tail()}"
    assert "panicked" not in node.log.read_text(errors="replace")


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
BEGINNINGS = [
    b"", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"POST /modal.client.ModalClient/AppList HTTP/1.1\r\n",
    PREFACE, PREFACE[:11], PREFACE + SETTINGS, b"PUT /blob/bl-0 HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n",
]  # fmt: skip


def test_garbage_on_the_port(rough, rough_client):
    """Bytes of anything, cut short, too long, never ending: connections end, the node does not."""
    dice, before, end = random.Random(SEED), rough.child(), time.monotonic() + 6
    while time.monotonic() < end:
        with socket.create_connection(("127.0.0.1", rough.api_port), timeout=30) as one:
            try:
                one.sendall(dice.choice(BEGINNINGS) + dice.randbytes(dice.choice((0, 1, 9, 200, 20_000))))
                if dice.random() < 0.5:
                    one.shutdown(socket.SHUT_WR)
                one.settimeout(0.02)
                one.recv(1000)
            except OSError:
                pass
    still_well(rough, rough_client, before)


def test_urls_of_anything(rough, rough_client):
    """Paths, queries and headers of anything are answered with a refusal, never with a failure of the node."""
    dice, before, end = random.Random(SEED), rough.child(), time.monotonic() + 4
    pieces = ["blob", "bl-" + "0" * 22, "..", "%00", "%ff", "é", "", "?expires=", "&signature=", "-1", "9" * 40, "modal.client.ModalClient", "AppList"]
    codes = set()
    while time.monotonic() < end:
        path = "/" + "/".join(dice.choice(pieces) for _ in range(dice.randrange(1, 5)))
        method = dice.choice(("GET", "PUT", "POST", "HEAD", "DELETE", "OPTIONS"))
        body = dice.randbytes(dice.randrange(0, 50))
        head = f"{method} {path} HTTP/1.1\r\nhost: {dice.choice(pieces)}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", rough.api_port), timeout=30) as one:
            one.sendall(head.encode() + body)
            answer = one.recv(1000)
        if answer:
            codes.add(int(answer.split(b" ")[1]))
    assert codes and not {code for code in codes if code >= 500}, f"seed {SEED}: {codes}"
    still_well(rough, rough_client, before)


TEXTS = ["", "x", "main", "fu-" + "1" * 22, "ap-" + "z" * 22, "fc-000", "in-" + "9" * 22, "im-" + "é" * 22, "../..", "\x00", "a/b/c", "0-0", "99999999999999999999",
         "x" * 5000, "💥" * 100, "e30.e30.x", "1970-01-01", "-1"]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 7, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1]
REALS = [0.0, -1.0, 0.01, 1e30, float("inf"), float("nan")]
BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1), FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1), FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}  # fmt: skip


def value_of(field: FieldDescriptor, dice: random.Random, depth: int):
    """Returns a value for a field: mostly odd ones."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        return fill(field.message_type._concrete_class(), dice, depth + 1)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return dice.choice(TEXTS) if field.type == FieldDescriptor.TYPE_STRING else dice.randbytes(dice.choice((0, 3, 300)))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return dice.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return dice.choice([value.number for value in field.enum_type.values])
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return dice.choice(REALS)
    low, high = BOUNDS[kind]
    return min(max(dice.choice(NUMBERS), low), high)


def fill(message, dice: random.Random, depth: int = 0):
    """Sets some fields of a message, and of the messages in it."""
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 0.45 or (depth > 3 and field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
            for _ in range(dice.randrange(3)):
                made = value_of(value, dice, depth)
                if value.message_type is not None:
                    getattr(message, field.name)[value_of(key, dice, depth)].CopyFrom(made)
                else:
                    getattr(message, field.name)[value_of(key, dice, depth)] = made
        elif field.is_repeated if hasattr(field, "is_repeated") else field.label == FieldDescriptor.LABEL_REPEATED:
            getattr(message, field.name).extend(value_of(field, dice, depth) for _ in range(dice.randrange(3)))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(value_of(field, dice, depth))
        else:
            setattr(message, field.name, value_of(field, dice, depth))
    return message


def headers(token: Token) -> dict[str, str]:
    return {"x-modal-token-id": token.id, "x-modal-token-secret": token.secret, "x-modal-client-type": "1", "x-modal-client-version": "1.6.4"}


class Raw:
    """Sends any bytes as a message, and takes any bytes."""

    @staticmethod
    def FromString(data: bytes) -> bytes:  # noqa: N802
        return data


class RawCodec:
    """grpclib's way of leaving messages alone."""

    __content_subtype__ = "proto"

    def encode(self, message, message_type):
        return bytes(message)

    def decode(self, data, message_type):
        return bytes(data)


async def ask(channel: Channel, method, request: bytes, metadata: dict[str, str], seconds: float) -> str:
    """Sends a request; returns the status by name, or what else happened."""
    cardinality = Cardinality.UNARY_STREAM if method.server_streaming else Cardinality.UNARY_UNARY
    try:
        async with channel.request(
            f"/modal.client.ModalClient/{method.name}", cardinality, Raw, Raw, timeout=seconds, metadata=metadata
        ) as stream:
            await stream.send_message(request, end=True)
            await stream.recv_message()
        return "OK"
    except GRPCError as error:
        return f"{error.status.name}: {error.message}"
    except asyncio.TimeoutError:
        return "OK: held"
    except (StreamTerminatedError, ProtocolError, ConnectionError) as error:
        return f"broke off: {error!r}"


def test_requests_of_anything(rough, rough_client):
    """Every RPC with fields of anything, and with bytes of anything: an answer that blames the request, never a panic."""
    token, before = rough.create_token(), rough.child()
    answers: dict[str, set[str]] = {}

    def are_enough() -> bool:
        return len(answers) > 100 and sum(any(text.startswith("INVALID_ARGUMENT") for text in said) for said in answers.values()) > 15

    async def several(worker: int, until: float, latest: float) -> None:
        dice = random.Random(SEED + worker)
        channel = Channel("127.0.0.1", rough.api_port, codec=RawCodec())
        try:
            while (now := time.monotonic()) < until or (now < latest and not are_enough()):
                method = dice.choice(RPCS)
                if dice.random() < 0.2:
                    request = dice.randbytes(dice.choice((1, 10, 100, 5000)))
                else:
                    request = fill(method.input_type._concrete_class(), dice).SerializeToString()
                answers.setdefault(method.name, set()).add(await ask(channel, method, request, headers(token), 1.0))
        finally:
            channel.close()

    async def all_of_them() -> None:
        # Longer on a machine that gets through few of them.
        until, latest = time.monotonic() + 12, time.monotonic() + 120
        await asyncio.gather(*(several(worker, until, latest) for worker in range(8)))

    asyncio.run(all_of_them())
    broken = {name: bad for name, said in answers.items() if (bad := {text for text in said if text.startswith(("broke off", "UNKNOWN", "INTERNAL"))})}
    assert not broken, f"seed {SEED}: {broken}"
    assert are_enough(), answers
    still_well(rough, rough_client, before)


def test_a_message_over_the_limit(rough, rough_client):
    """A message larger than any client sends is refused with the limit and the way around it."""
    token, before = rough.create_token(), rough.child()
    method = next(method for method in RPCS if method.name == "MountPutFile")
    large = api_pb2.MountPutFileRequest(data=bytes(111 << 20), sha256_hex="0" * 64).SerializeToString()

    async def send() -> str:
        channel = Channel("127.0.0.1", rough.api_port, codec=RawCodec())
        try:
            return await ask(channel, method, large, headers(token), 60)
        finally:
            channel.close()

    said = asyncio.run(send())
    assert said.startswith("INVALID_ARGUMENT") and "MountPutFile" in said and "110 MiB" in said and "blobs" in said, said
    still_well(rough, rough_client, before)


@pytest.mark.slow
def test_ten_thousand_connections(rough, rough_client):
    """Ten thousand open connections keep nobody out, and those that never say anything are closed after a while."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 10_500:
        pytest.skip(f"this process may have {hard} files open, too few for 10,000 connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before, held = rough.child(), []
    try:
        for _ in range(10_000):
            one = socket.socket()
            held.append(one)
            one.connect(("127.0.0.1", rough.api_port))
        # Some of the first are closed again when this has taken half a minute.
        wait_for("the node to take the connections", lambda: len(os.listdir(f"/proc/{before}/fd")) > 9_000, 20)
        still_well(rough, rough_client, before)
        wait_for("the node to close what never spoke", lambda: len(os.listdir(f"/proc/{before}/fd")) < 1_000, 90, every=0.5)
        still_well(rough, rough_client, before)
    finally:
        for one in held:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# What the machine does not have.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 700 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700m", "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(small_disk, tmp_path):
    """On a full disk new work is refused with a sentence, what is there can be looked at, and it goes on when there is room."""
    node = Node(small_disk / "data")
    node.log = tmp_path / "node.log"
    node.start()
    client = Client(node, node.create_token(), tmp_path / "home")
    try:
        client.modal("secret", "create", "before", "KEY=value").ok(60)
        before, filler = node.child(), small_disk / "filler"
        with filler.open("wb") as file:
            free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
            os.posix_fallocate(file.fileno(), 0, free - (1 << 20))

        def refused() -> str:
            running = client.modal("secret", "create", f"during-{time.monotonic_ns()}", "KEY=value")
            return one_line(running.text()) if running.wait(60) != 0 else ""

        said = wait_for("new work to be refused", refused, 60)
        assert f"the disk under {node.data}" in said and "free some space" in said and "Traceback" not in said, said
        assert "before" in client.modal("secret", "list").ok(60).text(), "what is there can be looked at"
        for _ in range(3):
            assert refused()
        assert node.child() == before and node.json("status")["pid"] == before, node.log_tail()
        filler.unlink()
        wait_for("the node to take new work again", lambda: not refused(), 60)
        names = client.modal("secret", "list").ok(60).text()
        assert "before" in names and "during" in names
        assert node.child() == before
    finally:
        client.close()
        node.stop()
