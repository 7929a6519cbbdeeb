"""How a verb of the command line is made: its options in, its configuration and its output out."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from tasks import options as o
from tasks.compile_cache import keep_compiled_code
from tasks.config_base import CommonConfig
from tasks.config_files import load_config

if TYPE_CHECKING:
    from tasks.console import Reporter

Config = TypeVar("Config", bound=CommonConfig)
EVERY = "cache_dir seed config json quiet debug"
EVERY_OPTION = "convex-heads.every-option"  # in a context's meta: its help leaves out none
_FLAGS = ("json", "quiet", "debug")
_COLUMNS = shutil.get_terminal_size().columns
_NARROW = 52  # columns

app = typer.Typer(
    help="Two-layer gated ReLU heads on frozen features, certified.\n\n"
    "Start with: convex-heads demo",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        # Click would not go below 50; None leaves the width to it.
        "terminal_width": max(_COLUMNS - 2, 24) if _COLUMNS < _NARROW else None,
    },
)


class _Verb(TyperCommand):
    seldom: Set[str] = frozenset()

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The options that are asked for most; with ``--help-all`` every one.

        Where a terminal is narrow, what an option does stands below it and not beside it.
        """
        options: list[Any] = self.params
        for option in options:
            if option.name in self.seldom:
                option.hidden = EVERY_OPTION not in ctx.meta
        if formatter.width < _NARROW:
            write, width = formatter.write_dl, formatter.width - 2

            def write_below(rows: Sequence[tuple[str, str]]) -> None:
                write([(_over_two_lines(term, width), text) for term, text in rows], col_max=4)

            formatter.write_dl = write_below
        super().format_options(ctx, formatter)
        for option in options:  # shells complete all of them
            option.hidden = False


def _over_two_lines(term: str, width: int) -> str:
    """An option too long for a line, its choices on the next."""
    return term if len(term) <= width else term.replace(" ", "\n      ", 1)


def _say_every_option(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        ctx.meta[EVERY_OPTION] = True
        print(ctx.get_help())
        raise typer.Exit


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"convex-heads {version('convex-heads')}")
        raise typer.Exit


@app.callback()
def _begin(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


@dataclass(frozen=True)
class Output:
    """Where results and progress go. json: one object on stdout in place of text for people."""

    json: bool
    quiet: bool

    @property
    def reporter(self) -> Reporter:
        """Of progress and notes, on stderr."""
        from tasks.console import make_reporter

        return make_reporter(self.quiet)

    def show(self, record: Any, for_people: Callable[[Any], None]) -> None:
        """Print a finished record."""
        from tasks.show import show_json

        show_json(record) if self.json else for_people(record)


def verb(
    kind: type[Config], *options: str | Mapping[str, Any], seldom: str = ""
) -> Callable[[Callable[[Config, Output], None]], Callable[..., None]]:
    """Makes a function of (configuration, output) a verb of its name, with its docstring as help.

    Args:
        kind: of its configuration, whose fields the options are named after.
        options: in the order of the help: names of fields (`train_rows` is `options.TrainRows`), or
            a field's name and the option that fills it. Those of `EVERY` come last.
        seldom: names of those that ``--help`` leaves to ``--help-all``.

    Example:
        >>> @verb(CommonConfig, {"name": o.Text})
        ... def greet(config: CommonConfig, output: Output) -> None:
        ...     "Say hello."
        >>> app.registered_commands.pop().callback.__doc__
        'Say hello.'
    """
    known: dict[str, Any] = {}
    for group in (*options, EVERY):
        if isinstance(group, str):
            known |= {name: getattr(o, name.title().replace("_", "")) for name in group.split()}
        else:
            known |= group
    if seldom:
        known["help_all"] = Annotated[
            bool,
            typer.Option(
                "--help-all", is_eager=True, callback=_say_every_option, help="Show every option."
            ),
        ]

    def register(work: Callable[[Config, Output], None]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            output = Output(given["json"], given["quiet"])
            given.pop("help_all", None)
            # Before anything heavy is imported, so that misuse is answered at once.
            work(read(kind, given), output)

        parameters = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if name in (*_FLAGS, "help_all") else None,
                annotation=annotation,
            )
            for name, annotation in known.items()
        ]
        for annotation in known.values():
            _complete_choices(annotation)
        # What typer reads.
        command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        command.__annotations__ = known
        command.__name__, command.__doc__ = work.__name__, work.__doc__
        shown = type("_Verb", (_Verb,), {"seldom": frozenset(seldom.split())})
        return app.command(cls=shown)(command)

    return register


def _complete_choices(annotation: Any) -> None:
    """Shells complete what the help lists, `none|balanced`; words in capitals stand for values."""
    for info in getattr(annotation, "__metadata__", ()):
        words = [word for word in (info.metavar or "").split("|") if word != word.upper()]
        if len(words) > 1:
            info.autocompletion = _completer(words)


def _completer(words: list[str]) -> Callable[[str], list[str]]:
    def matching(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return matching


def read(kind: type[Config], given: Mapping[str, Any]) -> Config:
    """The configuration from what the command line gave and the file that it names.

    Raises:
        InputError: a value or a file that cannot be used.
    """
    values = {name: value for name, value in given.items() if name not in _FLAGS}
    path: Path | None = values.pop("config", None)
    for repeated in ("text", "stores", "classes"):
        if repeated in values:
            values[repeated] = values[repeated] or None
    for listed in ("methods", "shots"):
        if listed in values:  # with commas, or the option again, or both
            parts = [part.strip() for text in values[listed] or () for part in text.split(",")]
            values[listed] = [part for part in parts if part] or None
    if not values.get("backbone"):
        values.pop("backbone", None)
    config = load_config(kind, path, values)
    keep_compiled_code(config.cache_dir)  # before JAX is imported
    return config
