"""`hmi distill`: a split base from a base and text, on this machine, without a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmi.bases import DEFAULT_BASE, minilm_directory
from hmi.cli.output import note, print_json
from hmi.cli.session import Json
from hmi.cli.wording import of_a_local_run
from hmi.errors import InvalidArgument

if TYPE_CHECKING:
    from services.executor.construct.progress import Watcher


def distill(
    split: Annotated[int, typer.Option(help="Layers below this one become tables.")],
    corpus: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="UTF-8 text, a paragraph a line, empty lines between documents. May be repeated.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Results; a broken run goes on.")
    ],
    base: Annotated[str, typer.Option(help="Name of the base.")] = DEFAULT_BASE,
    base_dir: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="The base's checkpoint; known for minilm."),
    ] = None,
    form: Annotated[str, typer.Option(help="centre, or sum as SkipBERT has it.")] = "centre",
    tokens: Annotated[
        int, typer.Option(help="Tokens to learn from, repeats counted.")
    ] = 20_000_000,
    batch_tokens: Annotated[int, typer.Option(help="Tokens a step.")] = 4096,
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = 4e-4,
    warm_up_tokens: Annotated[int, typer.Option(help="Until the rate is highest.")] = 400_000,
    root_entries: Annotated[int, typer.Option(help="Longer n-grams in the root.")] = 280_000,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Json = False,
) -> None:
    """Distil a local encoder: the base's lower layers for one n-gram at a time.

    The directory then holds local_encoder.safetensors and root_keys.safetensors: beside the base's
    own files they make a split base.
    """
    if base_dir is None:
        if base != DEFAULT_BASE:
            raise InvalidArgument(f"--base-dir is needed for base {base}", field="base_dir")
        base_dir = minilm_directory()
    if form not in ("centre", "sum"):
        raise InvalidArgument("--form is neither centre nor sum", field="form")
    if tokens < 1 or batch_tokens < 1 or warm_up_tokens < 1 or learning_rate <= 0:
        raise InvalidArgument("token counts and the learning rate must be positive", field="tokens")
    # Torch is loaded only now that the command line is known to be right.
    from services.common.errors import HmiError as ServiceError
    from services.common.local_encoder_format import Form
    from services.executor.construct.distill import Schedule
    from services.executor.construct.run import DistillOptions, run

    options = DistillOptions(
        base_dir=base_dir,
        split=split,
        corpus=tuple(corpus),
        out=out,
        schedule=Schedule(tokens, batch_tokens, learning_rate, warm_up_tokens, seed),
        form=Form(form),
        max_root_entries=root_entries,
        device=device,
    )
    try:
        with _watcher(is_quiet=as_json) as watcher:
            report = run(options, watcher)
    except ServiceError as error:
        raise of_a_local_run(error) from error
    if as_json:
        print_json(report)
        return
    cosines = ", ".join(f"{name} {view['cosine']:.3f}" for name, view in report["fidelity"].items())
    note(f"{out}: {report['learnt_tokens']:,} tokens; pooled cosine to the base: {cosines}")


def _watcher(*, is_quiet: bool) -> Watcher:
    from services.executor.construct.progress import Bar, Lines, Watcher

    if is_quiet:
        return Watcher()
    return Bar() if os.isatty(2) else Lines(note)
