"""How commands of the suite fail: exit codes, errors that a user can fix, and the nearest valid name."""

import difflib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterable

USER_ERROR = 2
INTERRUPTED = 130
SHOW_TRACEBACK = "WHITEBENCH_TRACEBACK"
"""Environment variable: set to 1, an error of the system is printed with its traceback."""


class UserError(Exception):
    """An error that the user can fix, printed as one line: what is wrong, where, and the nearest valid alternative.

    Names in a message may come from files and command lines that anyone has written: line breaks in them are escaped.
    """

    def __init__(self, message: object) -> None:
        super().__init__(str(message).replace("\n", "\\n").replace("\r", "\\r"))


class Interrupted(Exception):
    """A run was asked to stop (Ctrl-C, preemption, time limit) and has saved its state; starting it again resumes."""


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and exits: 0, 2 with one line for a user's or the system's error, 130 when interrupted.

    Any other exception is a defect of the suite and keeps its traceback.
    """
    try:
        code = main() or 0
        sys.stdout.flush()
    except (KeyboardInterrupt, Interrupted) as stop:
        code = INTERRUPTED
        print(f"interrupted{f': {stop}' if str(stop) else ''}", file=sys.stderr)
    except BrokenPipeError:  # the reader of our output (head, less) has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        message = describe(error)
        if message is None:
            raise
        code = USER_ERROR
        if os.environ.get(SHOW_TRACEBACK) == "1":
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def describe(error: BaseException) -> str | None:
    """One line for an error of the user or of the system (files, memory, network); None for a defect of the suite."""
    if isinstance(error, UserError):
        return str(error)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, MemoryError) or "OutOfMemoryError" in kinds or _is_allocation_failure(error):
        return f"out of memory: {_first_line(error)}; use a smaller batch, fewer or smaller views, or fewer workers"
    if isinstance(error, UnicodeError):
        return _describe_unicode(error)
    if isinstance(error, OSError) and "DistError" not in kinds:
        return _describe_os(error)
    if "DistError" in kinds or "DistBackendError" in kinds:
        return _describe_distributed(error)
    return None


_ADVICE = {
    errno.EACCES: "permission denied; check owner and mode",
    errno.EPERM: "permission denied; check owner and mode",
    errno.ENOENT: "file not found",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "is a folder, not a file",
    errno.EEXIST: "already exists",
    errno.ENOTEMPTY: "the folder is not empty",
    errno.EROFS: "the file system is read-only; choose another place (WHITEBENCH_RUNS, WHITEBENCH_DATA)",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n) or use fewer workers",
    errno.ENFILE: "too many open files on this host",
    errno.ELOOP: "a circle of symbolic links",
    errno.ESTALE: "stale file handle of a network file system; try again",
    errno.EIO: "input/output error of the disk or network file system",
    errno.ENXIO: "not a regular file",
    errno.EADDRINUSE: "the address is in use; choose another MASTER_PORT",
    errno.ENOMEM: "out of memory",
}


def _describe_os(error: OSError) -> str:
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = " -> ".join(_shortened(printable(name)) for name in names)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk{f' of {where}' if where else ''}"
    reason = _ADVICE.get(error.errno or 0) or printable(error.strerror or _first_line(error))
    return f"{where}: {reason}" if where else f"{type(error).__name__}: {reason}"


def _shortened(name: str) -> str:
    """A path as it is, or its ends: names of thousands of characters are one of the errors."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}...{name[-LONGEST_NAME // 2 :]}"


LONGEST_NAME = 400


def _describe_unicode(error: UnicodeError) -> str:
    subject = getattr(error, "object", b"")
    if isinstance(error, UnicodeEncodeError) and error.encoding.lower().replace("-", "") != "utf8":
        return f"the terminal's encoding is {error.encoding}, which cannot print the output; set PYTHONUTF8=1"
    if isinstance(error, UnicodeEncodeError):
        return f"a name is not valid UTF-8; rename it: {printable(str(subject))[:200]!r}"
    return f"text is not valid UTF-8 ({_first_line(error)}); save the file as UTF-8"


def _describe_distributed(error: BaseException) -> str:
    text = _first_line(error)
    if "EADDRINUSE" in text or "already in use" in text:
        return f"the port of the process group is in use; choose another MASTER_PORT ({text})"
    return (
        f"the process group could not be set up or was lost: {text}; check MASTER_ADDR, MASTER_PORT and the ranks' logs"
    )


def _is_allocation_failure(error: BaseException) -> bool:
    """torch's CPU allocator raises a plain RuntimeError."""
    text = str(error)
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in text or "not enough memory" in text)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def printable(text: str) -> str:
    """A name from a file or command line that anyone may have written, on one line and without control characters."""
    return text if text.isprintable() else repr(text)[1:-1]


def nearest(name: str, valid: Iterable[str]) -> str:
    """'; did you mean 'x'?', or the list of valid names, to end an error message about an unknown `name`."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.6)
    if close:
        return "; did you mean " + " or ".join(f"'{match}'" for match in close) + "?"
    if len(valid) > MAX_LISTED:
        return f"; valid: {', '.join(valid[:MAX_LISTED])}, ... ({len(valid)} in all)"
    return f"; valid: {', '.join(valid)}" if valid else ""


MAX_LISTED = 40
"""Names in one message: ImageNet has 1,000 classes."""


def parse_seeds(text: str) -> list[int]:
    """'0,1,2' -> [0, 1, 2], for argparse's `type=`.

    Raises:
        UserError: not a list of different seeds from 0 to 2^63 - 1.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"seeds: '{text}' is not a list of seeds; write for example 0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds: '{text}' names a seed twice")
    if min(seeds) < 0 or max(seeds) >= 2**63:
        raise UserError(f"seeds: '{text}': a seed is at least 0 and less than 2^63")
    return seeds
