"""The command line: the only place that prints, and the only one that knows click.

Commands import what they need when they run, so that `mlx-steer --help` stays instant.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from mlx_steer.cli.group import Group

_COMMANDS = {
    "run": "experiments",
    "assess": "assess",
    "extract": "extract",
    "sweep": "experiments",
    "compare": "experiments",
    "merge": "experiments",
    "report": "experiments",
    "generate": "talk",
    "chat": "talk",
    "serve": "serve",
    "vectors": "vectors",
    "bake": "bake",
    "gate": "gate",
    "behaviors": "behaviors",
    "plan": "plan",
    "doctor": "doctor",
}


class _Lazy(Group):
    """A group whose commands are imported when they are called for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order people need them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module that holds the command."""
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"mlx_steer.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlx-steer")
def cli() -> None:
    """Measure and apply activation steering on language models with MLX."""


def main() -> None:
    """Run the command line; a known error is one sentence and exit code 2."""
    from mlx_steer.cli.watchdog import OtherEnded, ends_with_the_others
    from mlx_steer.errors import SteerError
    from mlx_steer.team import RANK_LOST, is_rank_lost, launched_rank

    if rank := launched_rank():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # rank 0 speaks for all
    who = f"mlx-steer: rank {rank}:" if rank else "mlx-steer:"
    try:
        with ends_with_the_others(who):
            cli.main(prog_name="mlx-steer", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except SteerError as error:
        from mlx_steer.cli.output import safe

        click.echo(f"{who} {safe(str(error))}", err=True)
        sys.exit(2)
    except OtherEnded:
        click.echo(f"{who} {RANK_LOST}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        how = "without --fresh " if "--fresh" in sys.argv else ""
        click.echo(f"\nmlx-steer: stopped; run the same command again {how}to go on", err=True)
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:  # after click's Abort, which is a RuntimeError too
        from mlx_steer.engine.memory import is_memory_full

        if is_rank_lost(error):
            click.echo(f"{who} {RANK_LOST}", err=True)
            sys.exit(2)
        if not is_memory_full(error):
            raise
        click.echo(
            "mlx-steer: the memory is full; finished rows are kept, run the same command again "
            "with a smaller --batch-size",
            err=True,
        )
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(141)
