"""All that can have happened to a run folder before somebody gives it to a command."""

from faults.accidents import ACCIDENTS
from faults.forgeries import FORGERIES

DAMAGES = ACCIDENTS | FORGERIES
