"""What app.py imports from beside it."""

from . import KIND


class Bruised(Exception):
    """Is known to the client by its module, and to the container by its own copy of it."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name} of the {KIND} is bruised"


def taste(name: str) -> str:
    if name == "medlar":
        raise Bruised(name)
    return f"{name} from {__name__}"
