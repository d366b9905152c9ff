"""Takes the orders of caller.py about queues and dicts for a Redis server at a unix socket: as few bytes and words as it takes.

    redis_caller.py SOCKET

Values are as large as the client's pickled numbers are.
"""

import asyncio
import json
import sys
import time

VALUE = b"\x80\x04K\x01."


class Connection:
    """One connection; one command at a time, as a pool of a Redis client does it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer

    async def say(self, *words: bytes) -> bytes | None:
        """Sends a command and returns the answer, which is one line or one string."""
        self.writer.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
        line = await self.reader.readline()
        match line[:1]:
            case b"$" if line == b"$-1\r\n":
                return None
            case b"$":
                return (await self.reader.readexactly(int(line[1:]) + 2))[:-2]
            case b"+" | b":":
                return line[1:-2]
            case _:
                raise RuntimeError(f"Redis answered {line!r} to {words[0]!r}")


async def pairs(connections: list[Connection], order: dict) -> float:
    left = iter(range(order["pairs"]))

    async def some(redis: Connection) -> None:
        for number in left:
            key = b"key-%d" % number
            if order["do"] == "queue_pairs":
                await redis.say(b"RPUSH", b"queue", VALUE)
                assert await redis.say(b"LPOP", b"queue") == VALUE
            else:
                if not order["reads"]:
                    await redis.say(b"SET", key, VALUE)
                assert await redis.say(b"GET", key) == VALUE

    began = time.perf_counter()
    await asyncio.gather(*(some(redis) for redis in connections))
    return time.perf_counter() - began


async def main() -> None:
    connections: list[Connection] = []
    for line in sys.stdin:
        order = json.loads(line)
        while len(connections) < order["at_once"]:
            connections.append(Connection(*await asyncio.open_unix_connection(sys.argv[1])))
        seconds = await pairs(connections[: order["at_once"]], order)
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
