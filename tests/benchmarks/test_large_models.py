"""Large models on paper: against sums done by hand."""

import pytest

from benchmarks.job import Options
from benchmarks.jobs import large_models
from benchmarks.models.decoder import DECODERS

OPTIONS = Options(tasks=(), optimizers=(), seeds=1, out="")


def parameters(sizes):
    """By hand: embedding and head, four kernels of attention, a feed-forward layer."""
    width, hidden = sizes.width, sizes.hidden
    attention, forward = 4 * width * width, (3 if sizes.gated else 2) * width * hidden
    biases = 0 if sizes.gated else 5 * width + hidden
    norms = 2 * (2 * width)
    block = attention + forward + biases + norms
    return 2 * sizes.vocabulary * width + sizes.blocks * block + 2 * width


@pytest.mark.parametrize("name", DECODERS)
def test_states_of_large_models(name):
    sizes = DECODERS[name]
    result = large_models.run(name, OPTIONS)
    count = parameters(sizes)
    assert result["parameters"] == count
    adam, whiten, polar = (
        result["optimizers"][each] for each in ("adam", "whiten", "polar")
    )
    assert adam["state_bytes"] == 8 * count + 4
    assert adam["said"] == 3 * count
    for devices in (8, 256):
        share = adam["state_bytes_a_device"][str(devices)]
        assert share == pytest.approx(8 * count / devices, rel=0.01)
        # Whitening adds little, and no more than little on each of many devices.
        of_ours = whiten["state_bytes_a_device"][str(devices)]
        assert share < of_ours < 1.05 * share
    # Six products a kernel and token, forward and backward; a head as wide as words.
    flops = 6 * result["tokens"] * (count - sizes.vocabulary * sizes.width)
    assert result["flops"] == pytest.approx(flops, rel=0.01)
    assert 0 < adam["flops"] < whiten["flops"] < polar["flops"] < 0.01 * flops
    assert adam["said"] < whiten["said"] < polar["said"] < 1.1 * adam["said"]


def test_the_table_has_a_row_for_each_optimizer():
    result = large_models.run("gpt2", OPTIONS)
    _, _, *rows = large_models.across([result]).splitlines()
    assert [row.split("|")[2].strip() for row in rows] == [
        label for label, _ in large_models.OPTIMIZERS.values()
    ]
    assert rows[0].split("|")[-2].strip() == "1.000x"
