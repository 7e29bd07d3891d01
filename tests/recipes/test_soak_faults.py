"""What `make soak` takes for growth, and the faults that it makes; the soak itself takes minutes."""

from __future__ import annotations

import random

from tests.recipes.soak_faults import LIMITS, SERVER_FAULTS, Faults, Seen, grown, reply, too_much


def held(number: int, *, memory: float = 0.0, descriptors: float = 0.0, threads: float = 0.0) -> list[Seen]:
    """A process whose numbers rise by so much per round, after a start that loads what is needed."""
    rng = random.Random(0)
    loading = [Seen(100 + 20 * i, 10, 4, 0) for i in range(number // 3)]
    return loading + [
        Seen(300 + memory * i + rng.uniform(-4, 4), 10 + int(descriptors * i), 4 + int(threads * i), 0)
        for i in range(number - len(loading))
    ]


def test_a_flat_process_with_a_start_and_noise_has_not_grown() -> None:
    for number in (3, 10, 90):
        samples = held(number)
        assert too_much(grown(samples), samples) == []


def test_each_number_is_seen_to_grow() -> None:
    for name, step in (("memory", 1.0), ("descriptors", 0.2), ("threads", 0.2)):
        samples = held(90, **{name: step})
        (line,) = too_much(grown(samples), samples)
        assert line.startswith(f"{name} grew by ")
        assert line.endswith(f"limit {LIMITS[name]}")


def test_one_process_left_over_at_any_moment_is_too_many() -> None:
    samples = held(30)
    samples[3] = samples[3]._replace(processes=1)
    assert too_much(grown(samples), samples) == ["1 processes were left over"]


def test_the_servers_faults_come_for_ever_and_most_requests_are_answered() -> None:
    faults = Faults()
    came = [faults.pop(0) for _ in range(2000)]
    assert faults
    assert {*came} == {"ok", *SERVER_FAULTS}
    assert 1700 < came.count("ok") < 1900


def test_the_servers_answers_are_right_and_wrong_by_turns() -> None:
    body = {"n": 4, "seed": 0, "messages": [{"role": "user", "content": [{"type": "text", "text": "What is 7?"}]}]}
    texts = [choice["message"]["content"] for choice in reply(body)["choices"]]
    assert [text[-1] for text in texts] == ["7", "8", "7", "8"]
