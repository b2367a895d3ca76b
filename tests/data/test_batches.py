"""The order of samples in batches, and the processes that make them."""

import itertools
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zoo.data.batches import Batches
from zoo.data.synthetic import Synthetic


class Lengths:
    """A collator that returns the samples."""

    def __call__(self, samples, rng):
        return {"samples": samples}

    def length(self, sample):
        return len(sample.target.text)


@pytest.fixture(scope="module")
def samples():
    data = Synthetic(train_dialogues=12, dev_dialogues=2, test_dialogues=2)
    data.prepare_data()
    data.setup("fit")
    return data.samples("train")


def batches(samples, shuffle, size=16, **options):
    return Batches(samples, Lengths(), size, shuffle, True, True, 3, **options)


@pytest.mark.parametrize("shuffle", [True, False])
def test_dialogues_stay_together_and_keep_their_order(samples, shuffle):
    made = batches(samples, shuffle)
    found = [made[(0, i)]["samples"] for i in range(len(made))]
    assert sorted(s.id for b in found for s in b) == sorted(s.id for s in samples)
    assert all(len(b) == 16 for b in found[:-1]) or shuffle
    position = {s.id: i for i, s in enumerate(samples)}
    places = {}
    for number, batch in enumerate(found):
        for s in batch:
            places.setdefault(s.dialogue, []).append((number, position[s.id]))
    cut = [d for d, where in places.items() if len({number for number, _ in where}) > 1]
    assert len(cut) < len(found)  # only those at the end of a batch
    for batch in found:
        in_order = [position[s.id] for s in batch]
        for dialogue in {s.dialogue for s in batch}:
            own = [p for p, s in zip(in_order, batch, strict=True) if s.dialogue == dialogue]
            assert own == list(range(own[0], own[0] + len(own)))


def test_epochs_differ_and_seeds_repeat(samples):
    one, other = batches(samples, True), batches(samples, True)
    order = [np.concatenate(made.order(epoch)).tolist() for made, epoch in ((one, 0), (one, 1), (other, 0))]
    assert order[0] != order[1] and order[0] == order[2]


def test_every_process_gets_its_share(samples):
    parts = [batches(samples, True, size=8, rank=rank, world_size=2) for rank in range(2)]
    seen = np.concatenate([np.concatenate(part.order(0)) for part in parts])
    assert set(seen) == set(range(len(samples))) and len({len(part) for part in parts}) == 1


@pytest.mark.parametrize("shuffle", [True, False])
def test_dialogues_stay_together_over_several_processes(samples, shuffle):
    made = batches(samples, shuffle, size=8, rank=1, world_size=2)
    per_batch = [len({s.dialogue for s in made[(0, i)]["samples"]}) for i in range(len(made))]
    assert max(per_batch) <= 4 and sum(per_batch) / len(per_batch) < 3  # of eight


class Drawn(Lengths):
    """A collator that draws a number, and says which process it ran in."""

    def __call__(self, samples, rng):
        return {"ids": [s.id for s in samples], "drawn": float(rng.random()), "process": os.getpid()}


@pytest.fixture
def loader():
    """Options -> the training loader of a run, or of a test, on a device."""

    def loader(workers, resume=(0, 0), stage="fit", device="cpu"):
        data = Synthetic(train_dialogues=12, dev_dialogues=2, test_dialogues=2, num_workers=workers, batch_size=16)
        data.trainer = SimpleNamespace(
            lightning_module=SimpleNamespace(collator=lambda training: Drawn()),
            strategy=SimpleNamespace(root_device=torch.device(device)),
            state=SimpleNamespace(fn=stage),
            global_rank=0,
            world_size=1,
            overfit_batches=0.0,
        )
        data._resume_at = resume
        return data.train_dataloader()

    return loader


def read(loader, epoch, stop=None):
    """Batches of an epoch, those before ``stop``, without their processes, and the processes."""
    loader.sampler.set_epoch(epoch)
    batches = list(itertools.islice(loader, stop or len(loader)))
    return [(b["ids"], b["drawn"]) for b in batches], {b["process"] for b in batches}


def test_the_workers_of_a_fit_live_on_and_change_no_batch(loader):
    alone, together = loader(0, resume=(1, 2)), loader(2, resume=(1, 2))
    processes = set()
    for epoch, stop in ((1, None), (2, 3), (2, None), (3, None)):  # the second is left in its middle
        expected, (here,) = read(alone, epoch, stop)
        batches, workers = read(together, epoch, stop)
        assert batches == expected and len(expected) > 2 and here == os.getpid()
        processes |= workers
    assert len(processes) == 2 and os.getpid() not in processes


def test_the_workers_of_a_test_end_with_it(loader):
    assert not loader(2, stage="test").persistent_workers and not loader(0).persistent_workers


def test_batches_are_pinned_for_a_card_alone(loader, monkeypatch):
    assert not loader(0).pin_memory and not loader(0, device="cuda").pin_memory  # none is here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loader(0, device="cuda").pin_memory and not loader(0).pin_memory
