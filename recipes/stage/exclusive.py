"""Settings that exclude each other, refused in one place: by the command line before anything is imported, and by the
stages for callers from Python.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from mpo.multimodal.errors import ConfigError
from recipes.stage.label_rule import one_way_to_label

DROPOUT = "dropout_ntp"  # the rule of pairs whose rejected side is drawn without the image


def one_policy(config: Any) -> None:
    """A model in this process, or a server and the model's name there: not both, not half."""
    if not {"policy", "base_url", "model"} <= vars(config).keys() or getattr(config, "rule", DROPOUT) != DROPOUT:
        return
    if (config.policy is None) != bool(config.base_url) or bool(config.base_url) != (config.model is not None):
        raise ConfigError("expected either policy (a model folder), or base_url and model (a server)")


def one_length(config: Any) -> None:
    """How long to train is given once."""
    steps, epochs = getattr(config, "max_steps", 0), getattr(config, "epochs", 0)
    if steps and epochs:
        raise ConfigError(f"max_steps={steps} and epochs={epochs:g} both say how long to train: give one of them")


def a_prm_to_choose(config: Any) -> None:
    """Every selector but the vote asks a PRM."""
    if getattr(config, "selector", "majority") != "majority" and config.prm is None:
        raise ConfigError(f"selector={config.selector} needs prm, the folder of a process reward model")


def a_prm_with_spreads(config: Any) -> None:
    """A lower bound reads spreads, which a server does not give; pessimism is of the lower bound."""
    selector = getattr(config, "selector", None)
    if selector == "lower_bound" and config.prm_base_url:
        raise ConfigError(
            "selector=lower_bound needs a PRM in this process: a server tells no spreads; leave prm_base_url out"
        )
    if selector not in (None, "lower_bound") and config.pessimism != 1.0:
        raise ConfigError(f"pessimism is of selector lower_bound, not of {selector}")


def a_local_engine(config: Any) -> None:
    """Workers are for a model in this process."""
    if getattr(config, "engine", "local") != "local" and getattr(config, "base_url", None):
        raise ConfigError("engine ray is for a model in this process; for a server, raise concurrency instead")


def a_policy_to_serve(config: Any) -> None:
    """A server of the stage's own gets the stage's policy, and is the only one that is asked."""
    if not getattr(config, "serve", False):
        return
    if config.policy is None or config.base_url or config.engine != "local":
        raise ConfigError(
            "serve starts a server with policy, a model folder: give policy; leave base_url, model and engine ray out"
        )
    from recipes.stage.own_server import check_command

    check_command(config.serve_command)


def a_choice_has_a_size(config: Any) -> None:
    """A rule that chooses problems to label is told how many."""
    if hasattr(config, "choose_fraction"):
        from rewards.prm.labelling.choice import check_choice

        check_choice(config.choose, config.choose_fraction)


def earlier_labels_of_one_source(config: Any) -> None:
    """A second source labels the responses of `groups`, and a step without its label does not count."""
    if getattr(config, "consensus", None) is not None and getattr(config, "earlier", []):
        raise ConfigError("consensus has a second label of the responses in groups alone: leave earlier out")


def labels_for_a_refresh(config: Any) -> None:
    """What a PRM has learned from is read only where it continues."""
    if getattr(config, "prm_labels", []) and not config.refresh_budget:
        raise ConfigError("prm_labels are for the refresh of the PRM: give refresh_budget too, or leave them out")


def one_greedy_response(config: Any) -> None:
    """Greedy decoding gives one response, however often it is asked."""
    number = getattr(config, "num_samples", getattr(config, "n", None))
    if number is not None and hasattr(config, "temperature"):
        from rewards.sampling.generator import SamplingParams, check_number

        check_number(number, SamplingParams(config.temperature, config.top_p, config.top_k, config.max_new_tokens))


def a_prm_for_the_guard(config: Any) -> None:
    """Where responses come from pairs, a PRM is for the guard alone."""
    if {"pairs", "guard", "prm"} <= vars(config).keys() and config.prm is not None and config.guard is None:
        raise ConfigError("prm is for the guard, which scores with it: give guard (problems) too, or leave prm out")


def a_whole_served_prm(config: Any) -> None:
    """A PRM behind a server needs three things: its folder, its address, its name there."""
    if not {"prm", "prm_base_url", "prm_model"} <= vars(config).keys():
        return
    if bool(config.prm_base_url) != (config.prm_model is not None):
        missing = "prm_model, its name there" if config.prm_model is None else "prm_base_url, its address"
        raise ConfigError(f"a PRM behind a server needs its address and its name there: give {missing}")
    if config.prm_base_url and config.prm is None:
        raise ConfigError("prm_base_url needs prm too, the folder with the contract and the processor of that PRM")


def a_rule_for_these_pairs(config: Any) -> None:
    """Pairs by dropout come from the policy, here or behind a server, without a PRM; the other rules take no policy."""
    if not {"rule", "policy", "continued"} <= vars(config).keys():
        return
    dropout = config.rule == DROPOUT
    if dropout != bool(config.policy or config.base_url):
        raise ConfigError(
            f"rule {config.rule!r}, policy {config.policy}, base_url {config.base_url}: {DROPOUT} needs the policy "
            "that wrote the responses, as a model folder or behind a server; the other rules take no policy"
        )
    if config.continued is not None and config.rule in (DROPOUT, "step_prefix"):
        raise ConfigError(
            f"rule {config.rule} takes no continued: it is for rules that need a right sample; leave it out"
        )
    prm_only = ("min_visual_dependence", "min_step_score", "rejected_span", "span_source")
    if dropout and (given := [name for name in prm_only if getattr(config, name) is not None]):
        raise ConfigError(f"{DROPOUT} takes no {given[0]}: its responses need no PRM; leave it out")


def whole_groups_with_a_reward(config: Any) -> None:
    """GRPO has a reward, whole groups in a step, checkpoints that TRL can resume, and vLLM where a server is named."""
    if not {"num_generations", "prm_gate"} <= vars(config).keys():
        return
    weights = [config.verifier_weight, config.format_weight, config.length_weight]
    if config.prm is None and config.prm_gate:
        raise ConfigError("prm_gate needs prm, the folder of a process reward model")
    if not any(weights) and (config.prm is None or not config.prm_weight):
        raise ConfigError("no reward: expected a weight above 0 among verifier_weight, prm_weight, format_weight, …")
    if config.batch_size % config.num_generations:
        raise ConfigError(
            f"batch_size={config.batch_size} responses per step are no whole groups of num_generations="
            f"{config.num_generations}: it must be a multiple"
        )
    if config.save_steps % config.updates_per_generation:
        raise ConfigError(
            f"save_steps={config.save_steps} must be a multiple of updates_per_generation="
            f"{config.updates_per_generation}: TRL keeps no half-used responses in a checkpoint"
        )
    if config.vllm_base_url and find_spec("vllm") is None:
        raise ConfigError("vllm_base_url needs vLLM here too: pip install 'trl[vllm]'")


def refuse_exclusive(config: Any) -> None:
    """Refuse settings of any stage that cannot hold together.

    Raises:
        ConfigError: which, and what to leave out or add.
    """
    for refuse in EXCLUSIVE:
        refuse(config)


EXCLUSIVE: tuple[Callable[[Any], None], ...] = (
    a_prm_to_choose,
    a_prm_with_spreads,
    a_prm_for_the_guard,
    a_whole_served_prm,
    a_rule_for_these_pairs,
    one_policy,
    one_length,
    a_local_engine,
    a_policy_to_serve,
    a_choice_has_a_size,
    earlier_labels_of_one_source,
    labels_for_a_refresh,
    one_greedy_response,
    one_way_to_label,
    whole_groups_with_a_reward,
)
