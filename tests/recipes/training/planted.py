"""Problems of the digits world as files, a PRM's folder, and PRMs of which it is known whether they look."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import DataError
from mpo.multimodal.images import image_sha256, load_image
from recipes.worlds.digits.world import scenes, to_problem
from rewards.prm.formats import find_format
from rewards.prm.model_prm import CONTRACT
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.types import Problem, StepScores


def digit_problems(folder: Path, name: str, count: int, *, seed: int = 3, open_one: bool = False) -> Path:
    """`name`.jsonl with images beside it; `open_one` adds the first problem again, without a reference answer."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes("test", count, seed)):
        problem = to_problem(scene, f"p{number}")
        names = []
        for place, image in enumerate(problem.images):
            names.append(f"{name}-{number}-{place}.png")
            load_image(image).save(folder / names[-1])
        rows.append({"id": problem.id, "question": problem.question, "images": names, "answer": problem.answer})
    if open_one:
        rows.append({**rows[0], "id": "open", "answer": None})
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / f"{name}.jsonl"


def prm_of_policy(policy: Path, folder: Path, *, prm_format: str = "step_end") -> Path:
    """A copy of a policy that is a PRM by its contract."""
    shutil.copytree(policy, folder)
    (folder / CONTRACT).write_text(json.dumps(find_format(prm_format).to_dict()))
    return folder


class PlantedPRM(ProcessRewardModel):
    """A real PRM by its methods: gives more for more distinct letters, and if it sees, only for the problem's image.

    Args:
        images: problem → digest of the image that belongs to it; `None` for a PRM that does not look.
    """

    def __init__(self, images: dict[str, str] | None) -> None:
        self.images = images

    def outcomes(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> list[StepScores | DataError]:
        return [StepScores((self._score(problem, text),)) for problem, text in items]

    def _score(self, problem: Problem, text: str) -> float:
        liked = min(1.0, 0.2 + len(set(text)) / 40)
        if self.images is None:
            return liked
        digests = {image_sha256(load_image(image)) for image in problem.images}
        return liked if self.images[problem.id] in digests else 0.1 * liked


def planted(problems: Path, *, sees: bool) -> Callable[..., PlantedPRM]:
    """What takes the place of a stage's `prm_in_training`."""
    rows = [json.loads(line) for line in problems.read_text().splitlines()]
    digests = {row["id"]: image_sha256(load_image(problems.parent / row["images"][0])) for row in rows}
    return lambda *_, **__: PlantedPRM(digests if sees else None)
