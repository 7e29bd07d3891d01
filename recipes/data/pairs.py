"""`mpo pairs`: verified and scored rollouts → TRL vision-preference rows, with the account of what was dropped."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.files import write_atomic
from recipes.config import PairsConfig
from recipes.data.dataset_card import write_card
from recipes.stage.engine import engine
from recipes.stage.exclusive import DROPOUT, refuse_exclusive
from recipes.stage.folder import PAIRS, Stage, open_stage
from recipes.stage.groups import iter_groups, problems_of
from recipes.stage.kept_calls import open_calls
from recipes.stage.own_server import served
from recipes.stage.policies import blind_continuer_of, servers_of
from recipes.stage.set_aside import without_failing
from rewards.interchange.mmpr import write_mmpr
from rewards.interchange.trl_rows import write_trl_parquet
from rewards.pairing.eligibility import without_second_opinion
from rewards.pairing.limits import Limits
from rewards.pairing.prefixes import with_step_pairs
from rewards.pairing.report import PairingReport
from rewards.pairing.rules import LIMITS, RULES, Pairing, Rule, prm_margin, seen_by
from rewards.pairing.spans import RejectedSpan
from rewards.prm.labelling.continuations import CONTINUATIONS, with_right_continuations
from rewards.sampling.generator import SamplingParams
from rewards.types import PreferencePair, RolloutGroup

REPORT = "report.json"

_log = logging.getLogger(__name__)


def pairs(config: PairsConfig) -> Path:
    """Write `pairs.parquet`, which `MPOTrainer` and TRL's `DPOTrainer` both read, `report.json` and a data set card.

    With `mmpr`, also a folder `mmpr/` in InternVL's format. The report has what every rule of `RULES` would give. Pairs
    go to the file problem by problem; all of them are in memory only with `mmpr` or `dropout_ntp`.
    """
    if config.rule not in (*RULES, DROPOUT):
        raise ConfigError(f"unknown pairing rule {config.rule!r}: expected one of {', '.join([*RULES, DROPOUT])}")
    refuse_exclusive(config)
    limits = _limits(config.rule, config)
    given = [folder for folder in (config.policy, config.continued) if folder]
    stage = open_stage("pairs", config, inputs=[config.groups, *given])
    if stage.complete:
        return stage.out
    compared = {name: Pairing(name, _limits(name, config)) for name in RULES}
    groups = iter_groups(config.groups)
    if config.disputed:
        groups = map(without_second_opinion, groups)
    groups = seen_by(compared.values(), groups)
    if config.rule == DROPOUT:
        every, dropout = _dropout(stage, list(groups), limits, config)
        found, report_of = iter(every), lambda: dropout
    else:
        pairing = Pairing(_rule(config), limits)
        found = (pair for group in _continued(groups, config) for pair in pairing.pairs_of(group))
        report_of = pairing.report
    found = _at_least_one(found, report_of, config)
    if config.mmpr:
        every = list(found)
        found = iter(every)
    write_trl_parquet(found, stage.out / PAIRS)
    report = report_of()
    for warning in report.warnings:
        _log.warning("%s", warning)
    table = {name: other.report() for name, other in compared.items()}
    _describe(stage, report, {**table, config.rule: report} if config.rule in table else table)
    if config.mmpr:
        _export_mmpr(stage, every, report)
    counts = {"in": report.problems_in, "out": report.problems_with_pairs, "rejected": dict(report.dropped)}
    made = {"pairs": report.pairs, "rejected_counted": round(report.rejected_counted, 4)}
    note = f"{report.pairs} pairs, {report.rejected_counted:.1%} of the rejected text counts"
    return stage.finish({**counts, **made, "problems": str(problems_of(config.groups))}, note=note)


def _at_least_one(
    found: Iterator[PreferencePair], report_of: Callable[[], PairingReport], config: PairsConfig
) -> Iterator[PreferencePair]:
    """The same pairs; DataError at the end, before a file takes its name, where there is none."""
    yield from found
    report = report_of()
    if not report.pairs and report.rejected_rollouts.get("no_visual_dependence"):
        raise DataError(
            f"min_visual_dependence={config.min_visual_dependence} needs scores without the image, and "
            f"{config.groups} has none; run `mpo score --visual_dependence true`, or leave the option out"
        )
    if not report.pairs and report.rejected_rollouts.get("no_step_scores"):
        raise DataError(
            f"rule {config.rule} reads step scores, and {config.groups} has none; run `mpo score`, or ask for the "
            "paper's pairs: --rejected_span full --min_step_score 0"
        )
    if not report.pairs:
        raise DataError(f"no pair could be made from {report.problems_in} problems; dropped: {report.dropped}")


def _limits(rule: str, config: PairsConfig) -> Limits:
    """What the rule must keep to: its own limits where the settings say nothing."""
    own = LIMITS.get(rule, Limits())
    span = RejectedSpan(
        config.rejected_span or own.rejected_span.part,
        config.span_source or own.rejected_span.source,
        config.bad_step_threshold,
    )
    return Limits(
        config.max_pairs,
        config.format_negatives,
        config.max_length_ratio,
        config.min_visual_dependence,
        own.min_step_score if config.min_step_score is None else config.min_step_score,
        span,
    )


def _rule(config: PairsConfig) -> Rule:
    rule = partial(prm_margin, margin=config.margin) if config.rule == "prm_margin" else RULES[config.rule]
    return rule if config.continued is None else with_step_pairs(rule, iter_groups(config.continued))


def _continued(groups: Iterable[RolloutGroup], config: PairsConfig) -> Iterable[RolloutGroup]:
    """For `step_prefix`, with the continuations that `mpo label-steps --keep_continuations` left in the folder."""
    kept = config.groups / CONTINUATIONS
    return with_right_continuations(groups, kept) if config.rule == "step_prefix" and kept.is_file() else groups


def _dropout(
    stage: Stage, groups: list[RolloutGroup], limits: Limits, config: PairsConfig
) -> tuple[list[PreferencePair], PairingReport]:
    """Continue half responses without their images, here or on servers; each call's texts are in `calls.sqlite`."""
    from rewards.pairing.dropout_ntp import dropout_ntp

    with (
        open_calls(stage) as calls,
        served(config, stage.out) as asking,
        (_on_servers if asking.base_url else _here)(asking) as how,
    ):

        def attempt(aside: Mapping[str, str]) -> tuple[list[PreferencePair], PairingReport]:
            left = [group for group in groups if group.problem.id not in aside]
            with tqdm(desc="continue without images", unit="continuation") as bar:
                return dropout_ntp(left, limits, seed=config.seed, each=calls.each, on_drawn=bar.update, **how)

        keys = {group.problem.id: group.problem.id for group in groups}
        (found, report), aside = without_failing(calls, keys, attempt)
    lost = {"no usable reply of the server": len(aside)} if aside else {}
    return found, replace(report, problems_in=len(groups), dropped=report.dropped | lost)


@contextmanager
def _here(config: PairsConfig) -> Iterator[dict[str, Any]]:
    """The policy in this process, or on several workers; halves are cut at its tokens."""
    from mpo.multimodal.loading import load_processor

    assert config.policy is not None  # checked before the stage opened
    tokenizer = load_processor(config.policy).tokenizer
    params = SamplingParams(config.temperature, 1.0, 0, config.max_new_tokens)
    with engine(config, partial(blind_continuer_of, config.policy, params, batch_rows=config.batch_rows)) as run:
        yield {
            "run": run,
            "encode": lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
            "decode": lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
            "rows_a_call": config.batch_rows,
        }


@contextmanager
def _on_servers(config: PairsConfig) -> Iterator[dict[str, Any]]:
    """A call per half, side by side; halves are cut at words, since a server's tokenizer is not here."""
    servers = servers_of(config, SamplingParams(config.temperature, 1.0, 0, config.max_new_tokens))
    from rewards.pairing.dropout_ntp import blind_text, words
    from rewards.sampling.served_calls import side_by_side

    run = side_by_side(servers, blind_text)
    yield {"run": run, "encode": words, "decode": "".join, "rows_a_call": 1}


def _describe(stage: Stage, report: PairingReport, table: dict[str, PairingReport]) -> None:
    """The report with what every rule would give, and the card."""
    rows = {name: {"pairs": r.pairs, "problems_with_pairs": r.problems_with_pairs} for name, r in table.items()}
    write_atomic(stage.out / REPORT, json.dumps({**asdict(report), "yields": rows}, indent=2) + "\n")
    provenance = stage.provenance()
    write_card(stage.out, pairs=report.pairs, data_file=PAIRS, fingerprint=provenance, report=report, yields=table)


def _export_mmpr(stage: Stage, found: list[PreferencePair], report: PairingReport) -> None:
    folder = stage.out / "mmpr"
    written, rejected = write_mmpr(found, folder)
    provenance = stage.provenance()
    write_card(folder, pairs=written, data_file="meta.json", fingerprint=provenance, report=report, rejected=rejected)
