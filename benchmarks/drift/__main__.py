"""Runs the scenes of drift and flood on a whole local stack: `make bench-drift`.

Gateway, store and executor are processes of their own; the base is hMiniLM as it ships, texts are
BBC News and film reviews, sent by `hmi.Client`. Hit rates are the services' own statistics, of
texts held out that are looked up but not counted. A sample of the answers is recomputed from the
table version that each names.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import datasets
from benchmarks.drift.live import Answered, Live
from benchmarks.drift.memory import adapters, grow
from benchmarks.drift.oracle import Oracle, chosen
from benchmarks.drift.scenes import (
    TENANTS,
    TIMES,
    Flooded,
    Move,
    Pace,
    Subject,
    drift,
    flood,
    tenants,
)
from benchmarks.report import Estimate, Goal, Report
from hmi.bases import hminilm_files, minilm_directory
from hmi.client import Client
from hmi.stack import SPLIT_BASE, LocalStack
from services.common.base_config import BaseConfig

HALF_LIFE = 50_000
ROUND = 5_000
NUM_ROUNDS, NUM_FLOOD_ROUNDS = 20, 3
PROBE_EVERY = 4
NUM_MODELS = 56
NUM_CHECKED = 200
ROOT_S = 600.0  # the root's 180,000 rows: half a minute of a core that nobody else uses
MAX_WORDS = 250  # a paragraph that is longer is cut: no text exceeds the base's 512 tokens
MAX_HELD_OUT_WORDS = 12_000
TOLERANCE = 1e-4  # of a vector of length 1, in float32 on both sides
_POINTS = Goal("<=", 2.0)


def subject(label: str, seed: int = 0) -> Subject:
    """Paragraphs of a BBC topic, a fifth of the documents held out.

    Raises:
        Missing: The texts are not there.
    """
    documents = [document.text for document in datasets.bbc() if document.label == label]
    order = np.random.default_rng(seed).permutation(len(documents))
    cut = len(documents) // 5
    held_out, num_words = [], 0
    for text in _paragraphs([documents[place] for place in order[:cut]]):
        num_words += len(text.split())
        if num_words > MAX_HELD_OUT_WORDS:
            break
        held_out.append(text)
    return Subject(_paragraphs([documents[place] for place in order[cut:]]), held_out)


def _paragraphs(documents: list[str]) -> list[str]:
    lines = [line.split()[:MAX_WORDS] for text in documents for line in text.splitlines()]
    return [" ".join(words) for words in lines if words]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__)
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS, help="of the drift")
    parser.add_argument("--flood-rounds", type=int, default=NUM_FLOOD_ROUNDS)
    options = parser.parse_args()
    try:
        sport, politics = subject("sports"), subject("politics")
        reviews = [document.text for document in datasets.rotten_tomatoes()]
    except datasets.Missing as missing:
        sys.exit(str(missing))
    env = {"executor": {"HMI_DTYPE": "float32"}}
    with (
        tempfile.TemporaryDirectory() as directory,
        Report("drift") as report,
        LocalStack(Path(directory), port=0, env=env) as stack,
        Client(stack.address, key=stack.admin_key) as admin,
    ):
        live = Live(admin, SPLIT_BASE, minilm_directory() / "tokenizer.json")
        live.until(lambda: SPLIT_BASE in [base.name for base in admin.list_bases()])
        live.until(lambda: bool(admin.get_domain(SPLIT_BASE, "").table_version), ROOT_S)
        live.add_tenants(tenants())
        _describe(report)
        pace = Pace(HALF_LIFE, ROUND, options.rounds, PROBE_EVERY)
        _report_drift(report, drift(live, sport, politics, pace))
        pace = Pace(HALF_LIFE, ROUND, options.flood_rounds)
        _report_flood(report, flood(live, sport, reviews, pace))
        _report_memory(report, live, stack)
        encoder = next(file for file in hminilm_files() if "encoder" in file.name)
        oracle = Oracle(minilm_directory(), encoder, stack.data_dir / "blobs")
        _report_answers(report, live, oracle)


def _describe(report: Report) -> None:
    report.note(
        f"a stack of gateway, store and executor (float32) on {SPLIT_BASE}; half-life "
        f"{HALF_LIFE:,} tokens; ten tenants send paragraphs of BBC News, about {ROUND:,} tokens in "
        "all between two updates; a hit is a token answered by a trigram or bigram, of held-out "
        "paragraphs, by the statistics of `hmi domains stats`"
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    report.note(f"load of the machine as it began (1, 5, 15 minutes): {load}")


def _report_drift(report: Report, move: Move) -> None:
    tokens = np.cumsum(move.tokens)
    report.note(f"drift: {tokens[-1]:,} tokens of politics in {len(move.updates)} rounds, in a "
                "domain made of a corpus of sport")  # fmt: skip
    behind = "drift: behind a table built of the new traffic"
    report.add(f"{behind}, as the move begins", _exact(move.lost(move.before)), "points")
    for number, hits in move.after.items():
        last = number == len(move.updates)
        report.add(f"{behind}, after {number} updates", _exact(move.lost(hits)), "points",
                   _POINTS if last else None)  # fmt: skip
    report.add("drift: hit rate of the table built of the new traffic",
               _exact(100 * move.anew.share), "%")  # fmt: skip
    back = [n for n, hits in move.after.items() if move.lost(hits) <= _POINTS.bound]
    if back:
        report.add("drift: updates until within 2 points, at most", _exact(back[0]), "")
        report.add("drift: tokens until then", _exact(float(tokens[back[0] - 1])), "tokens")
    report.add("drift: rows an update changed, of the larger of the tables before and wanted, "
               "at most", _exact(100 * max(u.share for u in move.updates)), "%",
               Goal("<=", 5.0))  # fmt: skip
    report.add("drift: rows beside them that the corpus holds, at most",
               _exact(100 * max(u.exempt_share for u in move.updates)), "%")  # fmt: skip
    seconds = sorted(update.seconds for update in move.updates)
    report.add("drift: an update, from the call to its swap",
               Estimate(float(np.median(seconds)), seconds[0], seconds[-1]), "s")  # fmt: skip
    report.note("the interval of an update's seconds is the fastest and the slowest")


def _report_flood(report: Report, flooded: Flooded) -> None:
    times = flooded.num_flood_tokens / flooded.num_other_tokens
    report.note(f"flood: one tenant sent film reviews, {flooded.num_flood_tokens:,} tokens, "
                f"{times:.1f} times what all the others sent together of sport; the tables were "
                "at their budgets")  # fmt: skip
    lost = 100 * (flooded.quiet.share - flooded.flooded.share)
    report.add(f"flood: a tenant that sends {TIMES} times what all others send costs them",
               _exact(lost), "points", _POINTS)  # fmt: skip
    report.add("flood: the others' hit rate without it", _exact(100 * flooded.quiet.share), "%")


def _report_memory(report: Report, live: Live, stack: LocalStack) -> None:
    config = BaseConfig.from_file(minilm_directory() / "config.json")
    split = live.admin.get_base(SPLIT_BASE).split
    assert split is not None
    blobs = adapters(config, split.layer, NUM_MODELS)
    executor = stack.pids["executor"]
    growth = grow(live.admin, SPLIT_BASE, "anew", TENANTS[0], blobs, "One more model.", executor)
    report.note(f"memory: {growth.num_models} further models that share a domain, LoRA of rank 8 "
                "with a classifier; the executor's own memory, mapped files left out, holds an "
                "adapter twice, packed and in the device's arena")  # fmt: skip
    report.add("memory: a further model by `hmi domains stats`",
               _exact(growth.version_bytes / 1e3), "kB")  # fmt: skip
    report.add("memory: a further model in the executor's process",
               _exact(growth.resident_bytes / 1e3), "kB")  # fmt: skip
    report.add("memory: the table that they share", _exact(growth.after.node_bytes / 1e6), "MB")
    for kind, value in growth.after.device_bytes.items():
        grown = value - growth.before.device_bytes[kind]
        report.add(f"memory: hmi_device_bytes of {kind}, a further model",
                   _exact(grown / growth.num_models), "B", Goal("<=", 0.0))  # fmt: skip


def _report_answers(report: Report, live: Live, oracle: Oracle) -> None:
    sample = chosen(live.answers, NUM_CHECKED)
    distances = [oracle.distance(answer) for answer in sample]
    wrong = sum(distance > TOLERANCE for distance in distances)
    report.add("answers", _exact(live.num_answered), "")
    report.add("calls that failed", _exact(len(live.failures)), "", Goal("<=", 0.0))
    report.add("answers recomputed at the table version they name", _exact(len(sample)), "")
    report.add("of those, table versions", _exact(len({a.table_version for a in sample})), "")
    report.add("of those, wrong", _exact(wrong), "", Goal("<=", 0.0))
    report.add("largest difference of a value", _exact(max(distances)), "")
    told = _told_apart(sample, oracle)
    report.add("answers that another table version of their domain would not give", _exact(told),
               "%")  # fmt: skip
    for failure in live.failures[:5]:
        report.note(failure)


def _told_apart(sample: list[Answered], oracle: Oracle) -> float:
    """Whether the check can tell versions apart: in % of answers, against their domain's first."""
    first: dict[str, str] = {}
    others = []
    for answer in sample:
        version = first.setdefault(answer.path, answer.table_version)
        if version != answer.table_version:
            others.append(oracle.distance(answer, version) > TOLERANCE)
    return 100 * sum(others) / max(len(others), 1)


def _exact(value: float) -> Estimate:
    return Estimate(value, value, value)


if __name__ == "__main__":
    main()
