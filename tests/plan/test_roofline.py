"""Chips, topologies, rooflines: by the vendors' figures and by hand."""

import dataclasses

import pytest

from vimlab.config import ConfigError
from vimlab.metrics import PEAK_FLOPS
from vimlab.plan.chips import CHIPS, EXAMPLES, GB, Chip, Topology, topology
from vimlab.plan.roofline import roofline, whole_run
from vimlab.plan.volumes import Collective

TOY = Chip("TPU v5e", memory=16e9, bandwidth=1e9, interconnect=1e8, host=4)


@pytest.mark.parametrize("name", CHIPS)
def test_chips_are_sane(name):
    chip = CHIPS[name]
    assert chip.peak == PEAK_FLOPS[chip.kind]
    assert 100 < chip.peak / chip.bandwidth < 700, "FLOPs a byte of HBM"
    assert 2 < chip.bandwidth / chip.interconnect < 12
    assert 16e9 <= chip.memory <= 141e9


def test_topologies():
    assert [(t.chips, t.hosts) for t in map(topology, ("v5e:16x16", "v4:8x8x16", "h100:64"))] == [(256, 64), (1024, 256), (64, 8)]
    assert all(topology(name).chips >= 8 for name in EXAMPLES.split(", "))


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("v5litepod-16", "no known chip"),
        ("v5e", "needs a size"),
        ("v4:8x8", "3 sides"),
        ("v5e:3x4", "powers of two"),
        ("v5e:32x16", "up to v5e:16x16"),
        ("h100:2x4", "h100:8"),
    ],
)
def test_what_is_no_topology_is_refused(name, sentence):
    with pytest.raises(ConfigError, match=sentence):
        topology(name)


def test_the_roofline_is_the_longest_of_three():
    where = Topology("toy", TOY, (4,))
    sent = [Collective("all-reduce", 4, 1, 1e8), Collective("all-gather", 4, 2, 2e8)]
    roof = roofline(where, flops=4 * 197e12, traffic=2e9, collectives=sent)
    assert dataclasses.asdict(roof) == pytest.approx({"compute": 1.0, "memory": 2.0, "interconnect": 1.5 + 1.5})
    assert (roof.seconds, roof.bound) == (pytest.approx(3), "interconnect")


def test_beyond_a_node_gpus_have_the_network():
    h100 = CHIPS["h100"]
    assert h100.wire(8) == 450 * GB and h100.wire(16) == 50 * GB
    assert CHIPS["v4"].wire(1024) == 300 * GB


def test_a_run_at_stated_efficiencies():
    (row,) = whole_run(Topology("toy", TOY, (4,)), model_flops=4 * 197e12, steps=1800, best=3.0, efficiencies=(0.5,))
    assert row == {"mfu": 0.5, "step_seconds": 2.0, "hours": 1.0, "chip_hours": 4.0, "within_roofline": False}
