"""What may happen to a cluster under load, and what must hold whatever happens."""

from . import faults as faults
from . import masses as masses
from . import twenty as twenty
