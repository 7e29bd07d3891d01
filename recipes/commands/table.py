"""The commands of `mpo`, in groups, each with one line that says what it does and one that shows how it is called."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """One command.

    Attributes:
        module: that holds its function; imported when it is about to run.
        function: takes the config.
        config: name of its dataclass in `recipes.config`.
        line: one line of help.
        example: one line to copy.
        bare: flags whose values may stand first, without their names.
    """

    module: str
    function: str
    config: str
    line: str
    example: str
    bare: tuple[str, ...] = ()


GROUPS: dict[str, dict[str, Command]] = {
    "Your data": {
        "split": Command(
            "recipes.data.split",
            "split",
            "SplitConfig",
            "split one file of questions into parts that share no image",
            "mpo split questions.jsonl --out data",
            bare=("problems",),
        ),
        "sample": Command(
            "recipes.data.sample",
            "sample",
            "SampleConfig",
            "draw N responses per problem",
            "mpo sample --policy models/policy --problems data/questions.jsonl --out run/samples",
        ),
        "import": Command(
            "recipes.data.import_data",
            "import_data",
            "ImportConfig",
            "FORM SOURCE: read published pairs, labelled steps, benchmarks or problems",
            "mpo import visualprm400k data/VisualPRM400K-v1.1 --out run/steps --sample 100",
            bare=("form", "source"),
        ),
        "import-responses": Command(
            "recipes.data.import_responses",
            "import_responses",
            "ImportResponsesConfig",
            "take in responses that were made elsewhere, as if `mpo sample` had drawn them",
            "mpo import-responses answers.jsonl --problems data/questions.jsonl --out run/samples",
            bare=("responses",),
        ),
        "verify": Command(
            "recipes.data.verify",
            "verify",
            "VerifyConfig",
            "check the final answer of every response",
            "mpo verify --groups run/samples --out run/verified --verifier math",
        ),
        "label-steps": Command(
            "recipes.data.label_steps",
            "label",
            "LabelConfig",
            "label steps by continuing from the end of each one",
            "mpo label-steps --groups run/verified --policy models/policy --out run/labelled",
        ),
        "score": Command(
            "recipes.data.score",
            "score",
            "ScoreConfig",
            "score every step of every response with a PRM",
            "mpo score --groups run/verified --prm run/prm --out run/scored",
        ),
        "rate": Command(
            "recipes.data.rate",
            "rate",
            "RateConfig",
            "reward every response by a critic that reads no steps",
            "mpo rate --groups run/verified --by self_certainty --out run/rated",
        ),
        "overlap": Command(
            "recipes.data.overlap",
            "overlap",
            "OverlapConfig",
            "find test problems that are near-duplicates of training problems",
            "mpo overlap --training run/pairs --test data/test.jsonl --out run/overlap",
        ),
        "continue": Command(
            "recipes.data.continue_prefixes",
            "continue_prefixes",
            "ContinueConfig",
            "ask again from sound beginnings where all responses are wrong",
            "mpo continue --groups run/scored --policy models/policy --out run/continued",
        ),
        "pairs": Command(
            "recipes.data.pairs",
            "pairs",
            "PairsConfig",
            "make chosen/rejected pairs of the responses",
            "mpo pairs --groups run/scored --out run/pairs",
        ),
        "convert-data": Command(
            "recipes.data.convert_data",
            "convert_data",
            "ConvertDataConfig",
            "FROM TO: read pairs or labelled steps of one format and write another",
            "mpo convert-data mmpr trl --source MMPR-v1.2/meta.json --out run/mmpr",
            bare=("source_format", "target_format"),
        ),
    },
    "Training": {
        "train-prm": Command(
            "recipes.training.train_prm",
            "train_prm",
            "TrainPRMConfig",
            "train a process reward model (PRM) on labelled steps",
            "mpo train-prm --groups run/labelled --model models/policy --out run/prm",
        ),
        "train-mpo": Command(
            "recipes.training.train_mpo",
            "train_mpo",
            "TrainMPOConfig",
            "train a policy on pairs with Mixed Preference Optimization",
            "mpo train-mpo paper_mpo --policy models/policy --pairs run/pairs --out run/mpo",
        ),
        "train-grpo": Command(
            "recipes.training.train_grpo",
            "train_grpo",
            "TrainGRPOConfig",
            "train a policy online with GRPO or GSPO, rewarded by verifier and PRM",
            "mpo train-grpo internvl3_5_gspo --policy run/mpo --problems data/train.jsonl --prm run/prm --out run/grpo",
        ),
        "doctor": Command(
            "recipes.training.doctor",
            "doctor",
            "TrainMPOConfig",
            "show what train-mpo would do with the same flags, without training",
            "mpo doctor paper_mpo --policy models/policy --pairs run/pairs --out run/mpo",
        ),
        "warm-start": Command(
            "recipes.training.warm_start",
            "warm_start",
            "WarmStartConfig",
            "train a policy on demonstrated responses (supervised)",
            "mpo warm-start --policy run/world/policy --demonstrations run/world --out run/policy",
        ),
        "convert": Command(
            "recipes.data.convert_checkpoint",
            "convert",
            "ConvertConfig",
            "convert an InternVL or VisualPRM checkpoint to transformers' own classes",
            "mpo convert --checkpoint OpenGVLab/InternVL3-1B-Instruct --out models/internvl3-1b",
        ),
    },
    "Test time": {
        "answer": Command(
            "recipes.answering.answer",
            "answer",
            "AnswerConfig",
            "answer one question with the best of N responses",
            'mpo answer --policy run/mpo --prm run/prm --image scan.png --question "What is the sum?"',
        ),
        "best-of-n": Command(
            "recipes.answering.best_of_n",
            "best_of_n",
            "BestOfNConfig",
            "measure every selector (PRM, votes, oracle) at every k",
            "mpo best-of-n --groups run/test_scored --out run/best_of_n --ks 1 2 4 8",
        ),
        "evaluate": Command(
            "recipes.evaluating.evaluate",
            "evaluate",
            "EvaluateArguments",
            "compare policies and critics on benchmarks, at every N",
            "mpo evaluate matrix.yaml --out runs/matrix",
            bare=("settings",),
        ),
        "rerank": Command(
            "recipes.answering.rerank",
            "rerank",
            "RerankConfig",
            "print scored responses, best first",
            "mpo rerank run/scored --top 1",
            bare=("groups",),
        ),
        "beam-search": Command(
            "recipes.answering.beam_search",
            "beam_search",
            "BeamSearchConfig",
            "search for each answer step by step, guided by a PRM",
            "mpo beam-search --policy run/mpo --prm run/prm --problems data/test.jsonl --out run/beam",
        ),
        "prm-eval": Command(
            "recipes.answering.prm_eval",
            "prm_eval",
            "PRMEvalConfig",
            "measure a PRM against a benchmark's step labels",
            "mpo prm-eval --prm run/prm --benchmark VisualProcessBench/test.jsonl --out run/prm_eval",
        ),
        "serve": Command(
            "recipes.answering.serve",
            "serve",
            "ServeConfig",
            "serve a PRM's scores over HTTP",
            "mpo serve run/prm --port 8100",
            bare=("prm",),
        ),
    },
    "The loop": {
        "pipeline": Command(
            "recipes.loop.pipeline",
            "pipeline",
            "PipelineArguments",
            "run the whole loop once, from problems to a report",
            "mpo pipeline own_data.yaml --run_dir runs/own",
            bare=("settings",),
        ),
        "evidence": Command(
            "recipes.loop.pipeline",
            "evidence",
            "EvidenceArguments",
            "run the whole loop with every baseline and several seeds",
            "mpo evidence digits --run_dir runs/evidence --seeds 0 1 2",
            bare=("settings",),
        ),
        "rounds": Command(
            "recipes.loop.rounds",
            "rounds",
            "RoundsConfig",
            "sample, pair and train again and again, until it stops helping",
            "mpo rounds digits --policy run/policy --prm run/prm --problems data/train.jsonl "
            "--guard data/guard.jsonl --out runs/rounds",
            bare=("settings",),
        ),
        "settings": Command(
            "recipes.commands.shipped",
            "show",
            "SettingsConfig",
            "list the settings files that come with the package, or print one",
            "mpo settings own_data > my.yaml",
            bare=("name",),
        ),
    },
    "Reports": {
        "report": Command(
            "recipes.report.page",
            "report_stage",
            "ReportConfig",
            "write one self-contained HTML page about a run, or about the difference of two",
            "mpo report runs/own",
            bare=("run", "against"),
        ),
        "view": Command(
            "recipes.report.view",
            "view",
            "ViewConfig",
            "serve that page on this machine",
            "mpo view runs/own",
            bare=("run",),
        ),
        "check": Command(
            "recipes.report.check",
            "check",
            "CheckConfig",
            "check that every finished stage of a run is as it was written",
            "mpo check runs/own",
            bare=("run",),
        ),
        "env": Command(
            "recipes.report.environment",
            "environment",
            "EnvConfig",
            "print project, packages and attention kernels, for a bug report",
            "mpo env",
        ),
    },
    "The embedded worlds": {
        "world": Command(
            "recipes.worlds.digits.compose",
            "compose",
            "WorldConfig",
            "compose problems over handwritten digits, and an untrained policy",
            "mpo world --out run/world",
        ),
        "easy-vqa": Command(
            "recipes.worlds.easy_vqa",
            "compose",
            "EasyVQAConfig",
            "compose problems of the package easy-vqa, and an untrained policy",
            "mpo easy-vqa --out run/world",
        ),
        "label-exact": Command(
            "recipes.worlds.digits.exact_labels",
            "label_exactly",
            "ExactLabelConfig",
            "label the steps of digit problems exactly",
            "mpo label-exact --groups run/verified --policy run/policy --out run/exact",
        ),
        "deepen": Command(
            "recipes.worlds.digits.deepen",
            "deepen_policy",
            "DeepenConfig",
            "add layers to the digits policy, for its PRM to start from",
            "mpo deepen --policy run/policy --out run/deeper",
        ),
    },
}
COMMANDS: dict[str, Command] = {name: command for group in GROUPS.values() for name, command in group.items()}
