"""Can a viewer name the rendered expressions? Make a trial sheet without labels, or score the answers.

Usage:
    python tools/naming_trial.py make FOLDER --seed S [--first P]     montages of 70 faces, ten for each class, in random order
    python tools/naming_trial.py score ANSWERS --seed S               share named right; ANSWERS holds 70 words

The faces are at full intensity and show people of the shipped test set, from the P-th on. Let the viewer choose among the
seven words, write all answers down, and score only then.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cucn_nb.faces import SHOWN, as_expression, draw_identity, draw_scene, render

SET_SEED, FIRST_TEST_PERSON, FACES, SIDE, MARGIN = 2212, 1_000_000, 70, 160, 16


def true_labels(seed: int) -> np.ndarray:
    """Give the expression of each face of a trial, int64 `[70]`."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(7), FACES // 7))


def make(folder: Path, seed: int, first: int) -> None:
    """Write five numbered montages of 14 faces."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = true_labels(seed)
    for page in range(5):
        sheet = Image.new("RGB", (7 * SIDE, 2 * (SIDE + MARGIN)), "white")
        pen = ImageDraw.Draw(sheet)
        for cell in range(14):
            face, x, y = page * 14 + cell, cell % 7 * SIDE, cell // 7 * (SIDE + MARGIN)
            person = draw_identity(np.random.default_rng([SET_SEED, 1, 1, FIRST_TEST_PERSON + first + face]))
            image = render(person, {SHOWN[labels[face]]: 1.0}, draw_scene(np.random.default_rng([seed, 9, face])), SIDE)
            sheet.paste(Image.fromarray(image), (x, y + MARGIN))
            pen.text((x + 4, y + 2), str(face + 1), fill="black")
        sheet.save(folder / f"naming_trial_{page + 1}.png")


def score(answers: list[str], seed: int) -> dict:
    """Compare answers with the truth: share named right, overall and for each class."""
    if len(answers) != FACES:
        raise SystemExit(f"{len(answers)} answers, but {FACES} faces: write one word for each")
    given, labels = np.array([as_expression(word) for word in answers]), true_labels(seed)
    right = given == labels
    return {
        "seed": seed, "faces": FACES, "named_right": float(right.mean()), "by_class": {e.label: float(right[labels == e].mean()) for e in SHOWN},
        "answers": [SHOWN[k].label for k in given], "truth": [SHOWN[k].label for k in labels],
    }


def main() -> None:
    """Make or score a trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("make", "score"))
    parser.add_argument("path", type=Path, help="folder to write to, or file of answers")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--first", type=int, default=0, help="first person of the test set")
    args = parser.parse_args()
    if args.step == "make":
        make(args.path, args.seed, args.first)
    else:
        print(json.dumps(score(args.path.read_text().split(), args.seed), indent=1))


if __name__ == "__main__":
    main()
