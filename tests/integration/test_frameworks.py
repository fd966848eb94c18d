"""Code written for others runs as it is: a script for torchrun, Lightning, Hugging Face's Trainer and Accelerate. Needs the extra `frameworks`."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile

import pytest
from pyspark import cloudpickle
from sparkgap import TorchDistributor

# The workers cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

RANKS = 2


@pytest.fixture
def cpu(spark):
    """`cpu(2)` is a distributor of 2 ranks that need no GPU, whose values all come back."""
    return functools.partial(TorchDistributor, use_gpu=False, spark=spark, results="all")


# ---- A script as people write it for torchrun ----

SCRIPT = '''
"""Fits a line; continues from the newest checkpoint."""
import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--checkpoints", type=Path, required=True)
    return parser.parse_args()


def load(folder, model, optimizer):
    saved = sorted(folder.glob("epoch-*.pt"))
    if not saved:
        return 0
    state = torch.load(saved[-1], map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epoch"] + 1


def main():
    options = parse()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(7)
    inputs = torch.randn(256, 4)
    data = TensorDataset(inputs, inputs @ torch.tensor([[1.0], [-2.0], [3.0], [0.5]]) + 1)
    sampler = DistributedSampler(data, seed=3)
    loader = DataLoader(data, batch_size=options.batch_size, sampler=sampler, num_workers=options.workers)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    start = load(options.checkpoints, model, optimizer)
    replica = DDP(model)
    for epoch in range(start, options.epochs):
        sampler.set_epoch(epoch)
        total = torch.zeros(1)
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(replica(x.to(device)), y.to(device))
            loss.backward()
            optimizer.step()
            total += loss.detach().cpu()
        dist.all_reduce(total)
        if dist.get_rank() == 0:
            mean = total.item() / dist.get_world_size() / len(loader)
            print(f"epoch {epoch} loss {mean:.4f}")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch, "loss": mean}
            torch.save(state, options.checkpoints / "unfinished")
            os.replace(options.checkpoints / "unfinished", options.checkpoints / f"epoch-{epoch}.pt")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def checkpoints(folder):
    import torch

    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("epoch-*.pt"))]


def weights(checkpoint):
    return {name: tensor.tolist() for name, tensor in checkpoint["model"].items()}


def run_by_torchrun(script, folder, epochs):
    """Until the last checkpoint is written. torchrun's own ranks may hang or abort afterwards, which groups.py keeps ours from."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", script]
    arguments = ["--epochs", str(epochs), "--checkpoints", folder]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([*launch, *arguments], stdout=output, stderr=output, env=environment)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.terminate()  # which it passes on to its ranks
            process.wait(60)
        output.seek(0)
        assert (folder / f"epoch-{epochs - 1}.pt").exists(), output.read()


@pytest.mark.parametrize("local_mode", [True, False])
def test_a_script_for_torchrun_ends_with_the_same_weights(cpu, script, tmp_path, local_mode):
    (tmp_path / "ours").mkdir()
    (tmp_path / "torchruns").mkdir()

    cpu(RANKS, local_mode).run(script, "--epochs", 4, "--checkpoints", tmp_path / "ours")
    run_by_torchrun(script, tmp_path / "torchruns", 4)

    ours, torchruns = checkpoints(tmp_path / "ours"), checkpoints(tmp_path / "torchruns")
    assert len(ours) == 4
    assert ours[-1]["loss"] < ours[0]["loss"] / 2
    assert weights(ours[-1]) == weights(torchruns[-1])


def test_a_script_goes_on_from_the_checkpoint_that_another_run_has_left(cpu, script, tmp_path, capsys):
    (tmp_path / "whole").mkdir()
    (tmp_path / "halves").mkdir()

    cpu(RANKS).run(script, "--epochs", 4, "--checkpoints", tmp_path / "whole")
    cpu(RANKS).run(script, "--epochs", 2, "--checkpoints", tmp_path / "halves")
    capsys.readouterr()
    cpu(RANKS).run(script, "--epochs", 4, "--checkpoints", tmp_path / "halves")

    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()] == ["2", "3"]
    assert weights(checkpoints(tmp_path / "halves")[-1]) == weights(checkpoints(tmp_path / "whole")[-1])


# ---- Lightning ----


def fit_with_lightning(devices, num_nodes, folder):
    import lightning
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torch.utils.data import DataLoader, TensorDataset

    class Line(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)
            self.losses = []

        def training_step(self, batch):
            x, y = batch
            loss = torch.nn.functional.mse_loss(self.layer(x), y)
            self.losses.append(loss.item())
            self.log("loss", loss, sync_dist=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    lightning.seed_everything(11)
    inputs = torch.randn(256, 4)
    data = TensorDataset(inputs, inputs @ torch.tensor([[1.0], [-2.0], [3.0], [0.5]]))
    model = Line()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=devices,
        num_nodes=num_nodes,
        strategy="ddp",
        max_epochs=5,
        logger=False,
        callbacks=[ModelCheckpoint(folder)],
        enable_progress_bar=False,
    )
    trainer.fit(model, DataLoader(data, batch_size=16))
    return {
        "environment": type(trainer.strategy.cluster_environment).__name__,
        "world size": trainer.world_size,
        "place": (trainer.global_rank, trainer.node_rank, trainer.local_rank),
        "steps": trainer.global_step,
        "losses": (model.losses[0], model.losses[-1]),
        "weights": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
    }


# A barrier task is one of Lightning's nodes: local mode has one with all ranks, otherwise each rank is a node of one device.
@pytest.mark.parametrize(
    ("local_mode", "devices", "num_nodes", "places"),
    [(True, RANKS, 1, [(0, 0, 0), (1, 0, 1)]), (False, 1, RANKS, [(0, 0, 0), (1, 1, 0)])],
)
def test_a_lightning_trainer_takes_its_place_among_the_ranks(cpu, tmp_path, local_mode, devices, num_nodes, places):
    found = cpu(RANKS, local_mode).run(fit_with_lightning, devices, num_nodes, tmp_path)

    assert [each["environment"] for each in found] == ["TorchElasticEnvironment"] * RANKS
    assert [each["world size"] for each in found] == [RANKS] * RANKS
    assert [each["place"] for each in found] == places
    assert [each["steps"] for each in found] == [5 * 256 / 16 / RANKS] * RANKS  # each rank has its share of the batches
    assert_learned_the_same(found)
    assert len(list(tmp_path.glob("*.ckpt"))) == 1


# ---- Hugging Face ----


def train_with_transformers(folder):
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    torch.manual_seed(5)
    shape = BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    words = torch.randint(1, 32, (128, 8))
    words[::2, 0] = 0  # the first word tells the class
    data = [{"input_ids": row, "labels": int(row[0] == 0)} for row in words]
    trainer = Trainer(
        model=BertForSequenceClassification(shape),
        args=TrainingArguments(
            output_dir=folder,
            num_train_epochs=4,
            per_device_train_batch_size=8,
            learning_rate=5e-3,
            logging_steps=1,
            save_strategy="epoch",
            report_to=[],
        ),
        train_dataset=data,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "world size": trainer.args.world_size,
        "steps": trainer.state.global_step,
        "losses": (losses[0], losses[-1]) if losses else None,
        "weights": {name: tensor.tolist() for name, tensor in trainer.model.state_dict().items()},
    }


@pytest.mark.parametrize("local_mode", [True, False])
def test_a_trainer_of_transformers_shares_the_batches_among_the_ranks(cpu, tmp_path, local_mode):
    found = cpu(RANKS, local_mode).run(train_with_transformers, tmp_path)

    assert [each["world size"] for each in found] == [RANKS] * RANKS
    assert [each["steps"] for each in found] == [4 * 128 / 8 / RANKS] * RANKS
    assert_learned_the_same(found)
    assert len(list(tmp_path.glob("checkpoint-*"))) == 4


def train_with_accelerate():
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    accelerator = Accelerator()
    torch.manual_seed(5)
    inputs = torch.randn(256, 4)
    data = TensorDataset(inputs, inputs @ torch.tensor([[1.0], [-2.0], [3.0], [0.5]]))
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=16))
    losses = []
    for _ in range(5):
        for x, y in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            losses.append(accelerator.gather(loss).mean().item())
    accelerator.end_training()
    return {
        "world size": accelerator.num_processes,
        "place": (accelerator.process_index, accelerator.local_process_index),
        "steps": len(losses),
        "losses": (losses[0], losses[-1]),
        "weights": {name: tensor.tolist() for name, tensor in accelerator.unwrap_model(model).state_dict().items()},
    }


@pytest.mark.parametrize(("local_mode", "places"), [(True, [(0, 0), (1, 1)]), (False, [(0, 0), (1, 0)])])
def test_an_accelerator_prepares_model_and_data_for_the_ranks(cpu, local_mode, places):
    found = cpu(RANKS, local_mode).run(train_with_accelerate)

    assert [each["world size"] for each in found] == [RANKS] * RANKS
    assert [each["place"] for each in found] == places
    assert [each["steps"] for each in found] == [5 * 256 / 16 / RANKS] * RANKS
    assert_learned_the_same(found)


def assert_learned_the_same(found):
    """The loss has fallen where the framework tells it, and all replicas have the same weights."""
    for first, last in (each["losses"] for each in found if each["losses"] is not None):
        assert last < first / 2
    assert found[0]["losses"] is not None
    assert all(each["weights"] == found[0]["weights"] for each in found)
