"""Where a run of `mpo pipeline` starts: in an embedded world, after its warm start, or at the user's model and data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mpo.multimodal.errors import ConfigError
from recipes.stage.held_out import check_held_out
from recipes.stage.inputs import check_inputs
from recipes.stage.models import with_models_here
from recipes.stage.problem_source import SOURCE, problem_files

if TYPE_CHECKING:
    from recipes.loop.chains import Do
    from recipes.loop.settings import Settings

WORLD_ONLY = ("warm_start", "deepen")
PROBLEM_FILES = ("preference_problems", "prm_problems", "test_problems")
PRM_TRAINING = ("prm_sample", "label_steps", "train_prm")


@dataclass(frozen=True)
class Start:
    """What the loop needs before its first sample.

    Attributes:
        policy: the model that is sampled, trained and compared with itself.
        preference, test: problems whose samples become pairs; held-out problems.
        development: problems on which arms are tuned; None: there are none.
        prm: a finished PRM; None if the loop trains one, on samples of `prm_problems`, from `prm_model`.
        prm_problems, prm_model: None with a finished PRM.
        image_root: folder of the problems' images; None: that of each file.
    """

    policy: Path
    preference: Path
    test: Path
    prm: Path | None = None
    development: Path | None = None
    prm_problems: Path | None = None
    prm_model: Path | None = None
    image_root: Path | None = None

    def asking(self, problems: Path | None) -> dict[str, Path | None]:
        """What every stage that samples is told of some problems."""
        return {"problems": problems, "image_root": self.image_root}


def own_start(settings: Settings, run: Path) -> Start:
    """The user's files as given in the section `own`; problems of another form than ours as files below `run`.

    Raises:
        ConfigError: neither or both of `prm` and `prm_problems`, a section that would not be used, or test problems
            that are in another file.
        StageError: a file that does not exist.
    """
    own = settings.build("own")
    if (own.prm is None) == (own.prm_problems is None):
        raise ConfigError(
            f"{settings.path}: own: expected one of prm (a finished PRM) and prm_problems (to train one on), got "
            f"{own.prm} and {own.prm_problems}"
        )
    if own.prm is not None and own.prm_model is not None:
        raise ConfigError(
            f"{settings.path}: own.prm_model is what training a PRM starts from; with own.prm no PRM is trained"
        )
    unused = [*WORLD_ONLY, *(PRM_TRAINING if own.prm else ())]
    if idle := [name for name in unused if settings.sections[name]]:
        raise ConfigError(f"{settings.path}: section {idle[0]!r} is not used in a run from these `own` data; remove it")
    check_inputs(own)
    own = with_models_here(own)
    sources = {name: path for name in PROBLEM_FILES if (path := getattr(own, name)) is not None}
    files, root = problem_files(sources, run / SOURCE, columns=own.columns, image_root=own.image_root)
    own = replace(own, **files, image_root=root)
    for name in ("preference_problems", "prm_problems"):
        if others := getattr(own, name):
            names = ("own.test_problems", f"own.{name}")
            check_held_out(own.test_problems, others, names=names, run=run, image_root=own.image_root)
    model = None if own.prm else own.prm_model or own.policy
    problems = {"prm_problems": own.prm_problems, "test": own.test_problems}
    return Start(
        own.policy, own.preference_problems, prm=own.prm, prm_model=model, image_root=own.image_root, **problems
    )


def world_start(do: Do, settings: Settings, run: Path, seed: int) -> Start:
    """An embedded world is composed, and its policy warmed up."""
    composing = settings.build(settings.world, out=run / "world", seed=seed)
    world = do(settings.world.replace("_", "-"), composing, "problems, images and an untrained policy")
    given = {"policy": world / "policy", "demonstrations": world}
    warming = settings.build("warm_start", out=run / "policy", seed=seed, **given)
    policy = do("warm-start", warming, "the untrained policy on demonstrated responses")
    deepening = settings.build("deepen", policy=policy, out=run / "prm_init", seed=seed)
    checker = do("deepen", deepening, "the policy with more layers, for the PRM to start from")
    problems = {name: world / f"{split}.jsonl" for name, split in (("prm_problems", "prm"), ("test", "test"))}
    problems["development"] = world / "development.jsonl"
    return Start(policy, world / "preference.jsonl", **problems, prm_model=checker)
