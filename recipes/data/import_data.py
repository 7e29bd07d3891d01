"""`mpo import FORM SOURCE`: published data becomes what the commands here read, and every row is accounted for.

Pairs become `pairs.parquet` (for `mpo train-mpo`), labelled steps `groups.jsonl`, `problems.jsonl` and `images/` (for
`mpo train-prm`), a benchmark its own form with images as files (for `mpo prm-eval`), problems `problems.jsonl` (for
`mpo sample`). `--sample 100` takes the first rows of each file and shows some.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.text import one_line
from recipes.config import ImportConfig
from recipes.data.convert_steps import usable_items, write_labelled_groups
from recipes.data.dataset_card import write_card
from recipes.data.import_forms import BENCHMARK, FORMS, Form
from recipes.stage.folder import PAIRS, Stage, open_stage
from recipes.stage.groups import GROUPS, iter_groups
from recipes.stage.problem_source import PROBLEMS, ProblemSource, import_problems
from recipes.stage.quarantine import Quarantine
from rewards.interchange.hub import HUB
from rewards.interchange.trl_rows import from_trl_row, iter_trl_parquet, write_trl_parquet

SHOWN = 3  # rows of a sample
MOST = 300  # characters of a text that is shown


@dataclass
class _Settings(ImportConfig):
    """The config, and the address of the Hub, which is a setting where it is no path."""

    hub: str = ""


def import_data(config: ImportConfig) -> Path:
    """Read, write, and list what could not be used in `quarantine.jsonl`.

    Raises:
        ConfigError: a source that is not of this form, or columns with a form that has its own.
        DataError: not one row could be used.
    """
    form = FORMS[config.form]
    if form.kind == "problems":
        given = ProblemSource(config.source, config.out, config.columns, "", config.sample, config.image_root)
        return import_problems(given)
    if config.columns:
        raise ConfigError(f"--columns is for problems; a row of {config.form} has the columns of its form")
    address = str(config.source)
    told = {field.name: getattr(config, field.name) for field in fields(config)}
    settings = _Settings(**told, hub=address if address.startswith(HUB) else "")
    stage = open_stage("import", settings, inputs=form.files(config.source))
    if stage.complete:
        return stage.out
    quarantine = Quarantine()
    written, file = _written(form, config, stage, quarantine)
    rejected = quarantine.counts()
    first = {row["reason"]: f"{row['id']}: {row['detail']}" for row in reversed(quarantine.rows)}
    for fault in first.values():
        print(one_line(f"import: {fault}", 500), file=sys.stderr)
    if not written:
        raise DataError(f"no row of {config.source} is of the form {config.form}: {rejected}")
    quarantine.write(stage.out)
    if form.kind in ("pairs", "steps"):
        provenance = stage.provenance()
        write_card(stage.out, pairs=written, data_file=file, fingerprint=provenance, rejected=rejected, kind=form.kind)
    counts = {"in": written + sum(rejected.values()), "out": written, "rejected": rejected}
    problems = {"problems": str(stage.out / PROBLEMS)} if form.kind == "steps" else {}
    stage.finish({**counts, **problems})
    if config.sample:
        for line in islice(_look(form, stage.out), SHOWN):
            print(line)
    return stage.out


def _written(form: Form, config: ImportConfig, stage: Stage, quarantine: Quarantine) -> tuple[int, str]:
    """Rows written, and the main file's name."""
    assert form.read is not None
    found = form.read(config, quarantine)
    if form.kind == "pairs":
        return write_trl_parquet(found, stage.out / PAIRS), PAIRS
    if form.kind == "steps":
        return write_labelled_groups(usable_items(found, quarantine), stage.out, quarantine), GROUPS
    assert form.write is not None
    return form.write(stage.out / BENCHMARK, found) if found else 0, BENCHMARK


def _look(form: Form, out: Path) -> Iterator[str]:
    """What was read, in a few lines each."""
    if form.kind == "pairs":
        for pair in map(from_trl_row, iter_trl_parquet(out / PAIRS)):
            problem = pair.problem
            yield _lines(
                f"{problem.id}, {len(problem.images)} images",
                question=problem.question,
                chosen=pair.chosen.text,
                rejected=pair.rejected.text,
            )
    elif form.kind == "steps":
        for group in iter_groups(out):
            rollout = group.rollouts[0]
            labels = " ".join(f"{count.correct}/{count.total}" for count in rollout.mc or ())
            title = f"{group.problem.id}, {len(group.problem.images)} images"
            yield _lines(title, question=group.problem.question, response=rollout.completion.text, labels=labels)


def _lines(title: str, **texts: str) -> str:
    return "\n".join([one_line(title, MOST), *(f"  {name}: {one_line(text, MOST)}" for name, text in texts.items())])
