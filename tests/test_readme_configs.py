from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import dataset  # noqa: F401, fixture

from segscse.attention import ALIASES, BLOCKS
from segscse.config import load_config
from segscse.inference.predictor import load
from segscse.training.run import train_run

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_there_are_configurations():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_makes_a_step_and_a_model(path, dataset, tmp_path):  # noqa: F811
    config = load_config(path)
    short = replace(config.train, max_steps=1, validations=1, device="cpu", precision="fp32")
    data = replace(config.data, batch_size=1, max_patch_voxels=4096)
    run = train_run(dataset, tmp_path / "run", replace(config, train=short, data=data))
    assert run.steps == 1
    predictor = load(run.folder, device="cpu")
    assert predictor.plan.spatial_dims == config.model.spatial_dims
    named = config.model.attention
    names = {named.encoder, named.bottleneck, named.decoder, named.skip} - {"none"}
    placed = {BLOCKS[ALIASES.get(name, name)] for name in names}
    assert torch.tensor([p.isfinite().all() for p in predictor.network.parameters()]).all()
    built = {type(module) for module in predictor.network.modules()} & set(BLOCKS.values())
    assert placed <= built
    assert bool(placed) == bool(built - {BLOCKS["none"]})
