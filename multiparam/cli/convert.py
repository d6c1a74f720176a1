"""``multiparam convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.text import Text

from ..errors import TransferError
from ..transfers import export
from ..transfers.apply import Report, apply_plan, verify_transfer
from ..transfers.match import GUESS, NAME
from ..transfers.plan import Plan, plan
from ..weights import summary
from . import references
from .inspect import check_folder, file_of, model_of, opened
from .terminal import exit_on_error, print_table, print_verdict, progress, quiet, reject_options, warnings_as_sentences


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A model, as package.module:callable or file.py:callable, or a file."),
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A model to write the weights into, or a weight file to write.")
    ],
    rules: Annotated[Optional[Path], typer.Option(help="TOML or JSON: patterns of source names and new names.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")] = False,
    accept_guesses: Annotated[
        bool, typer.Option("--accept-guesses", help="Take pairs that only order, kind and shape speak for.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave parameters that nothing makes as they are in TARGET.")
    ] = False,
    cast: Annotated[bool, typer.Option("--cast", help="Convert to TARGET's dtypes.")] = False,
    verify: Annotated[
        Optional[Path], typer.Option(help="An npz file of inputs: run both models on them, and compare the outputs.")
    ] = None,
    output: Annotated[
        Optional[Path], typer.Option(help="Where TARGET, a model, is saved: the suffix says the format.")
    ] = None,
    to: Annotated[
        Optional[str], typer.Option(metavar="FORMAT", help="Of a TARGET file: safetensors, or the backend's format.")
    ] = None,
) -> None:
    """Bring weights from a model or a file into a model of any framework, or into a file of another format.

    A model is saved by its own framework in its own names (.pt, .params, .msgpack, .weights.h5), or as .safetensors in
    the names that all share. Exit codes: 0 done; 1 verification disagrees, or a dry run's plan is not complete or has
    guesses; 2 usage; 3 could not run.
    """
    into_model = references.is_reference(target)
    options = {"--accept-guesses": accept_guesses, "--partial": partial, "--cast": cast, "--verify": verify,
               "--output": output}  # fmt: skip
    if not into_model:
        reject_options(options, "it is for a TARGET that is a model, and this one is a file")
    else:
        reject_options({"--to": to}, "the suffix of --output says the format")
        if not (output or dry_run or verify):
            raise typer.BadParameter("say where the model is saved, or --dry-run or --verify", param_hint="--output")
    if verify is not None and not references.is_reference(source):
        raise typer.BadParameter("only a model can be run, and SOURCE is a file", param_hint="--verify")
    with exit_on_error(), warnings_as_sentences():
        written = output if into_model else Path(target)
        if written is not None:
            check_folder(written, "--output" if into_model else "TARGET")
            export.writer(written, to)
        if into_model:
            code = _into_model(source, target, rules, dry_run, accept_guesses, partial, cast, verify, output)
        else:
            code = _into_file(source, Path(target), rules, dry_run, to)
    raise typer.Exit(code)


# -- into a model

# A plan's problems, by how many there are, with the option that lets them pass.
PROBLEMS = {
    "refused": "{} refused",
    "missing": "{} missing (--partial leaves them as they are)",
    "guesses": "{} guessed (--accept-guesses takes them)",
}


def _into_model(
    source: str,
    target: str,
    rules: Path | None,
    dry_run: bool,
    accept_guesses: bool,
    partial: bool,
    cast: bool,
    verify: Path | None,
    output: Path | None,
) -> int:
    console = Console()
    with quiet() as stderr:
        inputs = None if verify is None else references.examples(verify)
        one: Any = model_of(source, stderr) if references.is_reference(source) else source
        if one is source:
            file_of(source).close()
        other = model_of(target, stderr)
        if output is not None:
            export.is_native_export(other, output)
        found = plan(one, other, rules, cast=cast)
        _print_plan(found)
        counts = found.problems(partial=partial, accept_guesses=accept_guesses)
        problems = [PROBLEMS[problem].format(count) for problem, count in counts.items()]
        if dry_run:
            verdict = (
                f"A transfer would be refused: {'; '.join(problems)}." if problems else "A transfer would be done."
            )
            print_verdict(console, verdict, not problems)
            return 1 if problems else 0
        if problems:
            raise TransferError(f"Nothing was transferred: {'; '.join(problems)}.")
        with progress("transferring", len(found.moves), stderr) as tick:
            apply_plan(found, other, tick)
        report = Report(found) if inputs is None else verify_transfer(found, one, other, inputs)
        wrong = inputs is not None and not report.agrees
        text = str(report)
        if found.missing:
            text += f"\n{len(found.missing)} of the target that nothing makes are as they were."
        if output is not None and not wrong:
            with progress("writing", None, stderr) as tick:
                export.export_file(other, output, export.export_names(other), tick=tick)
            text += f"\nWritten: {output}, {summary.size(output.stat().st_size)}."
        elif output is not None:
            text += f"\n{output} was not written."
    print_verdict(console, text, not wrong)
    return 1 if wrong else 0


def _print_plan(found: Plan) -> None:
    lines, styles = [], []
    for move in found.moves:
        why = "" if move.why == NAME else move.why
        lines.append([Text(cell) for cell in (" + ".join(move.sources), "→", move.target, move.change, why)])
        styles.append("yellow" if move.why == GUESS else "")
    columns = ("source", "", "target", "change", "because")
    console = print_table(f"{found.source} → {found.target}", columns, lines, styles, words=columns)
    for title, texts, colour in (
        ("Missing, nothing makes them:", found.missing, "red"),
        ("Unused, they go nowhere:", found.unused, "yellow"),
        ("Refused:", [text.replace("say cast=True", "say --cast") for text in found.refused], "red"),
        ("Ties:", found.ties, "yellow"),
        ("These will make outputs differ:", found.options, "yellow"),
    ):
        if texts:
            section = "\n".join([title, *(f"  {text}" for text in texts)])
            console.print(section, style=colour, highlight=False, markup=False, soft_wrap=True)


# -- into a file


def _into_file(source: str, target: Path, rules: Path | None, dry_run: bool, to: str | None) -> int:
    with opened(source) as (thing, stderr):
        names = export.export_names(thing, rules)
        export.is_native_export(thing, target, to, renamed=rules is not None)
        _print_names(source, target, names)
        if dry_run:
            print_verdict(Console(), "Nothing was written: this is a dry run.", True)
            return 0
        with progress("writing", len(names.stored), stderr) as tick:
            export.export_file(thing, target, names, format=to, renamed=rules is not None, tick=tick)
    arrays = f"{len(names.stored)} array{'s' if len(names.stored) != 1 else ''}"
    print_verdict(Console(), f"Written: {target}, {arrays}, {summary.size(target.stat().st_size)}.", True)
    return 0


def _print_names(source: str, target: Path, names: export.ExportNames) -> None:
    aliases: dict[str, list[str]] = {}
    for alias, (stored, _) in names.aliases.items():
        aliases.setdefault(stored, []).append(alias)
    lines = []
    for name, entry in names.stored.items():
        cells = (entry.name, "→", name, str(entry.spec.shape), entry.spec.dtype, ", ".join(aliases.get(name, ())))
        lines.append([Text(cell) for cell in cells])
    styles = [""] * len(lines) + ["yellow"] * len(names.dropped)
    lines += [[Text(cell) for cell in (name, "", "left out", "", "", "")] for name in names.dropped]
    columns = ("source", "", "written as", "shape", "dtype", "also called")
    print_table(f"{source} → {target}", columns, lines, styles, words=columns)
