"""A function that looks for others from inside its container."""

import modal

app = modal.App("fenced")


@app.function()
def find(app_name: str, function: str, environment: str) -> str:
    """Returns "found", or how the look-up of a deployed function was refused."""
    try:
        modal.Function.from_name(app_name, function, environment_name=environment).hydrate()
        return "found"
    except modal.exception.Error as error:
        return f"{type(error).__name__}: {error}"


@app.local_entrypoint()
def main(app_name: str, function: str, environment: str):
    print("answer:", find.remote(app_name, function, environment))


@app.function()
def knock(port: int, method: str) -> tuple[str, str]:
    """Calls an RPC on the port of the node that runs this container, with nothing to show; returns the status and message."""
    import asyncio

    from grpclib.client import Channel
    from grpclib.const import Cardinality
    from grpclib.exceptions import GRPCError

    from modal_proto import api_pb2

    rpc = api_pb2.DESCRIPTOR.services_by_name["ModalClient"].methods_by_name[method]
    routes = [line.split() for line in open("/proc/net/route").read().splitlines()[1:]]
    gateway = bytes.fromhex(next(route[2] for route in routes if route[1] == "00000000"))[::-1]

    async def call() -> tuple[str, str]:
        channel = Channel(".".join(map(str, gateway)), port)
        request, answer = rpc.input_type._concrete_class, rpc.output_type._concrete_class
        cardinality = Cardinality.UNARY_STREAM if rpc.server_streaming else Cardinality.UNARY_UNARY
        metadata = {"x-modal-client-type": "3", "x-modal-client-version": modal.__version__}
        try:
            async with channel.request(
                f"/modal.client.ModalClient/{method}", cardinality, request, answer, timeout=10, metadata=metadata
            ) as stream:
                await stream.send_message(request(), end=True)
                await stream.recv_message()
                await stream.recv_trailing_metadata()
            return "OK", ""
        except GRPCError as error:
            return error.status.name, error.message or ""
        finally:
            channel.close()

    return asyncio.run(call())
