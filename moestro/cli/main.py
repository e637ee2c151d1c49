"""The `moestro` program: parse, dispatch, exit code.

0 done; 1 an error of ours; 2 the user's mistake, said in one line. Commands live in one file each.
Next: train.py, demo.py.
"""

import errno
import os
import signal
import sys
import traceback
from typing import Annotated

import typer
import typer.completion
import typer.main

from moestro import __version__, logs, settings
from moestro.cli import (
    bench,
    calibrate,
    convert,
    demo,
    generate,
    inspect,
    keys,
    policy,
    score,
    serve,
    train,
    xray,
)
from moestro.errors import MoestroError

# How the script of a shell, written by --install-completion, asks what may come next.
_COMPLETE = "_MOESTRO_COMPLETE"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

app = typer.Typer(
    name="moestro",
    help="Train, run and look into sparse Mixture-of-Experts language models on your own hardware.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("demo", rich_help_panel="Start here")(demo.demo)
app.command("train", rich_help_panel="Make a model")(train.train)
app.command("generate", rich_help_panel="Use a model")(generate.generate)
app.command("serve", rich_help_panel="Use a model")(serve.serve)
app.command("score", rich_help_panel="Use a model")(score.score)
app.command("bench", rich_help_panel="Look into a model")(bench.bench)
app.command("inspect", rich_help_panel="Look into a model")(inspect.inspect)
app.command("xray", rich_help_panel="Look into a model")(xray.xray)
policy.app.command("calibrate")(calibrate.calibrate)
app.add_typer(policy.app, name="policy", rich_help_panel="Choose among models")
app.command("convert", rich_help_panel="Make a model")(convert.convert)
app.add_typer(keys.app, name="keys", rich_help_panel="Choose among models")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Train, run and look into sparse Mixture-of-Experts language models on your own hardware."""
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run one command and end the process with its status."""
    logs.apply()
    # As Ctrl-C: what is half written is taken away again. Servers and runs say what else they do.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(_run())
    except typer.TyperException as error:
        # Without any arguments there is no complaint: the help was shown.
        _fail(_describe(error), status=2) if error.format_message() else sys.exit(2)
    except MoestroError as error:
        _fail(f"{error}", status=2)
    except BrokenPipeError:
        # The reader of our output, `head` say, has had enough.
        _drop_output()
        sys.exit(0)
    except KeyboardInterrupt:
        _fail("stopped", status=2)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            # Files of ours say their names.
            _drop_output()
            _fail(f"standard output: {error.strerror}: write to where there is room", status=2)
        traceback.print_exc()
        _fail(
            f"{type(error).__name__}: {error}. This is a bug in Moestro: please report it.",
            status=1,
        )


def _run() -> int:
    # Not `app()`, which ends the process itself: its complaints fill a box of several lines, and
    # Ctrl-C is 130 to it.
    command = typer.main.get_command(app)
    asked = settings.variable(_COMPLETE, "")
    if asked:
        sys.exit(typer.completion.shell_complete(command, {}, "moestro", _COMPLETE, asked))
    status = 0
    try:
        with command.make_context("moestro", sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as done:
        status = done.exit_code
    # Python does so at its end, too late to say what is wrong in one line.
    sys.stdout.flush()
    return status


def _drop_output() -> None:
    """Send what is left to write nowhere: Python would try, and complain, once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _describe(error: typer.TyperException) -> str:
    """Put what is wrong with the command line in one line: the flag, its value, where to look."""
    # Pydantic, which reads what is given, says so before what others found wrong.
    message = error.format_message().replace(": Value error, ", ": ", 1)
    given = [reason["input"] for reason in getattr(error.__cause__, "errors", list)()]
    value = "".join(f" Got {text!r}." for text in given if repr(text) not in message)
    context = getattr(error, "ctx", None)
    place = context.command_path if context else "moestro"
    return f"{message.rstrip('.')}{'' if message.endswith('?') else '.'}{value} See {place} --help."


def _fail(message: str, status: int) -> None:
    one_line = " ".join(message.split())
    print(f"moestro: {one_line}", file=sys.stderr)
    sys.exit(status)
