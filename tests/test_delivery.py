"""How batches come to a device, and steps that are replayed there."""

import contextlib
import io
import threading

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from raybrain import config
from raybrain.config import InputError, Training
from raybrain.decoders.build import build_network
from raybrain.decoders.published import Vae
from raybrain.decoders.wiring import propagation
from raybrain.training import (
    Batch,
    Contrast,
    delivery,
    fit,
    loop,
    precision,
    replay,
    resident,
    streamed,
)
from raybrain.training.delivery import fits, read_ahead

CPU = torch.device("cpu")
META = torch.device("meta")
VOXELS, OUTPUTS = 30, 6
SETTINGS = Training(epochs=4, batch_size=32, lr=3e-3, patience=4, precision="float32")


def feed(rows=170, *, seed=0):
    draw = np.random.default_rng(seed)
    inputs = draw.standard_normal((rows, VOXELS), np.float32)
    noise = draw.standard_normal((rows, OUTPUTS), np.float32)
    return resident(inputs, targets=0.5 * (inputs[:, :OUTPUTS] + noise))


def from_chunks(whole):
    parts = torch.arange(whole.rows).split(40)
    return streamed(
        lambda number: whole.read(parts[number]),
        sizes=[len(part) for part in parts],
        row_bytes=4 * (VOXELS + OUTPUTS),
        memory=4 * 40 * 4 * (VOXELS + OUTPUTS),
    )


def network(section=None, *, seed=0):
    edges, weight = np.array([[0, 0, 1], [1, 2, 2]]), np.array([0.9, 0.7, 0.8])
    wiring = {
        "order": np.arange(VOXELS),
        "nodes": np.arange(VOXELS).reshape(3, -1),
        "propagation": propagation(edges, weight=weight, nodes=3),
    }
    section = section or config.ResidualMLP(width=16)
    if isinstance(section, config.Vae):  # whose width is no setting
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Vae(voxels=VOXELS, outputs=OUTPUTS, share_middle=True, width=32)
    return build_network(section, voxels=VOXELS, outputs=OUTPUTS, wiring=wiring, seed=seed)


def run(model=None, *, train=None, settings=SETTINGS, **changes):
    model = model or network()
    arguments = {"train": train or feed(), "validation": feed(60, seed=1), "seed": 3, **changes}
    return model, list(fit(model, settings=settings, **arguments))


def numbers(model, epochs):
    losses = [(epoch.train_loss, epoch.validation_loss, epoch.lr) for epoch in epochs]
    return losses, [value.numpy().tobytes() for value in model.state_dict().values()]


def test_rows_fit_beside_what_training_takes():
    assert fits(50, weights=0, free=100)
    assert not fits(51, weights=0, free=100)
    assert fits(10, weights=10, free=100)  # 8 copies of the weights leave 20, half of it for rows
    assert not fits(11, weights=10, free=100)
    assert not fits(0, weights=10, free=79)


@pytest.mark.parametrize(
    ("made", "free", "where", "ahead"),
    [
        (feed, 10**9, "meta", False),
        (feed, 10**3, "cpu", True),
        (lambda: from_chunks(feed()), 10**9, "cpu", True),
    ],
    ids=["fits", "too large", "streamed"],
)
def test_rows_go_to_the_device_where_they_fit(made, free, where, ahead, monkeypatch):
    monkeypatch.setattr(delivery, "free_memory", lambda device: free)
    chosen = delivery.delivery(made(), model=network(), device=META, way="auto")
    assert (chosen.on_device, chosen.ahead) == (where == "meta", ahead)
    if where == "meta":
        order = chosen.feed.order(torch.Generator().manual_seed(0))
        assert order.device.type == "meta"
        assert next(chosen.batches(order.split(32))).inputs.shape == (32, VOXELS)


def test_memory_that_another_process_took_is_no_fault(monkeypatch, caplog):
    def full(self, device):
        raise torch.OutOfMemoryError("taken")

    monkeypatch.setattr("raybrain.training.feeds.Resident.to", full)
    chosen = delivery.delivery(feed(), model=network(), device=META, way="resident")
    assert chosen.ahead
    assert "170 rows did not fit on meta" in caplog.text


def test_a_cpu_reads_its_rows_where_they_are():
    rows = feed()
    chosen = delivery.delivery(rows, model=network(), device=CPU, way="auto")
    assert chosen.feed is rows
    assert not chosen.ahead


@pytest.mark.parametrize("made", [feed, lambda: from_chunks(feed())], ids=["memory", "disk"])
def test_batches_read_ahead_are_those_that_were_asked_for_in_order(made):
    rows = made()
    whole = feed()
    for epoch in range(2):
        parts = rows.order(torch.Generator().manual_seed(epoch)).split(32)
        found = list(read_ahead(rows, parts, device=CPU))
        assert len(found) == len(parts)
        for part, batch in zip(parts, found, strict=True):
            expected = whole.read(part)
            assert torch.equal(batch.inputs, expected.inputs)
            assert torch.equal(batch.targets, expected.targets)
            assert torch.equal(batch.weight, expected.weight)


def test_the_next_batches_are_read_while_one_is_used():
    ready = threading.Semaphore(0)

    class Counting:
        rows = 10

        def read(self, rows):
            ready.release()
            return Batch(rows, rows, rows)

    batches = read_ahead(Counting(), torch.arange(10).split(1), device=CPU)
    next(batches)
    for _ in range(1 + delivery.BATCHES_AHEAD):
        assert ready.acquire(timeout=10)
    batches.close()
    assert not any(thread.name.startswith("ahead") for thread in threading.enumerate())


def test_what_goes_wrong_while_reading_ahead_is_raised():
    def read(number):
        raise OSError("the disk is gone")

    broken = streamed(read, sizes=[10], row_bytes=1, memory=1)
    with pytest.raises(OSError, match="the disk is gone"):
        list(read_ahead(broken, [torch.arange(5)], device=CPU))


@pytest.mark.parametrize("way", ["auto", "resident", "ahead"])
@pytest.mark.parametrize("made", [feed, lambda: from_chunks(feed())], ids=["memory", "disk"])
def test_the_way_that_batches_come_changes_no_number(way, made):
    expected = numbers(*run(train=made(), way="host"))
    assert numbers(*run(train=made(), way=way)) == expected


class Asked(TorchDispatchMode):
    """Counts what a GPU would make the host wait for: values and shapes that depend on values."""

    WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select")

    def __init__(self):
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.waits += function.name() in self.WAITS
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "section",
    [config.ResidualMLP(width=16), config.Vae(), config.CnnImage(), config.Gcn()],
    ids=lambda section: section.kind,
)
def test_the_host_waits_for_two_losses_an_epoch(section):
    settings = SETTINGS.model_copy(update={"epochs": 2, "ema": 0.9})
    with Asked() as asked:
        run(network(section), settings=settings, way="resident")
    assert asked.waits == 2 * settings.epochs


class Recording:
    """Stands for a GPU's recorder: what is recorded is done again at each replay."""

    def __init__(self):
        self.times = 0

    def __call__(self, work):
        self.times += 1
        return work


@pytest.fixture
def recording(monkeypatch):
    made = Recording()
    monkeypatch.setattr(loop, "recorder", lambda device, generator: made)
    return made


COMPUTED = SETTINGS.model_copy(update={"replay": False})
REPLAYED = SETTINGS.model_copy(update={"replay": True})


@pytest.mark.parametrize(
    "section",
    [config.ResidualMLP(width=16), config.Vae(), config.CnnImage(), config.Gcn()],
    ids=lambda section: section.kind,
)
def test_replayed_steps_train_as_computed_ones(section, recording):
    _, expected = run(network(section), settings=COMPUTED)
    _, found = run(network(section), settings=SETTINGS)  # as they are when nothing is said
    assert recording.times == 2  # 170 rows are batches of 29 and of 28
    for one, other in zip(found, expected, strict=True):
        assert one.lr == other.lr
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.validation_loss == pytest.approx(other.validation_loss, rel=1e-4)


def test_a_replayed_run_resumes_with_the_same_bytes(recording):
    settings = REPLAYED.model_copy(update={"ema": 0.9})
    whole = run(settings=settings)
    rows = {"train": feed(), "validation": feed(60, seed=1)}
    epoch = next(fit(network(), **rows, settings=settings, seed=3))
    buffer = io.BytesIO()
    torch.save(epoch.state(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    resumed = run(network(seed=5), settings=settings, state=state)
    assert numbers(*resumed)[1] == numbers(*whole)[1]
    run(network(seed=5), settings=COMPUTED, state=state)  # and without replays


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": COMPUTED},
        {"settings": REPLAYED, "contrast": Contrast(weight=0.1)},
        {"settings": REPLAYED, "train": from_chunks(feed())},
    ],
    ids=["not asked for", "contrast", "streamed"],
)
def test_steps_that_differ_are_computed_anew(changes, recording):
    run(**changes)
    assert recording.times == 0


class OfAnotherPackage(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = network()

    def forward(self, betas):
        return self.inside(betas)


def test_a_network_that_nobody_measured_is_replayed_only_on_request(recording):
    run(OfAnotherPackage(), settings=SETTINGS)
    assert recording.times == 0
    run(OfAnotherPackage(), settings=REPLAYED)
    assert recording.times == 2


def test_precision_is_chosen_for_the_device(monkeypatch):
    exact = run()
    chosen = SETTINGS.model_copy(update={"precision": "auto"})
    assert numbers(*run(settings=chosen)) == numbers(*exact)
    monkeypatch.setattr(precision, "device_computes_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "_cpu_knows_bfloat16", lambda: True)
    _, rough = run(settings=chosen)
    assert rough[-1].train_loss != exact[1][-1].train_loss
    for one, other in zip(rough, exact[1], strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=0.02)
        assert one.validation_loss == pytest.approx(other.validation_loss, rel=0.02)


def test_a_step_that_cannot_be_recorded_says_what_to_set(monkeypatch):
    def refuse(work):
        raise RuntimeError("not permitted when stream is capturing")

    monkeypatch.setattr(loop, "recorder", lambda device, generator: refuse)
    with pytest.raises(InputError, match=r"not permitted .* set training\.replay=false"):
        run(settings=REPLAYED)


class FakeGpu:
    """The calls of torch.cuda that copies and recordings make, written down in their order."""

    def __init__(self, monkeypatch):
        self.log = log = []

        @contextlib.contextmanager
        def within(name):
            log.append(f"enter {name}")
            yield
            log.append(f"leave {name}")

        class Stream:
            def __init__(self, name="copies"):
                self.name = name

            def record_event(self):
                log.append(f"event on {self.name}")
                return "event"

            def wait_event(self, event):
                log.append(f"{self.name} waits for {event}")

        class Graph:
            def register_generator_state(self, generator):
                log.append("generator")

            def replay(self):
                log.append("replay")

        self.Stream = Stream
        moving = delivery.moved
        monkeypatch.setattr(delivery, "moved", lambda *a: (log.append("copy"), moving(*a))[1])
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, s: log.append("kept"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("usual"))
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: within(stream.name))
        monkeypatch.setattr(torch.cuda, "device", lambda device: within("device"))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: within("graph"))


def test_a_copy_has_its_own_stream_and_is_waited_for_where_it_is_used(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    batch = feed(4).read(torch.arange(4))
    sent = delivery.send(batch, device=CPU, stream=gpu.Stream())
    assert gpu.log == ["enter copies", "copy", "event on copies", "leave copies"]
    gpu.log.clear()
    assert torch.equal(delivery.receive(sent, device=CPU).inputs, batch.inputs)
    assert gpu.log == ["usual waits for event", "kept", "kept", "kept"]


def test_a_recording_knows_the_generator_and_does_the_work_once(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    assert replay.recorder(CPU, generator=torch.Generator()) is None
    record = replay.recorder(torch.device("cuda"), generator=torch.Generator())
    again = record(lambda: gpu.log.append("work"))
    expected = ["generator", "enter device", "enter graph", "work", "leave graph", "leave device"]
    assert gpu.log == expected
    again()
    again()
    assert gpu.log == [*expected, "replay", "replay"]


def test_what_torch_keeps_unused_is_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    assert delivery.free_memory(torch.device("cuda")) == 120
