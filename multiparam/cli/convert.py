"""``multiparam convert``: weights from a model or a file into a model, or into a file of another format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.text import Text

from ..core.model import Model
from ..core.summaries import size
from ..errors import TransferError
from ..transfers import export
from ..transfers.apply import Accepted, Report, apply_plan, transfer_verified
from ..transfers.cost import cost
from ..transfers.match import GUESS, NAME
from ..transfers.plan import Plan
from ..transfers.plan import plan as make_plan
from ..weights import writers
from . import references
from .opening import check_folder, load_model, open_file, open_source
from .options import Keywords
from .terminal import exit_on_error, print_table, print_verdict, progress, quiet, reject_options, warnings_as_sentences

SOURCE = "A model, as package.module:callable or file.py:callable, or a file."
GUESSES = "Take pairs that only order, kind and shape speak for."
VERIFY = "An npz file of inputs: run both models on them, and compare the outputs."
SAVE_RULES = "Write what was matched as a TOML file of rules, to be looked at and used again with --rules."
FORMAT = "Of a TARGET file: safetensors, orbax or another suffix, or the backend's format."

SourceName = Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE)]
TargetName = Annotated[
    str, typer.Argument(metavar="TARGET", help="A model to write the weights into, or a weight file to write.")
]
RulesFile = Annotated[Path | None, typer.Option(help="TOML or JSON: patterns of source names and new names.")]
SaveRules = Annotated[Path | None, typer.Option(metavar="FILE", help=SAVE_RULES)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")]
AcceptGuesses = Annotated[bool, typer.Option("--accept-guesses", help=GUESSES)]
Partial = Annotated[bool, typer.Option("--partial", help="Leave parameters that nothing makes as they are in TARGET.")]
Cast = Annotated[bool, typer.Option("--cast", help="Convert to TARGET's dtypes.")]
VerifyInputs = Annotated[Path | None, typer.Option(help=VERIFY)]
Output = Annotated[Path | None, typer.Option(help="Where TARGET, a model, is saved: the suffix says the format.")]
FormatName = Annotated[str | None, typer.Option(metavar="FORMAT", help=FORMAT)]


@dataclass(frozen=True)
class TransferOptions:
    """How weights go into a model; ``verify``, ``output`` and ``save_rules`` are paths."""

    rules: Path | None
    save_rules: Path | None
    dry_run: bool
    accept_guesses: bool
    partial: bool
    cast: bool
    verify: Path | None
    keywords: bool
    output: Path | None


def convert_command(
    source: SourceName,
    target: TargetName,
    rules: RulesFile = None,
    save_rules: SaveRules = None,
    dry_run: DryRun = False,
    accept_guesses: AcceptGuesses = False,
    partial: Partial = False,
    cast: Cast = False,
    verify: VerifyInputs = None,
    keywords: Keywords = False,
    output: Output = None,
    to: FormatName = None,
) -> None:
    """Bring weights from a model or a file into a model of any framework, or into a file of another format.

    A model is saved by its own framework in its own names (.pt, .params, .msgpack, .weights.h5,
    .orbax), or as .safetensors in
    the names that all share. Exit codes: 0 done; 1 verification disagrees, or a dry run's plan is not complete or has
    guesses; 2 usage; 3 could not run.
    """
    into_model = references.is_reference(target)
    if into_model:
        reject_options({"--to": to}, "the suffix of --output says the format")
        if not (output or dry_run or verify):
            raise typer.BadParameter("say where the model is saved, or --dry-run or --verify", param_hint="--output")
    else:
        for_models = {"--accept-guesses": accept_guesses, "--partial": partial, "--cast": cast, "--verify": verify,
                      "--keywords": keywords or None, "--output": output, "--save-rules": save_rules}  # fmt: skip
        reject_options(for_models, "it is for a TARGET that is a model, and this one is a file")
    if verify is not None and not references.is_reference(source):
        raise typer.BadParameter("only a model can be run, and SOURCE is a file", param_hint="--verify")
    if keywords and verify is None:
        raise typer.BadParameter("there are no inputs: name their file with --verify", param_hint="--keywords")
    with exit_on_error(), warnings_as_sentences():
        written = output if into_model else Path(target)
        if save_rules is not None:  # refused before a model is made, which may take minutes
            check_folder(save_rules, "--save-rules")
        if written is not None:
            check_folder(written, "--output" if into_model else "TARGET")
            writers.writer(written, to)
        if into_model:
            options = TransferOptions(
                rules, save_rules, dry_run, accept_guesses, partial, cast, verify, keywords, output
            )
            code = _into_model(source, target, options)
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


def _into_model(source_name: str, target_name: str, options: TransferOptions) -> int:
    console = Console()
    with quiet() as stderr:
        inputs = None if options.verify is None else references.examples(options.verify, options.keywords)
        source: Any = source_name
        if references.is_reference(source_name):
            source = load_model(source_name, stderr)
        else:
            open_file(source_name).close()  # what is wrong with it is said before the target is made
        target = load_model(target_name, stderr)
        if options.output is not None:
            writers.is_native_export(target, options.output)
        plan = make_plan(source, target, options.rules, cast=options.cast)
        _print_plan(plan)
        counts = plan.problems(partial=options.partial, accept_guesses=options.accept_guesses or inputs is not None)
        problems = [PROBLEMS[problem].format(count) for problem, count in counts.items()]
        if options.dry_run:
            _save_rules(plan, options.save_rules)
            refusal = f"A transfer would be refused: {'; '.join(problems)}."
            done = f"A transfer would be done. {_cost(plan, target)}"
            print_verdict(console, refusal if problems else done, not problems)
            return 1 if problems else 0
        if problems:
            raise TransferError(f"Nothing was transferred: {'; '.join(problems)}.")
        with progress("transferring", len(plan.moves), stderr) as tick:
            if inputs is None:
                apply_plan(plan, target, tick)
                report = Report(plan)
            else:
                accepted = Accepted(partial=options.partial, guesses=options.accept_guesses)
                report = transfer_verified(
                    plan, source, target, inputs, options.rules, cast=options.cast, accepted=accepted, tick=tick
                )
        disagrees = inputs is not None and not report.agrees
        if not disagrees:
            _save_rules(report.plan, options.save_rules)
        text = str(report)
        if plan.missing:
            text += f"\n{len(plan.missing)} of the target that nothing makes are as they were."
        if options.output is not None and disagrees:
            text += f"\n{options.output} was not written."
        elif options.output is not None:
            text += f"\n{_save(target, options.output, stderr)}"
    print_verdict(console, text, not disagrees)
    return 1 if disagrees else 0


def _cost(plan: Plan, target: Model) -> str:
    own, read, peak = map(size, cost(plan, target))
    return f"It reads {read} and writes {own}, and holds at most {peak} beside the model."


def _save_rules(plan: Plan, path: Path | None) -> None:
    if path is not None:
        plan.rules().save(path)


def _save(model: Model, output: Path, stderr: TextIO) -> str:
    """Save a model after its transfer; the sentence that says so."""
    with progress("writing", None, stderr) as tick:
        export.export_file(model, output, export.export_names(model), tick=tick)
    return f"Written: {output}, {size(writers.written_bytes(output))}."


def _print_plan(plan: Plan) -> None:
    lines, styles = [], []
    for move in plan.moves:
        why = "" if move.why == NAME else move.why
        lines.append([Text(cell) for cell in (" + ".join(move.sources), "→", move.target, move.change, why)])
        styles.append("yellow" if move.why == GUESS else "")
    columns = ("source", "", "target", "change", "because")
    console = print_table(f"{plan.source} → {plan.target}", columns, lines, styles, words=columns)
    for title, texts, colour in (
        ("Missing, nothing makes them:", plan.missing, "red"),
        ("Unused, they go nowhere:", plan.unused, "yellow"),
        ("Refused:", [text.replace("say cast=True", "say --cast") for text in plan.refused], "red"),
        ("Ties:", plan.ties, "yellow"),
        ("These will make outputs differ:", plan.options, "yellow"),
    ):
        if texts:
            section = "\n".join([title, *(f"  {text}" for text in texts)])
            console.print(section, style=colour, highlight=False, markup=False, soft_wrap=True)


# -- into a file


def _into_file(source_name: str, target: Path, rules: Path | None, dry_run: bool, to: str | None) -> int:
    with open_source(source_name) as (source, stderr):
        names = export.export_names(source, rules)
        writers.is_native_export(source, target, to, renamed=rules is not None)
        _print_names(source_name, target, names)
        if dry_run:
            print_verdict(Console(), "Nothing was written: this is a dry run.", True)
            return 0
        with progress("writing", len(names.stored), stderr) as tick:
            export.export_file(source, target, names, format=to, renamed=rules is not None, tick=tick)
    arrays = f"{len(names.stored)} array{'s' if len(names.stored) != 1 else ''}"
    print_verdict(Console(), f"Written: {target}, {arrays}, {size(writers.written_bytes(target))}.", True)
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
