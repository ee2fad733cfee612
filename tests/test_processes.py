"""Training in two processes: different images on each, the same parameters on both after every epoch."""

import json
import subprocess
import sys

SCRIPT = """
import hashlib, json, sys
import torch
from cucn_nb import methods, training
from cucn_nb.datasets import FaceDataset

torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (98, 1, 32, 32), dtype=torch.uint8, generator=g)
data = FaceDataset(images=images, labels=torch.arange(98) % 7, classes=tuple("abcdefg"), name="noise", split="train", sources=["noise"] * 98)
torch.manual_seed(0)
method = methods.create("cucn", counts=data.counts, image_size=32)
before = method.classifier.weight.detach().clone()
config = training.TrainConfig(epochs=2, batch_size=16, device="cpu", precision="float32")
run = training.fit(method, data, data.subset(torch.arange(20)), config, sys.argv[1])
digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in method.parameters())).hexdigest()
moved = float((method.classifier.weight - before).abs().max())
with open(f"{sys.argv[1]}-{torch.distributed.get_rank()}.json", "w") as file:
    json.dump({"world": torch.distributed.get_world_size(), "digest": digest, "moved": moved, "losses": [h["loss"] for h in run.history]}, file)
"""


def test_two_processes_agree(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run([*launcher, str(tmp_path / "script.py"), str(tmp_path / "run")], capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"run-{rank}.json").read_text()) for rank in (0, 1))
    assert first["world"] == 2 and first["moved"] > 1e-4
    assert first["digest"] == second["digest"]
    assert first["losses"] == second["losses"]  # the mean over both, though each saw its own images
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
