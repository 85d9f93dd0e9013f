"""The command `scnet`, apart from what its sub-commands do, which is in `scnet_d2.cli`.

Importing scnet_d2 imports PyTorch, which takes seconds. Help, completion and wrong arguments are
answered before that: this package needs nothing beside Python, but for completion shtab.
"""

from .main import main, user_errors

__all__ = ["main", "user_errors"]
