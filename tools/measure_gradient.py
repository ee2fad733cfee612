"""Measure which face of a pair the loss of a trained network that mixes pushes to the larger sigma; writes results/sigma_gradient.json.

    python tools/measure_gradient.py RUN [--seed N]

RUN is the folder of a run of rul on the embedded faces whose validation part was cut off by seed N. All of its training faces are paired ten times
at random, in evaluation mode; of each pair the face whose unmixed feature has the smaller loss under its own label is the easier one.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F

from cucn_nb import datasets, protocols
from cucn_nb.metrics import auroc
from cucn_nb.training import environment, load_run
from cucn_nb.uncertainty import draw_partner, log_sigma, mix_features

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    method, side = run.method, run.record["data"]["train"]["image_size"]
    train, _ = protocols.stratified_split(datasets.read("faces", "train", side), 0.1, arguments.seed)
    if train.fingerprint() != run.record["data"]["train"]["fingerprint"]:
        parser.error(f"{arguments.run} was trained on other images than those of seed {arguments.seed}: see its config.json")
    with torch.no_grad():
        maps = torch.cat([method.backbone(method.prepare(each.float() / 255)) for each in train.images.split(256)])
        mu, level = method.mu(maps), log_sigma(method.log_var(maps))
        loss = F.cross_entropy(method.classifier(mu), train.labels, reduction="none")
        right = method.classifier(mu).argmax(1) == train.labels
    found: dict[str, list[torch.Tensor]] = {"same": [], "easier": [], "right": []}
    for draw in range(10):
        partner = draw_partner(len(mu), torch.Generator().manual_seed(draw))
        own = level.clone().requires_grad_()
        other = level[partner].clone().requires_grad_()
        both = torch.cat([own, other])  # a pair's two sigmas apart, though a face is in two pairs
        at = torch.arange(len(mu)) + len(mu)
        mixed, _ = mix_features(torch.cat([mu, mu[partner]]), both, torch.cat([at, at - len(mu)]))
        logits = method.classifier(mixed[:len(mu)])
        pair = (F.cross_entropy(logits, train.labels, reduction="none") + F.cross_entropy(logits, train.labels[partner], reduction="none")) / 2
        gradient, _ = torch.autograd.grad(pair.sum(), (own, other))
        push = -gradient[:, 0]  # where descent moves the first face's log sigma; the other's goes the opposite way
        distinct = partner != torch.arange(len(mu))
        found["same"].append((train.labels == train.labels[partner])[distinct])
        found["easier"].append(torch.where(loss < loss[partner], push, -push)[distinct])
        mixed_pair = right != right[partner]
        found["right"].append(torch.where(mixed_pair, torch.where(right, push, -push), torch.nan)[distinct])
    wrong_larger = auroc(level[:, 0].numpy(), (~right).numpy())  # over all pairs of a right and a wrong answer
    same, easier, rightly = (torch.cat(found[name]) for name in ("same", "easier", "right"))

    def summary(rows: torch.Tensor) -> dict[str, float | int]:
        one = rightly[rows][~rightly[rows].isnan()]
        return {"pairs": int(rows.sum()), "push_on_easier": float(easier[rows].mean()), "easier_pushed_up": float((easier[rows] > 0).float().mean()),
                "pairs_one_right": len(one), "push_on_right": float(one.mean()), "right_pushed_up": float((one > 0).float().mean())}

    record = {"method": run.record["method"], "epochs": len(run.history), "finished": run.progress.finished, "seed": arguments.seed,
              "train_accuracy": float(right.float().mean()), "wrong_has_larger_sigma": wrong_larger,
              "share_of_same_label": float(same.float().mean()),
              "same": summary(same), "different": summary(~same), "environment": environment()}
    text = json.dumps(record, indent=1) + "\n"
    (ROOT / "results" / "sigma_gradient.json").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
