"""Stage 2: continues a local encoder on a domain's own text.

Knows which schedule suits a small corpus. The objective stays stage 1's, fidelity to the base: the
base's checkpoint has no masked-language-model head to learn from, and faithful rows are what any
task's adapter builds on (docs/adr/0007-adapting-a-domain.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.common.errors import InvalidArgument
from services.common.local_encoder_format import FILE_NAME, Form
from services.executor.construct.distill import Schedule
from services.executor.construct.local_file import read_local
from services.executor.construct.progress import Watcher
from services.executor.construct.run import DistillOptions, run, unsplit_digest

# An encoder that is good already is moved gently: a quarter of stage 1's rate.
_LEARNING_RATE = 1e-4
_WARM_UP_TOKENS = 50_000


@dataclass(frozen=True, slots=True)
class AdaptOptions:
    """Which encoder to continue, on what.

    Attributes:
        base_dir: The unsplit checkpoint.
        parent: The `local_encoder.safetensors` that the domain's parent uses.
        corpus: As `DistillOptions.corpus`.
        out: Directory for the result; a run that broke off there goes on.
        num_tokens: To learn from, counted with repeats.
        device: auto, cpu or cuda.
    """

    base_dir: Path
    parent: Path
    corpus: tuple[Path, ...]
    out: Path
    num_tokens: int = 500_000
    seed: int = 0
    device: str = "auto"


def adapt(options: AdaptOptions, watcher: Watcher | None = None) -> Path:
    """Adapt an encoder: its layers and gate move, the merging stays the root's.

    Returns:
        The new `local_encoder.safetensors`.

    Raises:
        InvalidArgument, FailedPrecondition: As `run`; the parent is no local encoder, or of another
            base.
    """
    _, metadata = read_local(options.parent)
    if metadata.get("unsplit_digest") != unsplit_digest(options.base_dir):
        raise InvalidArgument("base_dir", f"is not the base that {options.parent} was made for")
    run(
        DistillOptions(
            base_dir=options.base_dir,
            split=int(metadata["split"]),
            corpus=options.corpus,
            out=options.out,
            schedule=Schedule(
                options.num_tokens,
                learning_rate=_LEARNING_RATE,
                warm_up_tokens=_WARM_UP_TOKENS,
                seed=options.seed,
            ),
            form=Form(metadata["form"]),
            parent=options.parent,
            device=options.device,
        ),
        watcher or Watcher(),
    )
    return options.out / FILE_NAME
