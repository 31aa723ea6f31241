"""What every command of the suite shares: how it fails, and how it names the nearest right thing."""

import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable

USER_ERROR = 2
INTERRUPTED = 130


class UserError(Exception):
    """Something its user can mend. Shown as one line: what is wrong, where, and the nearest right thing."""


class Interrupted(Exception):
    """A run was asked to stop (Ctrl-C, preemption, time limit) and has saved its place; starting it again goes on."""


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and exits: 0, 2 with one line for a user's error, 130 when interrupted.

    Anything else is a defect of ours and keeps its traceback.
    """
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        code = USER_ERROR
        print(f"error: {error}", file=sys.stderr)
    except (KeyboardInterrupt, Interrupted) as stop:
        code = INTERRUPTED
        print(f"interrupted{f': {stop}' if str(stop) else ''}", file=sys.stderr)
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        code = USER_ERROR
        print(f"error: no space left on the disk{f' of {error.filename}' if error.filename else ''}", file=sys.stderr)
    sys.exit(code)


def nearest(name: str, valid: Iterable[str]) -> str:
    """'; did you mean 'x'?', or the list of what there is, to end an error message about an unknown `name`."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.6)
    if close:
        return "; did you mean " + " or ".join(f"'{match}'" for match in close) + "?"
    return f"; there are: {', '.join(valid)}" if valid else ""


def parse_seeds(text: str) -> list[int]:
    """'0,1,2' -> [0, 1, 2], for argparse's `type=`."""
    seeds = [int(part) for part in text.split(",")]
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError("seeds are distinct and not negative")
    return seeds
