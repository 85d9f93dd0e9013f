"""What the command `scnet` does: run a sub-command, and say in a sentence what failed."""

import dis
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from .arguments import get_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Args:
        arguments: its name and its arguments; by default those of the command line.

    Returns:
        The exit status, see :data:`scnet_command.arguments.EXIT_STATUS`.

    Raises:
        SystemExit: for wrong arguments, and after the sentence about any other error of the user's.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    with user_errors(
        " ".join(["scnet", *arguments[:1]]), show_traceback="--traceback" in arguments
    ):
        args = get_parser().parse_args(arguments)
        args.command_line = shlex.join(["scnet", *arguments])
        return import_module(args.module).run(args) or 0


@contextmanager
def user_errors(program: str, *, show_traceback: bool = False) -> Iterator[None]:
    """End the program with one sentence for an error that its user can do something about.

    Those are errors of files, and those that this project raises itself. Any other one is a bug and
    keeps its traceback.

    Args:
        program: its name, which the sentence begins with.
        show_traceback: show the traceback of every error.

    Raises:
        SystemExit: with status 2; 130 where the program was interrupted.
    """
    try:
        yield
    except KeyboardInterrupt:
        if show_traceback:
            raise
        print(f"\n{program}: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if show_traceback or not _is_for_the_user(error):
            raise
        text = error.args[0] if isinstance(error, KeyError) else error  # whose text is a quoted one
        print(f"{program}: error: {text}", file=sys.stderr)
        sys.exit(2)


def _is_for_the_user(error: Exception) -> bool:
    if isinstance(error, OSError) and error.filename is not None:
        return True
    if isinstance(error, AssertionError | NotImplementedError):
        return False
    last = error.__traceback__
    while last.tb_next:
        last = last.tb_next
    raised = dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    return raised and last.tb_frame.f_globals["__name__"].startswith(("scnet_d2", "scnet_command"))
