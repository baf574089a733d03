"""The command line. Each command is a file that parses, calls one task and prints."""

from __future__ import annotations

import difflib
import errno
import signal
import sys
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from medgen.cli.batch import batch
from medgen.cli.benchmark import benchmark
from medgen.cli.calibrate import EPILOG as CALIBRATE_EPILOG
from medgen.cli.calibrate import calibrate
from medgen.cli.check import check
from medgen.cli.console import Settings, show_error
from medgen.cli.deidentify import EPILOG as DEIDENTIFY_EPILOG
from medgen.cli.deidentify import deidentify
from medgen.cli.denoise import EPILOG as DENOISE_EPILOG
from medgen.cli.denoise import denoise
from medgen.cli.detect import EPILOG, detect_anomalies
from medgen.cli.evaluate import evaluate
from medgen.cli.info import info
from medgen.cli.inpaint import EPILOG as INPAINT_EPILOG
from medgen.cli.inpaint import inpaint
from medgen.cli.latent import EPILOG as LATENT_EPILOG
from medgen.cli.latent import latent
from medgen.cli.models import models
from medgen.cli.phantom import phantom
from medgen.cli.pretrain import EPILOG as PRETRAIN_EPILOG
from medgen.cli.pretrain import pretrain
from medgen.cli.probe import EPILOG as PROBE_EPILOG
from medgen.cli.probe import probe
from medgen.cli.super_resolve import EPILOG as SUPER_RESOLVE_EPILOG
from medgen.cli.super_resolve import super_resolve
from medgen.cli.synthesize import EPILOG as SYNTHESIZE_EPILOG
from medgen.cli.synthesize import synthesize
from medgen.cli.train import EPILOG as TRAIN_EPILOG
from medgen.cli.train import train
from medgen.cli.translate import EPILOG as TRANSLATE_EPILOG
from medgen.cli.translate import translate
from medgen.errors import MedgenError

# What the system says to a path that a person chose badly: no defect of medgen.
REFUSED = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP)
INTERRUPTED = 130
TERMINATED = 143


class Commands(TyperGroup):
    """Turns what goes wrong inside a command into one clear error and an exit code."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; for an unknown one, suggest the nearest."""
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            near = [known for known in self.commands if known.startswith(name[:4])]
            near = near or difflib.get_close_matches(name, self.commands, n=1, cutoff=0.4)
            question = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"unknown command {name!r}.{question}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except MedgenError as error:
            if Settings.debug:
                raise
            show_error(error.message, error.hint)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            show_error("interrupted; nothing half-written was left behind")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output (head, less) has seen enough.
            sys.stderr.close()
            raise typer.Exit(1) from None
        except Exception as error:
            # typer's own ways to leave: usage errors, which it prints, and typer.Exit.
            if Settings.debug or hasattr(error, "exit_code"):
                raise
            if isinstance(error, OSError) and error.errno in REFUSED:
                show_error(f"{str(error.filename)[:80]}: {error.strerror}", "Choose another path.")
                raise typer.Exit(2) from None
            show_error(
                f"unexpected {type(error).__name__}: {error}",
                "This is a defect in medgen. Run again with --debug and report what it prints.",
            )
            raise typer.Exit(1) from None


app = typer.Typer(
    name="medgen",
    cls=Commands,
    help=(
        "Learn what normal looks like in a medical image, and show what is not.\n\n"
        "Research use only; not a medical device."
    ),
    epilog=(
        "Try it:  **medgen phantom -o demo**  then  "
        "**medgen detect-anomalies demo/phantom_T1w.nii.gz -o out**"
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("detect-anomalies", epilog=EPILOG)(detect_anomalies)
app.command("synthesize", epilog=SYNTHESIZE_EPILOG)(synthesize)
app.command("inpaint", epilog=INPAINT_EPILOG)(inpaint)
app.command("super-resolve", epilog=SUPER_RESOLVE_EPILOG)(super_resolve)
app.command("denoise", epilog=DENOISE_EPILOG)(denoise)
app.command("translate", epilog=TRANSLATE_EPILOG)(translate)
app.command("check")(check)
app.add_typer(batch, name="batch")
app.command("deidentify", epilog=DEIDENTIFY_EPILOG)(deidentify)
app.add_typer(models, name="models")
app.command("train", epilog=TRAIN_EPILOG)(train)
app.command("pretrain", epilog=PRETRAIN_EPILOG)(pretrain)
app.command("probe", epilog=PROBE_EPILOG)(probe)
app.command("latent", epilog=LATENT_EPILOG)(latent)
app.add_typer(benchmark, name="benchmark")
app.add_typer(evaluate, name="evaluate")
app.command("calibrate", epilog=CALIBRATE_EPILOG)(calibrate)
app.command("info")(info)
app.command("phantom")(phantom)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"medgen {version('medgen')}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False,
        "--version",
        metavar="",
        # Before the command is looked for: with --version there need not be one.
        is_eager=True,
        callback=_print_version,
        help="Print the version and leave.",
    ),
) -> None:
    pass


def main() -> None:
    """Entry point of the ``medgen`` program."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(TERMINATED)

    # A batch system's SIGTERM ends the run like an exception, so that drafts are removed.
    signal.signal(signal.SIGTERM, stop)
    app(prog_name="medgen")
