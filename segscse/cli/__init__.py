"""The command line: one function a verb, parsed from its signature."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import cyclopts
from cyclopts.config import Dict

from segscse import __version__
from segscse.cli.data import check, fetch, plan
from segscse.cli.machine import blocks, doctor
from segscse.cli.models import demo, export, predict, train
from segscse.cli.scores import ablate, compare, evaluate
from segscse.config import load_config
from segscse.errors import OUT_OF_REACH, InputError, Interrupted, SegscseError, of_system, one_line
from segscse.launch import ManyProcesses, launch
from segscse.limits import is_lack_of_memory
from segscse.ranks import OtherRankError, end, ranks_or_alone
from segscse.yaml_file import read_yaml


def main() -> None:
    """Run the command line and exit with its code: 0, 1 (our defect), 2 (bad input), 130 or 143 (stopped)."""
    end(run(sys.argv[1:]), ranks_or_alone())


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors become one line on standard error.

    `--debug` anywhere shows the traceback, too.
    """
    debug, given = "--debug" in arguments, arguments
    arguments = [_at_home(argument) for argument in arguments if argument != "--debug"]
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except ManyProcesses as request:
        return launch(request.devices, given)
    except (SegscseError, cyclopts.CycloptsError) as error:
        if debug:
            traceback.print_exc()
        _say_error(error)
        return 128 + error.signum if isinstance(error, Interrupted) else 2
    except KeyboardInterrupt:
        if ranks_or_alone().rank == 0:
            sys.stderr.write("segscse: stopped\n")
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _say_unexpected(error)
    return int(code or 0)


def _at_home(argument: str) -> str:
    """Return an argument with the home folder for the `~` that shells leave in `--out=~/x`."""
    flag, sign, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{flag}{sign}{os.path.expanduser(value)}" if value.startswith("~/") else argument


def _say_unexpected(error: Exception) -> int:
    """Say what no verb has foreseen, and return the exit code: 1 for a defect of ours, 2 for the system's refusal."""
    if isinstance(error, OSError) and error.errno in OUT_OF_REACH and error.filename is not None:
        _say_error(of_system(error))
        return 2
    if is_lack_of_memory(error):
        reason = one_line(error)[:160] or type(error).__name__
        remedy = "Free memory or do less at once: a training takes less with a smaller --data.batch-size or "
        remedy += "--data.max-patch-voxels, and `segscse doctor` says what fits"
        _say_error(InputError(f"memory ran out ({reason})", remedy=remedy))
        return 2
    sys.stderr.write(f"segscse: internal error: {type(error).__name__}: {one_line(error)} (see --debug)\n")
    return 1


def _say_error(error: Exception) -> None:
    """Write an error in one line; of several processes one does, and says which when it is not the first."""
    ranks = ranks_or_alone()
    if getattr(error, "told", False) or (ranks.rank > 0 and isinstance(error, Interrupted)):
        return
    who = "" if ranks.rank == 0 or isinstance(error, OtherRankError) else f"process {ranks.rank} of {ranks.world}: "
    sys.stderr.write(f"segscse: {who}{one_line(error)}\n")


def _read_config_files(app_: cyclopts.App, commands: tuple[str, ...], arguments: Any) -> None:
    """Fill settings from the files after `--config`; the last file and the flags win."""
    given = next((argument for argument in arguments if "--config" in argument.names), None)
    paths = [] if given is None else [Path(token.value) for token in given.tokens]
    load_config(*paths)  # refuses what is no setting, naming the file
    for path in reversed(paths):
        values = read_yaml(path)
        # cyclopts drops top-level keys that are also verbs, and `train` is both: put them all under the verb.
        for command in reversed(commands):
            values = {command: values}
        Dict(values, source=str(path))(app_, commands, arguments)


app = cyclopts.App(
    name="segscse",
    help="Medical image segmentation with attention U-Nets: check, plan, train, predict, export, evaluate.",
    version=__version__,
    suppress_keyboard_interrupt=False,  # `run` answers it
    help_format="plaintext",
    config=_read_config_files,
)
for verb in (check, plan, train, predict, export, evaluate, compare, ablate, blocks, doctor, fetch, demo):
    app.command(verb)
