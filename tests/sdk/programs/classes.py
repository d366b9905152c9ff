"""Classes with all that a class can have, each method telling where it ran and what its instance is."""

import asyncio
import os

import modal

app = modal.App("classes")


def here() -> str:
    """Returns the id of this container's task."""
    return os.environ["MODAL_TASK_ID"]


class Base:
    """Hooks and methods that classes inherit."""

    @modal.enter()
    def first(self):
        self.entered = getattr(self, "entered", []) + ["base"]

    @modal.method()
    def inherited(self, x: int) -> int:
        return x + 1

    @modal.method()
    def replaced(self) -> str:
        return "base"


@app.cls(scaledown_window=4)
class Plain(Base):
    """No parameters, hooks of both kinds, methods of all kinds."""

    @modal.enter()
    def second(self):
        self.entered.append("plain")
        self.calls = 0

    @modal.enter()
    async def third(self):
        await asyncio.sleep(0)
        self.entered.append("async")

    @modal.method()
    def replaced(self) -> str:
        return "plain"

    @modal.method()
    def state(self) -> tuple[str, list[str], int]:
        self.calls += 1
        return here(), self.entered, self.calls

    @modal.method()
    async def later(self, x: int) -> int:
        await asyncio.sleep(0)
        return x * 2

    @modal.method()
    def count(self, n: int):
        yield from range(n)

    @modal.method()
    async def count_later(self, n: int):
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    @modal.method()
    def through(self, x: int) -> int:
        """Calls another method of the same class, as a container of its own would be called."""
        return self.later.remote(x) + self.inherited.local(x)

    @modal.exit()
    def leave(self):
        print(f"exit of Plain after {self.calls} calls", flush=True)


@app.cls(scaledown_window=20)
class Typed:
    """Parameters of every type, with and without defaults."""

    name: str = modal.parameter()
    number: int = modal.parameter(default=7)
    flag: bool = modal.parameter(default=False)
    data: bytes = modal.parameter(default=b"\x00x")
    hidden: int = modal.parameter(init=False, default=3)

    @modal.enter()
    def start(self):
        self.started_as = self.name

    @modal.method()
    def get(self) -> tuple:
        return self.name, self.number, self.flag, self.data, self.hidden, self.started_as

    @modal.method()
    def here(self) -> str:
        return here()

    @modal.exit()
    def leave(self):
        print(f"exit of Typed {self.name}", flush=True)


@app.cls(secrets=[modal.Secret.from_dict({"COLOUR": "red", "SHAPE": "round"})], max_containers=1, scaledown_window=10)
class Optional:
    """To be given other options."""

    size: int = modal.parameter(default=0)

    @modal.method()
    def environment(self) -> tuple[int, str | None, str | None, str]:
        return self.size, os.environ.get("COLOUR"), os.environ.get("SHAPE"), here()

    @modal.method()
    async def wait(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return here()


@app.cls()
class FailsToStart:
    what: str = modal.parameter(default="enter")

    @modal.enter()
    def start(self):
        if self.what == "enter":
            raise ValueError("this class cannot start")
        if self.what == "exit":
            os._exit(5)

    @modal.method()
    def work(self) -> str:
        return "worked"

    @modal.exit()
    def leave(self):
        raise ValueError("this class cannot end")


@app.function(timeout=300, max_containers=1)
def option(seconds: float = 0.0) -> tuple[str, str | None]:
    import time

    time.sleep(seconds)
    return here(), os.environ.get("COLOUR")


tries: dict[str, int] = {}


@app.function(max_containers=1)
def at_try(mark: str, number: int) -> int:
    """Fails until the try with this number, counted in this container."""
    tries[mark] = tries.get(mark, 0) + 1
    if tries[mark] < number:
        raise ValueError(f"try {tries[mark]}")
    return tries[mark]


@app.function(scaledown_window=10)
def one_by_one(x):
    return x if not isinstance(x, list) else [(one, len(x)) for one in x]


@app.function(scaledown_window=10)
async def asleep(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return here()
