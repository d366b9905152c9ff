"""A client that makes, looks up and deletes secrets until SIGTERM comes, and writes down what it was told and when:
python registry_load.py PREFIX SEED.

Several run at once, through different nodes, on the same names. Each line is an operation of scenarios/histories.py, with the
times of the machine's monotonic clock.
"""

import asyncio
import json
import random
import signal
import sys
import time

from modal.client import _Client
from modal.exception import AlreadyExistsError, NotFoundError
from modal_proto import api_pb2

# Names in use at a time; each is left for a new one after a while, so that no history grows too long to be understood.
NAMES, NAME_SECONDS = 3, 8.0
# How long one operation may take, in seconds. One that takes longer may have happened or not.
PATIENCE = 60
PAUSE = 0.1


async def main(prefix: str, seed: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    drawn = random.Random(seed)
    # The client's own, without its loop in a thread: what is sent, and sent again, is what it sends.
    stub = (await _Client.from_env())._stub
    known: dict[str, list[str]] = {}

    async def create(name: str, how: int) -> str:
        request = api_pb2.SecretGetOrCreateRequest(deployment_name=name, object_creation_type=how, env_dict={"A": "b"})
        return (await stub.SecretGetOrCreate(request)).secret_id

    async def operate(kind: str, name: str, id: str | None) -> str | None:
        match kind:
            case "make":
                try:
                    return await create(name, api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS)
                except AlreadyExistsError:
                    return "exists"
            case "ensure":
                return await create(name, api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING)
            case "look":
                try:
                    return await create(name, api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED)
                except NotFoundError:
                    return None
            case _:
                try:
                    await stub.SecretDelete(api_pb2.SecretDeleteRequest(secret_id=id))
                    return "deleted"
                except NotFoundError:
                    return "missing"

    while not stop.is_set():
        name = f"{prefix}-{drawn.randrange(NAMES)}-{int(time.monotonic() / NAME_SECONDS)}"
        ids = known.setdefault(name, [])
        kind = drawn.choice(["make", "ensure", "look", "look", "delete"])
        id = ids[-1] if kind == "delete" and ids else None
        if kind == "delete" and id is None:
            kind = "look"
        begin, error = time.monotonic(), None
        try:
            answer = await asyncio.wait_for(operate(kind, name, id), PATIENCE)
        except Exception as caught:
            answer, error = "lost", f"{type(caught).__name__}: {caught}"
        end = time.monotonic()
        if kind != "delete" and answer not in (None, "exists", "lost") and answer not in ids:
            ids.append(answer)
        line = {"name": name, "kind": kind, "begin": begin, "end": end, "answer": answer, "id": id, "error": error, "at": time.time()}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        await asyncio.sleep(PAUSE)


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
