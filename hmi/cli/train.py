"""`hmi train`: adapter and head from a labelled file, on this machine, without a server."""

from __future__ import annotations

import os
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from hmi.bases import DEFAULT_BASE, trained_on
from hmi.cli.domain_options import ROOT
from hmi.cli.output import note, print_json, size
from hmi.cli.session import Json
from hmi.cli.wording import of_a_local_run
from hmi.errors import InvalidArgument

if TYPE_CHECKING:
    from services.executor.train import TrainOptions, TrainReport

_Kind = TypeVar("_Kind", bound=StrEnum)

_WRITTEN = ("adapter_config.json", "adapter_model.safetensors", "hmi.json")


def train(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", exists=True, dir_okay=False, help="CSV or JSON Lines."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="Directory to write.")],
    base: Annotated[str, typer.Option(help="Name of the base.")] = DEFAULT_BASE,
    base_dir: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Its checkpoint; known for minilm and hminilm."
        ),
    ] = None,
    local_encoder: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="A domain's own encoder; by default the split base's.",
        ),
    ] = None,
    domain: Annotated[
        str | None, typer.Option(help="The domain it will be pushed with (split bases).")
    ] = None,
    policy: Annotated[
        str, typer.Option(help="The domain's: backoff, or compute (split bases).")
    ] = "backoff",
    task: Annotated[str | None, typer.Option(help="By default told from the data.")] = None,
    adapter: Annotated[str, typer.Option(help="lora or ia3.")] = "lora",
    rank: Annotated[int, typer.Option(help="LoRA's r.")] = 8,
    alpha: Annotated[int, typer.Option(help="LoRA's scale times r.")] = 16,
    epochs: Annotated[int, typer.Option(help="Passes over the data at most.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Texts a step.")] = 16,
    learning_rate: Annotated[float | None, typer.Option(help="By default the adapter's.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Longer texts are cut, with a note; by default what the base reads."),
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share kept for the metrics.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Json = False,
) -> None:
    """Fit an adapter and a head to labelled texts.

    The directory written can be pushed, and PEFT loads it.
    """
    # None of these imports torch: what is wrong with options or data is said before it is loaded.
    from services.common.errors import HmiError as ServiceError
    from services.executor.train import Adapter, MissPolicy, Task, TrainOptions
    from services.executor.train.data import read_examples
    from services.executor.train.splits import split

    found = trained_on(base, base_dir)
    local_encoder = local_encoder or found.local_encoder
    if domain is not None and local_encoder is None:
        raise InvalidArgument(
            f"--domain: base {base} is not split, so it has no domains: leave it out, or name a "
            "split --base such as hminilm",
            field="domain",
        )
    try:
        options = TrainOptions(
            data=data,
            base_dir=found.directory,
            base=base,
            out=out,
            local_encoder=local_encoder,
            root_keys=found.root_keys,
            policy=_one_of(MissPolicy, policy, "policy"),
            domain=None if domain == ROOT else domain,
            task=None if task is None else _one_of(Task, task, "task"),
            adapter=_one_of(Adapter, adapter, "adapter"),
            rank=rank,
            alpha=alpha,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            max_tokens=max_tokens,
            held_out=held_out,
            seed=seed,
            device=device,
        )
        split(read_examples(options.data, options.task), options.held_out, options.seed)
        report = _fit(options, is_quiet=as_json)
    except ServiceError as error:
        raise of_a_local_run(error) from error
    if as_json:
        print_json(report.to_json())
    else:
        _show(report, options)


def _one_of(kinds: type[_Kind], value: str, option: str) -> _Kind:
    """The kind that a value names.

    Raises:
        InvalidArgument: It names none.
    """
    known = [kind.value for kind in kinds]
    if value not in known:
        raise InvalidArgument(f"--{option} {value} is none of {', '.join(known)}", field=option)
    return kinds(value)


def _fit(options: TrainOptions, *, is_quiet: bool) -> TrainReport:
    from services.executor.train import EpochLines, ProgressBar
    from services.executor.train.run import train

    if is_quiet:
        return train(options)
    title = options.data.name
    return train(options, ProgressBar(title) if os.isatty(2) else EpochLines(title, note))


def _show(report: TrainReport, options: TrainOptions) -> None:
    from services.executor.train.progress import shown

    if report.epochs < options.epochs:
        note(
            f"stopped after epoch {report.epochs} of {options.epochs}: the held-out loss has not "
            f"fallen for {options.patience} epochs"
        )
    note(
        f"kept epoch {report.best_epoch}: {report.task.value}, {shown(report.metrics)} on "
        f"{report.num_held_out} held-out texts"
    )
    files = sorted(path for path in report.out.iterdir() if path.name in _WRITTEN)
    listed = ", ".join(f"{path.name} ({size(path.stat().st_size)})" for path in files)
    note(f"wrote {report.out}: {listed}")
    note(f"next: hmi models push {shlex.quote(str(report.out))} --name NAME")
