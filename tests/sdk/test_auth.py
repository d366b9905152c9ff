"""Every RPC that the node serves, called with no credentials, a wrong secret, a revoked token, another task's channel.

The list of RPCs is the pinned client's own descriptors: a method that is served later is in the test from
that moment. The answer must be a refusal that says what to do, whatever the request holds.
"""

import asyncio
import re

import pytest
from google.protobuf import descriptor
from grpclib.client import Channel
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from harness import Node, Token, wait_for
from modal_proto import api_pb2, task_command_router_pb2
from programs import containers, functions

REFUSED = (Status.UNAUTHENTICATED, Status.PERMISSION_DENIED)
# A method that is not served may be refused for want of a token or for want of itself.
CLOSED = (*REFUSED, Status.UNIMPLEMENTED)
CALL_SECONDS = 10

SERVICES = [
    service
    for file in (api_pb2.DESCRIPTOR, task_command_router_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
]
RPCS = [method for service in SERVICES for method in service.methods]


def path_of(method: descriptor.MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


async def call(channel: Channel, method: descriptor.MethodDescriptor, metadata: dict[str, str]) -> tuple[Status, str]:
    """Calls a method with an empty request and returns the status and its message."""
    cardinality = {
        (False, False): Cardinality.UNARY_UNARY,
        (False, True): Cardinality.UNARY_STREAM,
        (True, False): Cardinality.STREAM_UNARY,
        (True, True): Cardinality.STREAM_STREAM,
    }[method.client_streaming, method.server_streaming]
    request, reply = method.input_type._concrete_class, method.output_type._concrete_class
    everyone = {"x-modal-client-type": "1", "x-modal-client-version": "1.6.4", "x-modal-python-version": "3.11"}
    try:
        async with channel.request(
            path_of(method), cardinality, request, reply, timeout=CALL_SECONDS, metadata=everyone | metadata
        ) as stream:
            await stream.send_message(request(), end=True)
            await stream.recv_message()
            await stream.recv_trailing_metadata()
        return Status.OK, ""
    except GRPCError as error:
        return error.status, error.message or ""
    except (StreamTerminatedError, asyncio.TimeoutError) as error:
        return Status.UNKNOWN, repr(error)


def call_all(node: Node, metadata: dict[str, str]) -> dict[str, tuple[Status, str]]:
    """Calls every RPC and returns the answers by method name."""

    async def everything() -> dict[str, tuple[Status, str]]:
        channel = Channel("127.0.0.1", node.api_port)
        try:
            return {path_of(method): await call(channel, method, metadata) for method in RPCS}
        finally:
            channel.close()

    return asyncio.run(everything())


def check_refused(answers: dict[str, tuple[Status, str]], sentence: str) -> None:
    """Fails, naming them all, unless each answer is a refusal; those of served methods must say what to do."""
    open_doors = {path: f"{status.name}: {text}" for path, (status, text) in answers.items() if status not in CLOSED}
    assert not open_doors, f"answered without right: {open_doors}"
    refused = {path: text for path, (status, text) in answers.items() if status in REFUSED}
    assert len(refused) > 20, f"only {len(refused)} RPCs are refused for their credentials: {sorted(refused)}"
    mute = {path: text for path, text in refused.items() if not re.search(sentence, text)}
    assert not mute, f"refused without saying what to do ({sentence}): {mute}"


@pytest.mark.timeout(600)
def test_without_credentials(node, token):
    """No token at all: every RPC is refused, and the answer names `shoal token create`."""
    check_refused(call_all(node, {}), "shoal token create")


@pytest.mark.timeout(600)
def test_with_a_wrong_secret(node, token):
    """A token id that exists with another secret."""
    check_refused(call_all(node, headers(Token(token.id, "as-" + "x" * 22))), "token")


@pytest.mark.timeout(600)
def test_with_an_unknown_token(node, token):
    """A token id that never existed."""
    check_refused(call_all(node, headers(Token("ak-" + "0" * 22, token.secret))), "token")


@pytest.mark.timeout(600)
def test_with_a_revoked_token(node):
    """A token that worked is refused everywhere from the moment `shoal token revoke` returns."""
    made = node.create_token()
    assert asyncio.run(one(node, "EnvironmentGetOrCreate", headers(made)))[0] not in REFUSED
    node.shoal("token", "revoke", made.id)
    check_refused(call_all(node, headers(made)), "revoked|token")


@pytest.mark.timeout(600)
def test_a_container_type_without_its_channel(node):
    """A caller on the public port that says it is a container (client type 3) is nobody."""
    check_refused(call_all(node, {"x-modal-client-type": "3"}), "token")


def headers(token: Token) -> dict[str, str]:
    return {"x-modal-token-id": token.id, "x-modal-token-secret": token.secret}


async def one(node: Node, name: str, metadata: dict[str, str]) -> tuple[Status, str]:
    method = next(method for method in RPCS if method.name == name)
    channel = Channel("127.0.0.1", node.api_port)
    try:
        return await call(channel, method, metadata)
    finally:
        channel.close()


@pytest.mark.timeout(120)
def test_the_client_shows_the_reason(node, token, client):
    """A user with a wrong token reads which command makes one."""
    running = client.modal("app", "list", environment={"MODAL_TOKEN_SECRET": "as-wrong"})
    assert running.wait(60) != 0
    assert "token" in running.text().lower()


# What a container sends, filled with ids that belong to another task: (RPC, request).
def foreign_requests(function_id: str, call_id: str, input_id: str, app_id: str) -> list[tuple[str, bytes]]:
    output = api_pb2.FunctionPutOutputsItem(
        input_id=input_id, result=api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS, data=b"forged")
    )
    return [
        ("FunctionGetInputs", api_pb2.FunctionGetInputsRequest(function_id=function_id).SerializeToString()),
        ("FunctionPutOutputs", api_pb2.FunctionPutOutputsRequest(outputs=[output]).SerializeToString()),
        ("FunctionCallPutDataOut", api_pb2.FunctionCallPutDataRequest(function_call_id=call_id).SerializeToString()),
        ("AppStop", api_pb2.AppStopRequest(app_id=app_id).SerializeToString()),
        ("FunctionCallGetDataIn", api_pb2.FunctionCallGetDataRequest(function_call_id=call_id).SerializeToString()),
    ]


@pytest.mark.timeout(240)
def test_a_task_cannot_act_for_another(token, node):
    """From inside a container, by its own channel, with ids of another app's function, call and input: nothing is done.

    What the client's protocol answers OK by design (an output that is dropped) must have no effect:
    the victim's call still ends with its own result.
    """
    with functions.app.run(), containers.app.run():
        victim = functions.sleep.spawn(30, "own result")
        victim_app, victim_function = functions.app.app_id, functions.sleep.object_id
        said = wait_for(
            "the victim to say its input's id",
            lambda: re.search(r"for input (in-[0-9A-Za-z]{22})", node.shoal("logs", victim_app).stdout), 60,
        )  # fmt: skip
        input_id = said.group(1)
        for name, request in foreign_requests(victim_function, victim.object_id, input_id, victim_app):
            status, text = containers.call_rpc.remote(f"/modal.client.ModalClient/{name}", request)
            allowed = ("PERMISSION_DENIED", "UNAUTHENTICATED", "NOT_FOUND", "UNIMPLEMENTED")
            if name in ("FunctionPutOutputs", "FunctionCallPutDataOut"):
                allowed += ("OK",)
            assert status in allowed, f"{name} for another task: {status} {text}"
        assert victim.get(timeout=100) == "own result"


@pytest.mark.timeout(600)
def test_a_task_can_call_only_what_a_task_may(token, node):
    """RPCs that are for people's tokens alone are refused on a container's channel."""
    people = ["TokenInfoGet", "AppStop", "AppRollback", "AppClientDisconnect", "EnvironmentDelete"]
    with containers.app.run():
        for name in people:
            method = next(method for method in RPCS if method.name == name)
            status, text = containers.call_rpc.remote(path_of(method), b"")
            assert status in ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED"), f"{name}: {status} {text}"
