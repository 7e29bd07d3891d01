"""CPU milliseconds that `mpo sample --base_url` needs per sample, from a real HTTP server on loopback.

The server is a process of its own, so its time is not in the measure; it takes --delay seconds or so for a reply. The
client is the whole stage in a fresh process: problems read, images decoded, requests, store, export. Problems have one
image each, several share one. CPU seconds are those of the client (`os.times`), which other jobs disturb least.

    OMP_NUM_THREADS=1 python benchmarks/served_samples.py
    OMP_NUM_THREADS=1 python benchmarks/served_samples.py --problems 500 --profile 40
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import multiprocessing
import os
import pstats
import random
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from recipes.config import SampleConfig
from recipes.data.sample import sample
from recipes.stage.groups import write_problems
from rewards.types import Problem

TEXT = "We read each digit from left to right.\n\nThen we add them up, one after the other.\n\nFinal answer: "


def compose(folder: Path, number: int, images: int, side: int) -> Path:
    """The problems and their images, noisy, so that PNG cannot pack them."""
    folder.mkdir()
    rng = random.Random(0)
    for i in range(min(images, number)):
        Image.frombytes("RGB", (side, side), rng.randbytes(side * side * 3)).save(folder / f"{i}.png")
    write_problems(
        folder / "questions.jsonl",
        (Problem(f"p{i:06d}", f"What is {i}?", (folder / f"{i % images}.png",), str(i % 97)) for i in range(number)),
    )
    return folder / "questions.jsonl"


def serve(told: Connection, delay_s: float) -> None:
    """Answer chat completions until the parent ends this process; as little work as HTTP/1.1 allows."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
                asked = json.loads(await reader.readexactly(length))
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))
                choices = [
                    {"index": i, "message": {"role": "assistant", "content": f"{TEXT}{i}"}, "finish_reason": "stop"}
                    for i in range(asked["n"])
                ]
                body = json.dumps({"id": "x", "choices": choices, "usage": {"completion_tokens": 32 * asked["n"]}})
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                    % (len(body), body.encode())
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1 << 26)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


@contextmanager
def server(delay_s: float) -> Iterator[str]:
    """The address of a server that runs beside us."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, delay_s), daemon=True)
    process.start()
    yield f"http://127.0.0.1:{here.recv()}/v1"
    process.terminate()
    process.join()


def spent(first: SampleConfig, config: SampleConfig, profile: int) -> float:
    """CPU seconds of the second of two runs of the stage: what is imported and loaded once is not in the measure."""
    sample(first)
    profiler = cProfile.Profile()
    start = sum(os.times()[:4])
    if profile:
        profiler.runcall(sample, config)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(profile)
    else:
        sample(config)
    return sum(os.times()[:4]) - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--images", type=int, default=250, help="different ones")
    parser.add_argument("--num-samples", type=int, nargs="+", default=[2, 8], help="N")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 448], help="pixels")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds that the server takes for a reply")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", type=int, default=0, help="print that many lines of a profile instead")
    args = parser.parse_args()
    print("| N | image | requests | CPU ms per sample, each round | least |\n| --- | --- | --- | --- | --- |")
    with server(args.delay) as url:
        for side in args.sides:
            for n in args.num_samples:
                found = []
                for _ in range(1 if args.profile else args.rounds):
                    with (
                        tempfile.TemporaryDirectory() as folder,
                        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process,
                    ):
                        configs = [
                            SampleConfig(
                                compose(Path(folder) / name, number, args.images, side),
                                Path(folder) / name / "out", base_url=url, model="instant", num_samples=n,
                            )
                            for name, number in (("first", 16), ("measured", args.problems))
                        ]  # fmt: skip
                        seconds = process.submit(spent, *configs, args.profile).result()
                    found.append(1000 * seconds / (args.problems * n))
                each = ", ".join(f"{one:.2f}" for one in found)
                print(f"| {n} | {side}×{side} | {args.problems:,} | {each} | {min(found):.2f} |", flush=True)


if __name__ == "__main__":
    main()
