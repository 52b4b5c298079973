"""`make demo`: one base, three tenants, three tasks, one mixed batch; in under three minutes.

Starts a whole stack in a temporary directory and trains meanwhile. Uses only what any user has:
`hmi.Client`, `hmi.stack` and the training that `hmi train` runs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from examples.steps import Steps, Stoppable
from hmi import AsyncClient, Client, HmiError
from hmi.bases import minilm_directory
from hmi.client import Classification, Prediction, Provenance, TokenTags
from hmi.stack import DEFAULT_BASE, LocalStack
from hmi.supervisor import StackError
from services.common import errors
from services.executor.train import TrainOptions, TrainReport
from services.executor.train.run import train

HERE = Path(__file__).parent
MIN_SHARE_AS_EXPECTED = 0.6
"""Below this the path is broken, not a small model mistaken now and then."""


@dataclass(frozen=True)
class Plan:
    """A tenant, its model, and the file the model is trained on."""

    tenant: str
    model: str
    data: Path


PLANS = (
    Plan("gazette", "topics", HERE / "topics.csv"),
    Plan("bistro", "sentiment", HERE / "sentiment.csv"),
    Plan("archive", "entities", HERE / "entities.jsonl"),
)


@dataclass(frozen=True)
class Question:
    """A text none of the files holds, and what a person would answer."""

    model: str
    text: str
    expected: str


@dataclass(frozen=True)
class Asked:
    """An answer, with where it came from and how long it took."""

    question: Question
    provenance: Provenance
    prediction: Prediction
    latency_ms: float


MIN_WIDTH = 100
"""Of a file or a pipe, whose width nobody knows."""


class DemoError(Exception):
    """An answer that cannot be right; the message is one line."""


def main() -> int:
    """Run the demonstration; the process's exit status."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(MIN_WIDTH, console.width))
    try:
        run(console)
    except (StackError, HmiError, errors.HmiError, DemoError) as error:
        console.print(f"demo failed: {error}", style="bold red", markup=False)
        return 1
    return 0


def run(console: Console) -> None:
    """The whole demonstration.

    Raises:
        StackError: The stack did not start.
        HmiError: A call or a training failed (the client's error, or the services').
        DemoError: An answer came from another model than asked, or the answers are no good.
    """
    started = time.monotonic()
    with ExitStack() as closing:
        root = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="hmi-demo-")))
        shown = closing.enter_context(Steps(console))
        trainer = ThreadPoolExecutor(1)
        closing.callback(trainer.shutdown, cancel_futures=True)
        stop = threading.Event()
        closing.callback(stop.set)
        shown.begin("local stack", total=None, status="starting")
        reports = [trainer.submit(fit, plan, root / plan.model, shown, stop) for plan in PLANS]
        # The stack starts on this thread: its processes die with the thread that made them.
        stack = closing.enter_context(LocalStack(root / "data", port=0, with_split_base=False))
        shown.advance("local stack", status=f"serving on {stack.address}")
        keys = push_all(stack, reports, shown)
        began = time.monotonic()
        asked = asyncio.run(ask_all(stack.address, keys, read_questions()))
        took_ms = (time.monotonic() - began) * 1e3
    console.print(table(asked))
    num_as_expected = check(asked)
    console.print(
        f"{len(asked)} texts for {len(PLANS)} tenants' models went out at once and were answered "
        f"in {took_ms:.0f} ms, by one shared copy of MiniLM; {num_as_expected} as a person would "
        f"answer. Each model adds {adapter_kilobytes(reports)} kB to it. "
        f"All in all {time.monotonic() - started:.0f} s; the stack is stopped, nothing is left.",
        style="bold green",
    )


def fit(plan: Plan, out: Path, shown: Steps, stop: threading.Event) -> TrainReport:
    """Train a plan's model, as `hmi train` does."""
    torch.set_num_threads(1)  # the stack starts on the other core; batches this small gain nothing
    options = TrainOptions(
        data=plan.data, base_dir=minilm_directory(), base=DEFAULT_BASE, out=out,
        epochs=12, learning_rate=4e-3,
    )  # fmt: skip
    title = f"{plan.tenant}/{plan.model}"
    report = train(options, Stoppable(shown.training(title), stop))
    shown.trained(title, report)
    return report


def push_all(
    stack: LocalStack, reports: Sequence[Future[TrainReport]], shown: Steps
) -> dict[str, str]:
    """Create the tenants and push their models as they are ready; each model's tenant's key."""
    keys: dict[str, str] = {}
    shown.begin("push", total=len(PLANS), status="each model once it is trained")
    with Client(stack.address, key=stack.admin_key) as admin:
        for plan, report in zip(PLANS, reports, strict=True):
            created = admin.create_tenant(plan.tenant)
            if created.key is None:
                raise DemoError(f"tenant {plan.tenant} was made without a key")
            keys[plan.model] = created.key.secret
            with Client(stack.address, key=created.key.secret) as client:
                version = client.push_version(plan.model, report.result().out)
            status = f"{plan.tenant}/{plan.model} version {version.number}, {version.digest[:12]}"
            shown.advance("push", status=status)
    return keys


async def ask_all(address: str, keys: dict[str, str], questions: Sequence[Question]) -> list[Asked]:
    """Ask every question at once, each with its own tenant's key; answers in their order."""
    async with AsyncExitStack() as closing:
        clients = {
            model: await closing.enter_async_context(AsyncClient(address, key=key))
            for model, key in keys.items()
        }
        return await asyncio.gather(*(ask(clients[q.model], q) for q in questions))


async def ask(client: AsyncClient, question: Question) -> Asked:
    """Ask one question."""
    began = time.monotonic()
    answer = await client.predict(question.model, [question.text])
    latency_ms = (time.monotonic() - began) * 1e3
    return Asked(question, answer.provenance, answer[0], latency_ms)


def read_questions() -> list[Question]:
    """The questions of questions.jsonl."""
    lines = (HERE / "questions.jsonl").read_text("utf-8").splitlines()
    return [Question(**json.loads(line)) for line in lines]


def described(prediction: Prediction) -> tuple[str, float]:
    """An answer in words and its probability (of a text's spans, the least)."""
    match prediction:
        case Classification(label=label, score=score):
            return label, score
        case TokenTags(spans=()):
            return "nothing", 1.0
        case TokenTags(spans=spans):
            words = ", ".join(f"{span.text}: {span.label}" for span in spans)
            return words, min(span.score for span in spans)
    raise DemoError(f"a {type(prediction).__name__} was not expected here")


def table(asked: Sequence[Asked]) -> Table:
    """What was asked and answered, in the order it was sent; p is the answer's probability."""
    shown = Table(
        title="One mixed batch", title_style="bold", caption="p: probability of the answer",
        box=box.SIMPLE_HEAD,
    )  # fmt: skip
    shown.add_column("text")
    shown.add_column("tenant/model version", no_wrap=True)
    shown.add_column("answer")
    shown.add_column("p", justify="right", no_wrap=True)
    shown.add_column("latency", justify="right", no_wrap=True)
    for one in asked:
        answer, probability = described(one.prediction)
        source = one.provenance
        shown.add_row(
            one.question.text, f"{source.tenant}/{source.model} v{source.version}", answer,
            "" if answer == "nothing" else f"{probability:.2f}", f"{one.latency_ms:.0f} ms",
        )  # fmt: skip
    return shown


def check(asked: Sequence[Asked]) -> int:
    """How many answers are as expected.

    Raises:
        DemoError: An answer names another tenant's model, or too few are right.
    """
    tenants = {plan.model: plan.tenant for plan in PLANS}
    for one in asked:
        source = one.provenance
        if (source.tenant, source.model) != (tenants[one.question.model], one.question.model):
            raise DemoError(f"{one.question.text!r} was answered by {source.tenant}/{source.model}")
    num_right = sum(described(one.prediction)[0] == one.question.expected for one in asked)
    if num_right < MIN_SHARE_AS_EXPECTED * len(asked):
        raise DemoError(f"only {num_right} of {len(asked)} answers are as expected")
    return num_right


def adapter_kilobytes(reports: Sequence[Future[TrainReport]]) -> int:
    """Mean size of what training wrote, in kB (float32 parameters)."""
    parameters = [report.result().num_trained_parameters for report in reports]
    return round(sum(parameters) * 4 / len(parameters) / 1e3)


if __name__ == "__main__":
    sys.exit(main())
