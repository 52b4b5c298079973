"""The command's root: which commands there are, and how a failure ends.

Exit status 0 is success, 1 a failure, 2 a wrong command line, 130 an interrupt; what is wrong is
one line on stderr, never a traceback for what a user can mend.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import hmi
from hmi.cli import bases, distill, domains, keys, models, predict, tenants, train, up
from hmi.cli.session import command
from hmi.cli.wording import on_a_command_line
from hmi.errors import HmiError
from hmi.supervisor import StackError

app = typer.Typer(
    name="hmi",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(tenants.app, name="tenants")
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")
app.add_typer(bases.app, name="bases")
app.add_typer(domains.app, name="domains")
app.command("up")(up.up)
app.command("train")(train.train)
app.command("distill")(distill.distill)
command(app, "predict")(predict.predict)

_GROUPS = ("tenants", "keys", "models", "bases", "domains")
_LISTS = ("--corpus",)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"hmi {hmi.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Serves many tenants' fine-tuned BERTs from one base."""


def run(arguments: Sequence[str]) -> int:
    """Run a command line (without the program's name): its exit status."""
    try:
        if not arguments or (len(arguments) == 1 and arguments[0] in _GROUPS):
            arguments = [*arguments, "--help"]
        status = app(spread(arguments), prog_name="hmi", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except HmiError as error:
        return _fail(on_a_command_line(error), 1)
    except StackError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has left: there is nobody to tell
        return 1
    except OSError as error:
        return _fail(f"{error.filename or 'system'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception as error:
        # typer's errors of a command line share no public base class, only these two members.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        return _fail(format_message(), getattr(error, "exit_code", 2))


def spread(arguments: Sequence[str]) -> list[str]:
    """`--corpus A B` as `--corpus A --corpus B`: such options take all values up to the next one,
    as a shell's `--corpus *.txt` gives them.
    """
    spread: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in _LISTS else ""
        elif option and spread[-1] != option:
            spread.append(option)
        spread.append(argument)
    return spread


def main() -> None:
    """Entry of the `hmi` script."""
    sys.exit(run(sys.argv[1:]))


def _fail(message: str, status: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status
