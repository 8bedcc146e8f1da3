"""States of PyTorch; left out where it is not installed."""

import json

import fl_client
import numpy as np
import pytest
from scripted import Answer, ScriptedMaster

torch = pytest.importorskip("torch")


def module():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(144, 3))


def test_a_module_with_buffers_goes_there_and_back(start_master, tmp_path):
    net = module()
    floats = {name: value for name, value in net.state_dict().items() if value.is_floating_point()}
    count = fl_client.save(tmp_path / "init.safetensors", floats)
    assert count == sum(value.numel() for value in net.state_dict().values() if value.is_floating_point())
    master = start_master(MODEL=f"safetensors:{tmp_path}/init.safetensors", AGG_MIN_CLIENTS="1", ROUNDS="2")
    for round in fl_client.rounds(master.url, "w", bits=8):
        round.load_into(net)
        net.train()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        loss = torch.nn.functional.cross_entropy(net(torch.randn(16, 1, 8, 8) + 1), torch.randint(0, 3, (16,)))
        loss.backward()
        optimizer.step()
        assert round.send(net.state_dict(), num_samples=16, loss=loss.item(), metrics={"loss": loss}).accepted
    assert net[1].num_batches_tracked == 2
    state = {name: torch.from_numpy(array) for name, array in fl_client.download(master.url).items()}
    assert list(state) == [name for name in net.state_dict() if "tracked" not in name]
    assert torch.allclose(state["1.running_mean"], net[1].running_mean, atol=1e-3)


def test_counters_of_batch_normalisation_travel_with_the_model(evaluating, start_master, tmp_path):
    net = module()
    net[1].num_batches_tracked.fill_(9)
    fl_client.save(tmp_path / "init.safetensors", net.state_dict())
    master = start_master(MODEL=f"safetensors:{tmp_path}/init.safetensors", AGG_MIN_CLIENTS="1", ROUNDS="2")
    other = module()
    for round in fl_client.rounds(master.url, "w"):
        other.load_state_dict(round.torch_state(), strict=True)
        assert other[1].num_batches_tracked == 9
        other(torch.randn(4, 1, 8, 8))
        assert round.send(other.state_dict(), num_samples=1).accepted


def test_types_and_devices(softmax_file):
    master = ScriptedMaster(softmax_file, [Answer()] * 4)
    for count, round in enumerate(fl_client.rounds(master.url, "w")):
        state = round.torch_state()
        assert state["1.bias"].dtype == torch.float32
        if count == 0:
            with pytest.raises(fl_client.StateError, match=r"\.cpu\(\)"):
                round.send({**state, "1.bias": torch.empty(10, device="meta")}, num_samples=1)
            with pytest.raises(fl_client.StateError, match="int64"):
                round.send({**state, "1.bias": torch.zeros(10, dtype=torch.int64)}, num_samples=1)
            assert master.updates == []
        kind = [torch.bfloat16, torch.float16, torch.float64, torch.float32][count]
        values = {name: value.to(kind).requires_grad_().t() for name, value in state.items()}
        assert round.send({name: value.t() for name, value in values.items()}, num_samples=1).accepted
    master.close()
    assert len(master.updates) == 4


def test_loading_into_another_module_is_refused(softmax_file):
    master = ScriptedMaster(softmax_file, [Answer()])
    for round in fl_client.rounds(master.url, "w"):
        for wrong, text in (
            (torch.nn.Linear(64, 10), "has not"),
            (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 9)), "other shapes"),
            (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.Linear(10, 10)), "trained"),
        ):
            with pytest.raises(fl_client.StateError, match=text):
                round.load_into(wrong)
        frozen = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.Linear(10, 10))
        frozen[2].requires_grad_(False)
        round.load_into(frozen)
        round.send(round.state, num_samples=1)
    master.close()


@pytest.mark.parametrize("preset", ["softmax", "cnn", "resnet20", "tiny_transformer", "char_lstm"])
def test_networks_of_the_master_become_modules(preset, start_master):
    data = {"resnet20": "digits", "tiny_transformer": "shakespeare", "char_lstm": "shakespeare"}.get(preset, "digits")
    master = start_master(MODEL=preset, AGG_MIN_CLIENTS="1", ROUNDS="1", DATASET=data)
    for round in fl_client.rounds(master.url, "w"):
        net = fl_client.torch.build(round.spec)
        round.load_into(net)
        x, y = fl_client.torch.noise(round.spec, 4)
        loss = fl_client.torch.loss(round.spec, net(x), y)
        loss.backward()
        assert np.isfinite(loss.item())
        assert round.send(net.state_dict(), num_samples=4).accepted
        json.dumps(round.spec)
