import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mpo.multimodal.errors import ConfigError, DataError
from rewards.types import Problem, Verdict
from rewards.verifying.answers import canonical_answer, extract_final_answer, short_answer
from rewards.verifying.math_verifier import MathVerifier
from rewards.verifying.verification import (
    VERIFIERS,
    AnlsVerifier,
    ExactVerifier,
    NumberVerifier,
    anls,
    anls_verifier,
    choice_verifier,
    exact_verifier,
    number_verifier,
    relaxed_verifier,
    verify_many,
)
from rewards.verifying.workers import WorkerVerifier

C, W, U, T, E = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE, Verdict.TIMEOUT, Verdict.ERROR
# math-verify issue 65: hangs for more than 60 s although both of its timeouts are set
HANG = r"\boxed{\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)}-4\right)}-5}{16}}"


def asked(answer):
    return Problem("p", "?", answer=answer)


def worker_pids():
    return {child.pid for child in multiprocessing.active_children() if "pebble" in child.name}


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def verifier():
    with MathVerifier(timeout_s=2.0) as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Final answer: 7", "7"),
        ("FINAL ANSWER :  7 cm \nthat is all", "7 cm"),
        ("Final answer: 1\nwait\nfinal answer: 2", "2"),
        ("**Final Answer:** B. 12", "B. 12"),
        ("**Final answer**: 3", "3"),
        ("**Final answer: 3**", "3"),
        (r"Final answer: \boxed{7}", "7"),
        (r"Final answer: $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        ("Final answer: \\boxed{\n7\n}", "7"),
        (r"\boxed{9} Final answer: 7", "7"),
        ("\\boxed{9}\nFinal answer:\n", "9"),  # an empty marker line says nothing
        (r"I first thought \boxed{3}, final \boxed{7}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{f = \left\{ a \right.}", r"f = \left\{ a \right."),
        (r"\boxed{\text{a } b}", r"\text{a } b"),
        (r"a { b \boxed {7}", "7"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\\boxed{7}", None),  # a line break before the word "boxed"
        (r"\boxed{7", None),
        (r"\boxed{ }", None),
        ("the answer is 7", "7"),
        ("the answer is 7\nor is it?", None),  # only the last line states one in passing
        ("The answer is 3.5. It is not 3.", "3.5"),
        ("Answer: 7\n\nBecause 3 + 4 = 7.", "7"),
        ("### Answer: **7**", "7"),
        ("I answer: 7", None),  # no line of its own
        ("**Final Answer:**\n\n7", "7"),
        (r"Final answer: 7\nCheck: $\boxed{8}$".replace(r"\n", "\n"), "8"),  # the last statement wins
        ("答案是7。", "7"),
        ("", None),
    ],
)
def test_extraction(text, expected):
    assert extract_final_answer(text) == expected


@given(st.text(alphabet="\\boxed{} \n7:*$finalanswer", max_size=80))
def test_extraction_gives_stripped_text_or_none(text):
    answer = extract_final_answer(text)
    assert answer is None or (answer and answer == answer.strip() and answer in text)
    assert canonical_answer(text) != ""


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 40_000,
        "{" * 200_000,
        "\\boxed" + " " * 200_000,
        "final answer" + " " * 200_000,
        "final answer:\n" * 20_000,
        r"\text{" * 30_000 + "7",
        "<answer>" * 20_000,
        "the answer is " * 10_000,
        "A is " * 20_000,
        "选" * 100_000,
        "#### " + " " * 200_000 + "b",
        "</s>" * 40_000,
        "7 " + " " * 200_000 + "x",
    ],
)
def test_hostile_text_takes_linear_time(text):
    start = time.perf_counter()
    extract_final_answer(text)
    assert time.perf_counter() - start < 2.0


def test_canonical_answer():
    assert canonical_answer("Final answer:  New \t York. ") == "New York"
    assert canonical_answer("Final answer: 3..") == "3"
    assert canonical_answer("Final answer: .") is None


def test_exact_verifier():
    assert exact_verifier(asked(" 4. "), "Final answer: 4") is C
    assert exact_verifier(asked("4"), "Final answer: 4.0") is W
    assert exact_verifier(asked("4"), "4") is C
    assert exact_verifier(asked("cat"), "Cat") is C
    assert ExactVerifier(case=True)(asked("cat"), "Cat") is W
    with pytest.raises(DataError, match="problem 'p' has no reference answer"):
        exact_verifier(asked(None), "Final answer: 4")


def test_hang_is_a_timeout_and_the_pool_recovers(verifier):
    verifier.verify(asked("2"), r"\boxed{1+1}")  # workers are up
    start = time.perf_counter()
    verdicts = verifier.verify_many([(asked("3"), r"\boxed{1+2}"), (asked("7"), HANG), (asked("4"), r"\boxed{1+3}")])
    elapsed = time.perf_counter() - start
    assert verdicts == [C, T, C]
    assert 2.0 <= elapsed < 2.0 + 8.0  # the limit, then one fresh worker
    start = time.perf_counter()
    assert verifier.verify(asked("7"), HANG) is T
    assert time.perf_counter() - start < 0.5  # asked once, known afterwards


def test_a_killed_worker_is_an_error_and_the_pool_recovers():
    with MathVerifier(timeout_s=60.0) as verifier:
        assert verifier.verify(asked("2"), r"\boxed{1+1}") is C
        (worker,) = worker_pids()
        killer = threading.Timer(1.0, os.kill, args=(worker, signal.SIGKILL))
        killer.start()
        assert verifier.verify(asked("7"), HANG) is E
        killer.join()
        assert verifier.verify(asked("4"), r"\boxed{1+3}") is C


def test_a_worker_that_dies_idle_is_replaced():
    with MathVerifier() as verifier:
        assert verifier.verify(asked("2"), r"\boxed{1+1}") is C
        (worker,) = worker_pids()
        os.kill(worker, signal.SIGKILL)
        assert verifier.verify(asked("4"), r"\boxed{1+3}") is C


def test_code_in_an_answer_is_not_executed(verifier, tmp_path):
    target = tmp_path / "pwned"
    payloads = [
        f"__import__('os').system('touch {target}')",
        f"open('{target}','w').write('x')",
        f"exec(\"open('{target}','w')\")",
        f"eval('__import__(\"pathlib\").Path(\"{target}\").touch()')",
        f"(lambda: open('{target}','w'))()",
        f"[c for c in ().__class__.__base__.__subclasses__() if c.__name__=='Popen'][0](['touch','{target}'])",
        f"sympify('open(\"{target}\",\"w\")')",
        f"1+__import__('subprocess').call(['touch','{target}'])",
        f"$(touch {target})",
        f"`touch {target}`",
        f"\\input|\"touch {target}\"",
        f"\\write18{{touch {target}}}",
    ]  # fmt: skip
    texts = [form.replace("@", code) for code in payloads for form in (r"\boxed{@}", "Final answer: @", r"\boxed{$@$}")]
    verdicts = verifier.verify_many([(asked("7"), text) for text in texts])
    verdicts += verifier.verify_many([(asked(code), r"\boxed{7}") for code in payloads])
    assert not target.exists()
    assert C not in verdicts


def test_too_long_an_answer_never_reaches_a_worker():
    with MathVerifier(max_characters=20) as verifier:
        assert verifier.verify(asked("7"), r"\boxed{" + "1+" * 10 + "1}") is U
        assert verifier.verify(asked("B"), "Final answer: (B)") is C
        assert worker_pids() == set()


def test_equal_checks_are_done_once(verifier):
    verifier.verify(asked("2"), r"\boxed{1+1}")  # workers are up
    batch = [(asked("123"), rf"step {i}: \boxed{{122+1}}") for i in range(3000)]
    start = time.perf_counter()
    assert set(verifier.verify_many(batch)) == {C}
    assert time.perf_counter() - start < 5.0


def test_a_huge_number_is_not_wrong_but_unknown(verifier):
    assert verifier.verify(asked("7"), r"\boxed{(10^{9})!}") in (T, E)
    assert verifier.verify(asked("6"), r"\boxed{3!}") is C


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the cap reads /proc")
def test_a_workers_memory_is_capped():
    result = run_python(
        "from rewards.verifying.workers import prepare_worker\nprepare_worker()\n"
        "bytearray(1 << 30)\nprint('one fits')\n"
        "try:\n    bytearray(3 << 30)\nexcept MemoryError:\n    print('three do not')"
    )
    assert result.stdout.split("\n")[:2] == ["one fits", "three do not"]


def test_a_hanging_worker_ends_even_if_its_parent_is_gone():
    result = run_python(
        "from rewards.verifying.workers import guarded\nfrom rewards.verifying.math_verifier import compare\n"
        f"guarded(compare, ('7', {HANG!r}), 1)"
    )
    assert result.returncode == -signal.SIGALRM


def test_workers_load_neither_torch_nor_numpy():
    result = run_python(
        "import sys\nimport rewards.verifying.math_verifier\nfrom rewards.verifying.workers import prepare_worker\n"
        "prepare_worker('math_verify')\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    assert result.stdout.strip() == "[]"


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from rewards.types import Problem\nfrom rewards.verifying.verification import MathVerifier\n"
        "print(MathVerifier().verify(Problem('p', '?', answer='2'), r'\\boxed{1+1}'))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert result.returncode == 1
    assert "guard its entry with" in result.stderr


def test_no_reference_and_bad_settings(verifier):
    for answer in (None, "", " . "):
        with pytest.raises(DataError, match="no reference answer"):
            verifier.verify(asked(answer), r"\boxed{7}")
    assert verifier.verify_many([]) == []
    for settings in ({"workers": 0}, {"timeout_s": 0.0}, {"timeout_s": float("nan")}, {"max_characters": 0}):
        with pytest.raises(ConfigError, match=r"expected (workers|max_characters)"):
            MathVerifier(**settings)


def test_two_workers_close_and_reuse():
    verifier = MathVerifier(workers=2)
    rows = [(asked(str(i)), rf"\boxed{{{i - 1}+1}}") for i in range(20)]
    assert set(verifier.verify_many(rows)) == {C}
    verifier.close()
    assert worker_pids() == set()
    assert verifier(asked("5"), r"\boxed{2+3}") is C
    verifier.close()


ANSWERS = st.text(alphabet="0123456789.,/^-+eE%$€ ABcm{}()\\fracboxtextπ²:×=*\n−", max_size=60)


@hypothesis_settings(deadline=None)  # the first call of a verifier imports its library
@given(
    st.sampled_from(sorted(VERIFIERS.keys() - {"math", "auto", "auto_rounded"})),
    ANSWERS,
    st.sampled_from(["7", "1/2", "50%", "B", "x y"]),
)
def test_any_text_gets_a_verdict(name, text, reference):
    """Only a reference that a verifier cannot read is trouble; a response never is."""
    for response in (text, f"Final answer: {text}"):
        try:
            verdict = VERIFIERS[name](asked(reference), response)
        except DataError:
            verdict = verify_many(VERIFIERS[name], [(asked(reference), response)])[0]
            assert verdict is E
            assert name == "yes_no" or (name, reference) in {
                ("choice", "1/2"),
                ("choice", "50%"),
                ("choice", "x y"),
                ("number", "B"),
                ("number", "x y"),
                ("rounded", "B"),
                ("rounded", "x y"),
            }
        assert isinstance(verdict, Verdict)


@given(st.floats(1e-6, 1e6), st.integers(0, 6), st.sampled_from(["", " cm", "%", " kg"]))
def test_a_number_equals_itself_however_it_is_written(value, digits, unit):
    text = f"{value:.{digits}f}{unit}"
    for written in (
        text,
        text.replace(".", ".") + ".",
        f"${text}$",
        f"about {text}",
        f"{float(f'{value:.{digits}f}'):,.{digits}f}{unit}",
    ):
        assert number_verifier(asked(text), f"Final answer: {written}") is C


def test_units_convert_and_case_matters():
    assert number_verifier(asked("5 MW"), "Final answer: 5000 kW") is C
    assert number_verifier(asked("5 MW"), "Final answer: 5 mW") is W
    assert NumberVerifier(tolerance=0.01)(asked("1.5"), "Final answer: 1.51") is C
    assert NumberVerifier(tolerance=0.001)(asked("1.5"), "Final answer: 1.51") is W


@pytest.mark.parametrize("text", ["9" * 300, "1e999", "1/0", "9" * 100_000, "m " * 5_000, "8 " + "m" * 150, "(" * 150])
def test_hostile_numbers_take_no_time(text):
    start = time.perf_counter()
    assert number_verifier(asked("7"), f"Final answer: {text}") in (U, W)
    assert time.perf_counter() - start < 2.0


def test_a_choice_may_be_named_by_its_text():
    problem = Problem("p", "?", answer="blue", meta={"choices": ["red", "blue", "A"]})
    assert choice_verifier(problem, "Final answer: B") is C
    assert choice_verifier(problem, r"\boxed{\text{Blue}}") is C
    assert choice_verifier(problem, "Final answer: red") is W
    assert choice_verifier(problem, "Final answer: D") is U  # there are three
    assert choice_verifier(problem, "Final answer: A") is W  # the third option's text is C, not A
    with pytest.raises(DataError, match="not a letter or an option's text"):
        choice_verifier(Problem("p", "?", answer="green"), "Final answer: B")


@given(st.text(max_size=12), st.text(max_size=12))
def test_anls_is_a_similarity(a, b):
    """1 for equal texts, symmetric, 0 or at least one half; a distance would fail on the first."""
    assert anls(a, a) == 1.0
    assert anls(a, b) == anls(b, a)
    assert anls(a, b) == 0.0 or 0.5 <= anls(a, b) <= 1.0


def test_anls_by_hand():
    """kitten → sitting: 3 edits over 7 characters, 1 − 3/7 = 0.571; ab → cd: 0 edits kept, below one half."""
    assert anls("kitten", "sitting") == pytest.approx(4 / 7)
    assert anls("ab", "ac") == 0.5
    assert anls("abc", "axy") == 0.0
    assert anls_verifier(asked("kitten"), "sitting") is W
    assert AnlsVerifier(threshold=0.5)(asked("kitten"), "sitting") is C


def test_relaxed_is_five_percent_of_the_reference_both_ways():
    assert [relaxed_verifier(asked("-20"), a) for a in ("-21", "-19", "-21.1", "-18.9")] == [C, C, W, W]


def test_a_short_answer_is_one_short_line():
    assert short_answer(" **14** ") == "14"
    assert short_answer("a" * 81) is None
    assert short_answer("") is None
    assert short_answer(r"\boxed{7") is None


def misbehave(problem, text):
    """A user's verifier with every fault; at the top level, since workers import it by name."""
    if text == "hang":
        time.sleep(60)
    if text == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if text == "memory":
        bytearray(16 << 30)
    return {"bool": True, "nothing": None, "name": "correct"}.get(text, Verdict.WRONG)


def test_a_users_verifier_runs_where_it_can_be_killed():
    texts = ["hang", "crash", "memory", "bool", "nothing", "name", "other"]
    start = time.perf_counter()
    with WorkerVerifier(misbehave, workers=2, timeout_s=2.0) as verifier:
        assert verifier.verify_many([(asked("7"), text) for text in texts]) == [T, E, E, E, E, C, W]
        assert verifier(asked(None), "name") is C
    assert time.perf_counter() - start < 40.0
    assert worker_pids() == set()
    assert verify_many(misbehave, [(asked("7"), text) for text in ("bool", "name")]) == [E, C]
