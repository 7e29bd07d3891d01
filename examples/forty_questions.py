"""Forty questions about twenty images that come with scikit-learn and matplotlib; the pixels give the answers.

    python examples/forty_questions.py student

It writes `student/questions.jsonl` and `student/images/`: photos, cut and grey ones, and logos with transparency. One
question is about two images and one about none; an answer is a letter, yes or no, or a number.
"""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image
from sklearn.datasets import load_sample_images

folder = Path(sys.argv[1])
(folder / "images").mkdir(parents=True, exist_ok=True)

china, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)
hopper, logo, figures = (
    Image.open(get_sample_data(name, asfileobj=False))
    for name in ("grace_hopper.jpg", "logo2.png", "Minduka_Present_Blue_Pack.png")
)
photos = {"china": china, "flower": flower, "hopper": hopper}
images = dict(photos)
for name, photo in photos.items():
    width, height = photo.size
    for number, (x, y) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)], start=1):
        images[f"{name}-{number}"] = photo.crop(
            (x * width // 2, y * height // 2, (x + 1) * width // 2, (y + 1) * height // 2)
        )
    images[f"{name}-grey"] = photo.convert("L")
images |= {"logo": logo, "figures": figures}
for name, image in images.items():
    image.save(folder / "images" / f"{name}.png")


def row(question: str, answer: str, *names: str) -> dict[str, object]:
    """A line of the file, but for its id."""
    return {"question": question, "images": [f"images/{name}.png" for name in names], "answer": answer}


def left_is_brighter(image: Image.Image) -> bool:
    """By the mean of the grey values, on white where the image is transparent."""
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    light = np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("L"), dtype=float)
    middle = light.shape[1] // 2
    return bool(light[:, :middle].mean() > light[:, middle:].mean())


rows = []
for name, image in images.items():
    kind = "A" if name.endswith("grey") else "B"
    rows.append(row("Which is true of this image?\nA. It is grey.\nB. It has colors.", kind, name))
    brighter = "yes" if left_is_brighter(image) else "no"
    rows.append(row("Is the left half of this image brighter than its right half?", brighter, name))
rows[-3] = row("How many of these two images are grey?", "1", "hopper", "hopper-grey")
rows[-1] = row("What is 12 + 30?", "42")
lines = [json.dumps({"id": f"q{number:02d}", **line}) + "\n" for number, line in enumerate(rows)]
(folder / "questions.jsonl").write_text("".join(lines), encoding="utf-8")
print(f"{len(rows)} questions about {len(images)} images: {folder / 'questions.jsonl'}")
