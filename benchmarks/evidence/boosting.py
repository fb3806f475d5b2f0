"""The claims of Linear Neuron Boosting (Munoz 2025), and what its users ask besides."""

from __future__ import annotations

from functools import partial

from benchmarks.evidence import raced, swept
from benchmarks.evidence.claim import Claim, Proof
from benchmarks.evidence.page import Page
from benchmarks.jobs import JOBS

ABSTRACT = "Munoz 2025, abstract and experiments"
ASKED = "Asked by users of optimizers"

# Ten networks: dense, convolutional, recurrent, a transformer.
race = partial(Claim, job="whiten", tasks=JOBS["whiten"].tasks)

CLAIMS = (
    race(
        name="lnb-steps",
        says="Fewer steps to the lowest loss of Adam",
        where=ABSTRACT,
        quantity="steps to Adam's lowest loss / Adam's steps",
        cases=raced.cases(raced.of_seeds("steps_ratio")),
        strict=True,
        reading="Every optimizer at the rate that gets there first.",
    ),
    race(
        name="lnb-clock",
        says="Less time to the lowest loss of Adam",
        where=ABSTRACT,
        quantity="time to Adam's lowest loss / Adam's time",
        cases=raced.cases(raced.of_seeds("seconds_ratio")),
        strict=True,
        reading=(
            "The same runs by the clock, blocks of steps in turn. Steps of the "
            "smallest networks take a millisecond or less, most of it overhead."
        ),
    ),
    race(
        name="lnb-final",
        says="A final loss no higher than Adam's",
        where=ABSTRACT,
        quantity="lowest loss / Adam's",
        cases=raced.cases(raced.lowest(None)),
        reading="The same runs: the lowest loss of what is trained for.",
    ),
    race(
        name="lnb-test",
        says="A test loss no higher than Adam's",
        where=ASKED,
        quantity="lowest test loss / Adam's",
        cases=raced.cases(raced.lowest("test_loss")),
        reading=(
            "The same runs: the lowest test loss along the way, as early stopping "
            "would find it. Rates were chosen for the training loss."
        ),
    ),
    Claim(
        name="lnb-accuracy",
        says="Test errors no more than Adam's where training went lowest",
        where=ASKED,
        job="transfer",
        tasks=("batches", "depths", "norms"),
        quantity="share of the test set that is wrong / Adam's",
        cases=swept.test_errors,
        reading=(
            "Every optimizer at the rate of its lowest training loss, where it is "
            "lowest: no early stopping, no weight decay, few images. Who fits them "
            "to a hundredth of Adam's loss need not classify others better."
        ),
    ),
    race(
        name="lnb-step",
        says="A step that takes at most a tenth longer than Adam's",
        where="Munoz 2025, wall clock; the bound is ours",
        quantity="time of a step / Adam's",
        cases=raced.cases(raced.of_seeds("step_time")),
        limit=1.1,
        reading=(
            "What is added hardly grows with the batch, so it shows in small "
            "networks and small batches: [what it costs as things grow](cost.md)."
        ),
    ),
    race(
        name="lnb-memory",
        says="At most a tenth more memory than Adam",
        where="Munoz 2025, matrix-free; the bound is ours",
        quantity="temporary memory of a step and state / Adam's",
        cases=raced.cases(raced.memory),
        limit=1.1,
        reading="Bytes of the compiled step: no chance in them, and no seeds.",
    ),
    Claim(
        name="lnb-rates",
        says="As many learning rates come to Adam's best loss",
        where="Munoz 2025, adaptive step sizes; asked by users of optimizers",
        job="transfer",
        tasks=("inputs", "widths", "batches"),
        quantity="Adam's rates within 10 % of its best loss / ours within 10 % of it",
        cases=swept.cases(swept.rates_that_do),
        reading=(
            "Seven or nine rates, a factor of the square root of ten between two; for "
            "LNB they are ten times as high."
        ),
    ),
    Claim(
        name="lnb-own-rates",
        says="As many learning rates come to its own best loss",
        where=ASKED,
        job="transfer",
        tasks=("inputs", "widths", "batches"),
        quantity="Adam's rates within 10 % of its best loss / ours within 10 % of ours",
        cases=swept.cases(swept.rates_of_own),
        reading="The same runs; the lower the best loss, the harder this is.",
    ),
    Claim(
        name="lnb-kept",
        says="A rate that is kept for another width, batch or unit costs no more",
        where=ASKED,
        job="transfer",
        tasks=("inputs", "widths", "batches"),
        quantity="loss at the first version's best rate / lowest loss, beside Adam's",
        cases=swept.kept_rate,
        reading=(
            "The rate that is best for the first version of a task is kept for the "
            "others: what that costs us, over what it costs Adam."
        ),
    ),
    Claim(
        name="lnb-versions",
        says="A lower loss at every width, batch size and unit of the inputs",
        where=ASKED,
        job="transfer",
        tasks=("inputs", "widths", "batches"),
        quantity="lowest loss of all rates / Adam's",
        cases=swept.cases(swept.best_loss),
    ),
    Claim(
        name="lnb-deep",
        says="Deep narrow networks, whose gradients vanish, are trained further",
        where="Munoz 2025, introduction; asked by users",
        job="transfer",
        tasks=("depths",),
        quantity="lowest loss of all rates / Adam's",
        cases=swept.cases(swept.best_loss),
        strict=True,
        reading=(
            "Tanh layers 16 wide, initialised as Flax does, 400 steps. A ratio near 1 "
            "at 100 layers says that nobody learnt much there: of ten classes the "
            "loss begins at 2.3."
        ),
    ),
    Claim(
        name="lnb-norm",
        says="It helps networks that have BatchNorm or LayerNorm, too",
        where=ASKED,
        job="transfer",
        tasks=("norms",),
        quantity="lowest loss of all rates / Adam's on the same network",
        cases=swept.normalised,
        strict=True,
    ),
    Claim(
        name="lnb-instead",
        says="A plain network with it trains as far as a normalised one with Adam",
        where="Munoz 2025, normalisation outside of inference",
        job="transfer",
        tasks=("norms",),
        quantity="lowest loss, plain network / Adam's with the normalisation",
        cases=swept.instead,
    ),
    Claim(
        name="lnb-covered",
        says="Wherever autodiff reaches: every kernel of other people's models",
        where="Munoz 2025, abstract",
        job="coverage",
        tasks=JOBS["coverage"].tasks,
        quantity="share of the numbers in kernels that are not covered",
        cases=raced.covered,
        limit=0.0,
        log=False,
        form="{:.1%}",
        reading="Models by their authors, as they are; counted from shapes.",
    ),
    Claim(
        name="lnb-devices",
        says="Data parallel training needs no more collectives than Adam's",
        where="Munoz 2025, local and distributed training",
        job="scaling",
        tasks=("data",),
        quantity="collectives of a step / Adam's",
        cases=raced.said,
        log=False,
        reading=(
            "Read from compiled programs; statistics are summed in the all-reduce of "
            "the gradients. That the trained weights are those of one device is held "
            "by tests, see below."
        ),
    ),
)

PROOFS = (
    Proof(
        name="lnb-equivalence",
        says="A step is gradient descent on a network whose layers whiten their inputs",
        where="Munoz 2025, the equivalence",
        tests=(
            "test_lnb.py::test_step_is_gradient_descent_on_the_whitened_dense_layer",
            "test_lnb.py::test_step_is_gradient_descent_on_the_whitened_convolution",
            "test_lnb.py::"
            "test_function_learned_ignores_an_invertible_change_of_the_inputs",
        ),
        reading="Against the whitened network itself, in float64, to 1e-10.",
    ),
    Proof(
        name="lnb-published",
        says="The published algorithm is what runs under its name",
        where="Munoz 2025, algorithm",
        tests=("test_parity.py::test_trajectory",),
        reading=(
            "Weights after 1, 2 and 20 steps beside those of an independent "
            "implementation, in float64."
        ),
    ),
    Proof(
        name="lnb-inference",
        says="Nothing is added to inference",
        where="Munoz 2025, abstract",
        tests=("test_linen_uses.py::test_train_state_and_inference_are_untouched",),
        reading=(
            "The model is not changed: trained weights have the structure and the "
            "shapes that they had."
        ),
    ),
    Proof(
        name="lnb-one-device",
        says="Several devices train as one",
        where="Munoz 2025, local and distributed training",
        tests=("test_linen_sharding.py::test_four_devices_train_as_one",),
        reading="Twenty steps over meshes of four devices, in float64, to 1e-9.",
    ),
)

PAGE = Page(
    file="evidence_lnb.md",
    title="Evidence: Linear Neuron Boosting",
    preface="""
What [Munoz 2025](https://arxiv.org/abs/2502.01131) claims, and what users of optimizers
ask besides, on tasks that anyone can run: for `lnb`, the published step with the
library's default statistic; for `whiten(Adam)`, Adam in whitened coordinates; and for
`polar`, the recipe that the library recommends, whose verdicts sort the claims. Adam is
tuned by the same rule as all others. How rivals such as Muon and SOAP do is in
[the results](../benchmarks/RESULTS.md).
""",
    leading="polar",
    claims=CLAIMS,
    proofs=PROOFS,
)
