"""`mpo doctor`: what `mpo train-mpo` would do with the same settings, found out before any weight moves."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mpo.doctor.memory import MemoryEstimate
from mpo.doctor.preflight import Preflight, histogram, preflight
from mpo.doctor.seam import ShownSeam
from mpo.multimodal.errors import ConfigError
from recipes.config import TrainMPOConfig
from recipes.stage.quarantine import Quarantine
from recipes.training.guarding import check_guard, guard_problems, with_guard_file
from recipes.training.mpo_run import build_trainer, is_augmented, mpo_config, read_pairs

BAR = 30  # characters of the longest bar


def doctor(config: TrainMPOConfig, *, console: Console | None = None) -> Preflight:
    """Print rows and rejects, lengths, step-0 loss, layout, memory, batch, and what differs from the paper.

    Nothing is written: `config.out` is left alone.

    Raises:
        DataError: no pair can be trained on.
        ConfigError: the loss at step 0 is not the one that policy = reference gives, or pairs ask what the guard asks.
    """
    check_guard(config)
    console = console or Console()
    with tempfile.TemporaryDirectory(prefix="mpo-doctor-") as scratch:
        rows = read_pairs(config, kept_in=Path(scratch))
        guarded, _ = with_guard_file(replace(config, out=Path(scratch)))
        left_out = Quarantine()
        watched = guard_problems(guarded, rows, Path(scratch), left_out)
        computed_before = mpo_config(
            config, Path(scratch), len(rows), augmented=is_augmented(config, rows)
        ).precompute_ref_log_probs
        trainer = build_trainer(config, Path(scratch), rows, precompute_ref_log_probs=False)
        findings = preflight(trainer, keeps_reference=not computed_before)
    show(findings, console, reference_computed_before=computed_before)
    if watched:
        looked_at, left = min(config.guard_problems, len(watched)), sum(left_out.counts().values())
        console.rule("guard", align="left")
        console.print(
            f"{len(watched)} problems, {left} left out, none of them asked by a pair; {looked_at} are looked at every "
            f"{config.guard_every} steps"
        )
    step = findings.step_zero
    if not step.agrees:
        raise ConfigError(
            f"at step 0 the loss is {step.loss:.4f} and the largest implicit reward {step.largest_reward:.2g}, not "
            f"{step.expected:.4f} and 0 where policy = reference: the two differ (other weights, dropout left on, "
            "another number type); find out why before you train"
        )
    return findings


def show(findings: Preflight, console: Console, *, reference_computed_before: bool = False) -> None:
    """Print the findings."""
    _rows(findings, console)
    _seam(findings.seam, console)
    _lengths(findings, console)
    _step_zero(findings, console)
    console.rule("layout and δ", align="left")
    saved = f"; the paired layout has {findings.tokens_saved:.2f}x its tokens" if findings.layout == "shared" else ""
    console.print(f"layout: {findings.layout}, since {escape(findings.layout_reason)}{saved}")
    console.print(f"rejected responses: {findings.rejected_counted:.1%} of their tokens count in L_p and L_q")
    console.print(f"δ of L_q: {findings.reward_shift}; it is 0 at step 0, and kept in every checkpoint")
    adapters = "the policy without its adapters" if not findings.memory.reference else "runs beside the policy"
    console.print(f"reference: {'computed once before step 0 and let go' if reference_computed_before else adapters}")
    _memory(findings.memory, console)
    _batch_and_paper(findings, console)


def _rows(findings: Preflight, console: Console) -> None:
    console.rule("rows", align="left")
    first, *reasons = findings.rows.lines("train")
    console.print(first)
    for line in reasons:
        console.print(escape(line), soft_wrap=True)


def _seam(seam: ShownSeam, console: Console) -> None:
    """The text around a response, line breaks spelled out."""
    console.rule("where prompt and response meet, first row", align="left")
    end = seam.end if seam.template_ends or not seam.end else f"{seam.end} (the template writes none)"
    parts = {
        "the prompt ends": seam.prompt,
        "the template writes before the response": seam.before,
        "the response begins": seam.response,
    }
    for name, text in parts.items():
        console.print(escape(f"{name}: {text!r}" if text else f"{name}: nothing"), soft_wrap=True)
    console.print(escape(f"y ends with: {end or 'nothing, it was cut'}"), soft_wrap=True)


def _lengths(findings: Preflight, console: Console) -> None:
    pairs = findings.lengths
    columns = {
        "image tokens": [pair.image for pair in pairs],
        "prompt, images included": [pair.prompt for pair in pairs],
        "chosen": [pair.chosen for pair in pairs],
        "rejected": [pair.rejected for pair in pairs],
        "rejected, counted in L_p and L_q": [pair.counted for pair in pairs],
        "prompt + longer response": [pair.longer for pair in pairs],
    }
    table = Table("tokens", *("least", "median", "95 %", "most"), title_justify="left")
    for name, values in columns.items():
        ordered = sorted(values)
        picked = [ordered[round(share * (len(ordered) - 1))] for share in (0.0, 0.5, 0.95, 1.0)]
        table.add_row(name, *map(str, picked))
    console.rule("lengths of the kept rows", align="left")
    console.print(table)
    for name in ("image tokens", "prompt + longer response"):
        _bars(name, columns[name], console)


def _bars(name: str, values: Sequence[int], console: Console) -> None:
    bins = histogram(values)
    most = max(count for *_, count in bins)
    console.print(f"{name}:")
    for low, high, count in bins:
        bar = "█" * -(-BAR * count // most)  # rounded up: a bin with a row in it is seen
        console.print(f"  {low:>6} to {high:<6} {count:>7} {bar}")


def _step_zero(findings: Preflight, console: Console) -> None:
    step = findings.step_zero
    console.rule("loss at step 0", align="left")
    verdict = "[green]as it must be[/]" if step.agrees else "[bold red]POLICY AND REFERENCE DIFFER[/]"
    console.print(
        f"{step.pairs} pairs: L = {step.loss:.4f}, expected {step.expected:.4f} = {step.constant:.4f} + w_g·L_g, "
        f"L_g = {step.generation:.4f}; largest implicit reward {step.largest_reward:.1e}: {verdict}"
    )


def _memory(memory: MemoryEstimate, console: Console) -> None:
    console.rule("memory of one process, estimated", align="left")
    parts = {
        "weights": memory.weights,
        "reference": memory.reference,
        "optimizer states": memory.optimizer,
        "gradients": memory.gradients,
        "one micro-batch: pixels, ids, positions": memory.batch,
        "LM head, one tile of logits": memory.head,
        "activations, language model": memory.activations.language,
        "activations, vision tower": memory.activations.vision,
        "activations, the rest": memory.activations.rest,
        "activations with checkpointing, all": memory.activations.kept(checkpointing=True),
    }
    table = Table("part", "MiB")
    for name, size in parts.items():
        table.add_row(name, f"{size / 2**20:,.1f}")
    for checkpointing in (False, True):
        mark = "  ← this run" if checkpointing == memory.checkpointing else ""
        name = f"peak with{'' if checkpointing else 'out'} checkpointing{mark}"
        table.add_row(name, f"{memory.peak_with(checkpointing=checkpointing) / 2**20:,.1f}", style="bold")
    console.print(table)
    console.print("Counted on the longest rows, in the run's number type, for one unsharded process.")


def _batch_and_paper(findings: Preflight, console: Console) -> None:
    batch = findings.batch
    console.rule("batch", align="left")
    console.print(
        f"{batch.pairs_a_step} pairs per step = {batch.per_device} per device x {batch.accumulation} micro-batches x "
        f"{batch.ranks} ranks; {batch.steps} steps over {batch.rows} rows: {batch.epochs:.2f} epochs"
    )
    console.rule("what differs from the paper (arXiv 2411.10442)", align="left")
    table = Table("setting", "here", "paper", "")
    for deviation in findings.deviations:
        table.add_row(*map(escape, (deviation.setting, deviation.here, deviation.paper, deviation.comment)))
    console.print(table)
    console.print("How the computation differs from InternVL's, TRL's and NeMo-RL's: docs/losses.md.")
