"""Which rows can be trained on, decided before step 0: in = kept + rejected, by reason.

The checks are the collator's own. Of an image only the header is read. So damage behind an intact header, and any
fault in a stream, is found only in training, where it stops the run and names the row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import datasets
from accelerate.utils import gather_object
from torch.utils.data import Subset
from tqdm.auto import tqdm
from transformers.utils import logging

from mpo.collator import PreferenceCollator
from mpo.config import MPOConfig
from mpo.multimodal.errors import ConfigError, DataError, ImageError
from mpo.multimodal.prompt_length import PromptLength
from mpo.multimodal.text import one_line
from mpo.rows import Row

EXAMPLES = 3  # rows named for each reason

logger = logging.get_logger(__name__)


class Rejection(NamedTuple):
    """One row that cannot be trained on: its place, its name, the kind of fault, and what was found."""

    row: int
    name: str
    reason: str
    message: str


class Note(NamedTuple):
    """What is odd about a row that is trained on."""

    row: int
    name: str
    kind: str


@dataclass(frozen=True)
class AdmissionReport:
    """The account of one dataset.

    Attributes:
        rows: rows in.
        rejections: one for each row that was left out, in the dataset's order.
        chosen_tokens: |y_c| of each row that was kept, in the dataset's order.
        notes: what is odd about rows that were kept, in the dataset's order.
    """

    rows: int
    rejections: tuple[Rejection, ...] = ()
    chosen_tokens: tuple[int, ...] = field(default=(), repr=False)
    notes: tuple[Note, ...] = ()

    @property
    def kept(self) -> int:
        """Rows that are trained on."""
        return self.rows - len(self.rejections)

    @property
    def rejected(self) -> dict[str, int]:
        """Reason → rows, the most frequent first."""
        return dict(Counter(rejection.reason for rejection in self.rejections).most_common())

    @property
    def noted(self) -> dict[str, int]:
        """What is odd → rows that are trained on, the most frequent first."""
        return dict(Counter(note.kind for note in self.notes).most_common())

    def lines(self, name: str) -> list[str]:
        """The account in words: the sum, each reason with its first rows, and what is odd about kept rows.

        Example:
            >>> report = AdmissionReport(9, (Rejection(4, "p4", "empty response", "chosen: a response is empty"),))
            >>> print("\\n".join(report.lines("train")))
            train: 9 rows in = 8 kept + 1 rejected
                1 empty response (p4); the first: chosen: a response is empty
        """
        lines = [f"{name}: {self.rows} rows in = {self.kept} kept + {len(self.rejections)} rejected"]
        for reason, number in self.rejected.items():
            some = [rejection for rejection in self.rejections if rejection.reason == reason]
            lines.append(f"{number:>5} {reason} ({_names(some)}); the first: {one_line(some[0].message, 200)}")
        for kind, number in self.noted.items():
            lines.append(f"{number:>5} kept with a note ({_names([n for n in self.notes if n.kind == kind])}): {kind}")
        return lines


def _names(some: Sequence[Rejection | Note]) -> str:
    return ", ".join(one_line(one.name, 40) for one in some[:EXAMPLES]) + ", …" * (len(some) > EXAMPLES)


class PairLength(NamedTuple):
    """Tokens of one pair. `image` is a part of `prompt`: the placeholders and what frames them; `counted` is the part
    of `rejected` that L_p and L_q read.
    """

    prompt: int
    image: int
    chosen: int
    rejected: int
    counted: int

    @property
    def longer(self) -> int:
        """Prompt and longer response: what `max_length` limits."""
        return self.prompt + max(self.chosen, self.rejected)


def admit_all(
    collator: Any, *, train: Any, evaluation: Any, args: MPOConfig, context: int | None = None
) -> tuple[Any, Any, dict[str, AdmissionReport]]:
    """A trainer's datasets without the rows that cannot be trained on; each account is logged once.

    Args:
        collator: the trainer's; rows of any collator but a `PreferenceCollator` are not checked.
        train: a dataset, or None.
        evaluation: a dataset, a dict of datasets, or None.
        args: of the run. Its ranks share the work, and all of them keep the same rows.
        context: most tokens that the model reads; None where it does not say.

    Returns:
        train, evaluation, and the accounts by name: "train", "eval", or "eval_KEY" in a dict.

    Raises:
        ConfigError: `max_length` with another collator.
        DataError: a dataset of which no row is left.
    """
    reports: dict[str, AdmissionReport] = {}
    if not isinstance(collator, PreferenceCollator):
        if args.max_length is not None:
            raise ConfigError("max_length needs a PreferenceCollator: drop long rows before training")
        return train, evaluation, reports

    def admitted(rows: Any, name: str) -> Any:
        if rows is None:
            return None
        if not hasattr(rows, "__len__"):
            logger.warning(
                "%s: a stream cannot be checked beforehand; a row that cannot be used will stop the run", name
            )
            return rows
        share = {"rank": args.process_index, "world_size": args.world_size, "quiet": args.disable_tqdm}
        kept, reports[name] = admit(rows, collator, max_length=args.max_length, context=context, name=name, **share)
        return kept

    train = admitted(train, "train")
    if isinstance(evaluation, Mapping):
        return train, {key: admitted(rows, f"eval_{key}") for key, rows in evaluation.items()}, reports
    return train, admitted(evaluation, "eval"), reports


def admit(
    rows: Any,
    collator: PreferenceCollator,
    *,
    max_length: int | None = None,
    context: int | None = None,
    name: str = "train",
    rank: int = 0,
    world_size: int = 1,
    quiet: bool = False,
) -> tuple[Any, AdmissionReport]:
    """The rows that `collator` will take, in their order, and the account of the others.

    Args:
        rows: a `datasets.Dataset`, which is indexed and not copied, a list, or anything with a length and items.
        collator: finds what is wrong with a row.
        max_length: most tokens of a row's prompt, images included, and longer response; None is no limit.
        context: most tokens of a response that the model reads; None is no limit.
        name: of the dataset, for the log.
        rank, world_size: each rank looks at every `world_size`-th row, and all learn of all rejections.
        quiet: no progress bar.

    Raises:
        DataError: no row is left.
    """
    mine = range(rank, len(rows), world_size)
    check = _Check(collator, max_length, context)
    rejections: list[Rejection] = []
    shown = tqdm(mine, desc=f"checking rows of {name}", unit="row", disable=quiet or rank > 0, delay=2.0)
    for index, cheap in zip(shown, _undecoded(rows, mine), strict=True):
        as_trained = partial(_read, rows, index)
        fault = check.fault(index, as_trained if cheap is None else partial(dict, cheap))
        if cheap is not None and fault is not None and fault.reason == ImageError.reason:
            fault = check.fault(index, as_trained)  # the dataset itself may open what we do not: a path in a data file
        rejections += [fault] if fault else []
    chosen, notes = check.chosen, check.notes
    if world_size > 1:
        rejections, chosen = sorted(gather_object(rejections)), dict(gather_object([*chosen.items()]))
        notes = sorted(gather_object(notes))
    report = AdmissionReport(
        len(rows), tuple(rejections), tuple(chosen[row] for row in sorted(chosen)), tuple(Note(*note) for note in notes)
    )
    if rank == 0:
        log = logger.warning if rejections or notes else logger.info
        log("\n".join(report.lines(name)))
    if not report.kept:
        raise DataError("no row is left to use: " + "; ".join(" ".join(line.split()) for line in report.lines(name)))
    return _without(rows, {rejection.row for rejection in rejections}), report


def lengths(rows: Any, collator: PreferenceCollator, *, quiet: bool = False) -> list[PairLength]:
    """Tokens of every row of an admitted dataset, without decoding images where the processor can tell."""
    count = PromptLength(collator.processor, image_root=collator.image_root)
    indices = range(len(rows))
    shown = tqdm(indices, desc="measuring rows", unit="row", disable=quiet, delay=2.0)
    return [
        _length(collator, count, rows[index] if cheap is None else cheap)
        for index, cheap in zip(shown, _undecoded(rows, indices), strict=True)
    ]


class _Check:
    """One pass over a dataset: what is wrong with a row."""

    def __init__(self, collator: PreferenceCollator, max_length: int | None, context: int | None) -> None:
        self.collator, self.max_length, self.context = collator, max_length, context
        self.chosen: dict[int, int] = {}  # row → tokens of its chosen response, of those without a fault
        self.notes: list[Note] = []
        self.count = PromptLength(collator.processor, image_root=collator.image_root)

    def fault(self, index: int, read: Callable[[], Row]) -> Rejection | None:
        name = f"row {index}"
        try:
            row = read()
            name = name if row.get("problem_id") is None else str(row["problem_id"])
            pair = self.collator.check(row)
            longer = max(len(pair.chosen), len(pair.rejected))
            if self.context is not None and longer > self.context:
                raise DataError(
                    f"a response of {longer} tokens; this model reads {self.context}: set max_length to what fits",
                    reason="longer than the model reads",
                )
            if self.max_length is None:
                self.count.check(pair.prompt, pair.images)
            else:
                pair.check_length(self.count(pair.prompt, pair.images).total, self.max_length)
        except DataError as error:
            return Rejection(index, name, error.reason, str(error))
        self.chosen[index] = len(pair.chosen)
        self.notes += [Note(index, name, kind) for kind in pair.notes]
        return None


def _read(rows: Any, index: int) -> Row:
    try:
        return rows[index]
    except OSError as error:  # a dataset that decodes its images itself
        raise ImageError(f"the dataset cannot decode its image: {error}") from error


def _length(collator: PreferenceCollator, count: PromptLength, row: Row) -> PairLength:
    pair = collator.check(row)
    return PairLength(*count(pair.prompt, pair.images), len(pair.chosen), len(pair.rejected), pair.rejected_tokens)


def _undecoded(rows: Any, indices: Sequence[int]) -> Iterator[Row | None]:
    """The rows with their images as bytes, where a dataset would decode them at every access; else None."""
    if isinstance(rows, datasets.Dataset) and rows.format["type"] is None and len(indices):
        yield from rows.select(indices).to_iterable_dataset().decode(False)
    else:
        yield from (None for _ in indices)


def _without(rows: Any, rejected: set[int]) -> Any:
    if not rejected:
        return rows
    kept = [index for index in range(len(rows)) if index not in rejected]
    if isinstance(rows, datasets.Dataset):
        return rows.select(kept)
    return [rows[index] for index in kept] if isinstance(rows, list) else Subset(rows, kept)


def context_of(model: Any) -> int | None:
    """How many positions a loaded model was made for; None for a path, or a model that does not say."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "max_position_embeddings", None)
