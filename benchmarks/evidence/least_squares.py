"""The claims of Iterative Linear Least Squares (Khadilkar 2023), and its users' own."""

from __future__ import annotations

from functools import partial

from benchmarks.evidence import fitted, grown
from benchmarks.evidence.claim import Claim, Proof
from benchmarks.evidence.page import Page
from benchmarks.jobs import JOBS

ABSTRACT = "Khadilkar 2023, abstract"
ASKED = "Asked by users of small regression networks"
SECOND_ORDER = ("marquardt", "projection")
ALL = ("ills", "published", "lbfgs", *SECOND_ORDER)

UCI = (
    "diabetes",
    "yacht",
    "bostonHousing",
    "energy",
    "concrete",
    "wine-quality-red",
    "kin8nm",
    "power-plant",
    "naval-propulsion-plant",
)

# Seven problems, each clean and with noisy targets.
problems = partial(Claim, job="ills", tasks=JOBS["ills"].tasks)

CLAIMS = (
    problems(
        name="ills-iterations",
        says="Fewer iterations than gradient descent",
        where=ABSTRACT,
        quantity="iterations to Adam's final training error / Adam's",
        cases=fitted.cases(fitted.iterations, ALL),
        strict=True,
        reading=(
            "Full-batch Adam, the best of four rates, has 2,000 iterations. The "
            'published method is `method="published"`; ILLS is the library\'s default.'
        ),
    ),
    problems(
        name="ills-clock",
        says="Less time than gradient descent",
        where=ABSTRACT,
        quantity="time to Adam's final training error / Adam's",
        cases=fitted.cases(fitted.seconds, ALL),
        strict=True,
        reading="The same runs, by the time of an iteration.",
    ),
    problems(
        name="ills-train",
        says="A final training error no higher than Adam's",
        where=ASKED,
        quantity="training error at the end / Adam's",
        cases=fitted.cases(fitted.error("train"), ALL),
    ),
    problems(
        name="ills-stable",
        says="More stable: the worst seed ends no higher than Adam's worst",
        where=ABSTRACT,
        quantity="training error of the worst seed / of Adam's worst seed",
        cases=fitted.cases(fitted.worst_seed, ALL),
        reading="Adam has the best rate of four for each seed; ILLS has no rate.",
    ),
    problems(
        name="ills-spread",
        says="Seeds are as close to each other as Adam's",
        where=ASKED,
        quantity="worst training error / median over the seeds, over the same of Adam",
        cases=fitted.cases(fitted.spread, ALL),
        reading="Relative to an error that is lower itself.",
    ),
    problems(
        name="ills-test",
        says="With early stopping, a test error no higher than Adam's and L-BFGS's",
        where=ASKED,
        quantity="test error / the lower one of Adam and L-BFGS",
        cases=fitted.cases(
            fitted.test_error(("adam", "lbfgs")), ("ills", *SECOND_ORDER)
        ),
        reading=(
            "`fit_ills`, Adam and L-BFGS stop by validation data that are given, and "
            "clean."
        ),
    ),
    Claim(
        name="ills-regressor",
        says=(
            "`IllsRegressor`, early stopping: a test error no higher than Adam's and "
            "L-BFGS's"
        ),
        where=ASKED,
        job="ills_regressor",
        tasks=JOBS["ills_regressor"].tasks,
        quantity="test error / the lower one of Adam and L-BFGS",
        cases=fitted.cases(fitted.test_error(("adam", "lbfgs")), ("ills", "mlp")),
        reading=(
            "As users call it, by its defaults: what it holds out is as noisy as the "
            "rest. On seeds, and in the last eight cases on problems, that no default "
            "was chosen on."
        ),
    ),
    Claim(
        name="ills-growth",
        says="Larger networks and more data: still less time than gradient descent",
        where="Khadilkar 2023, abstract: intended to be extensible",
        job="ills_growth",
        tasks=("width", "depth", "samples"),
        quantity="time to Adam's final training error / Adam's",
        cases=grown.sizes(fitted.seconds),
        strict=True,
        reading=(
            "Widths from 5 to 200 units, up to four hidden layers, up to a million "
            "rows."
        ),
    ),
    Claim(
        name="ills-activations",
        says="Any activation, rectifiers included: a lower training error than Adam's",
        where="Khadilkar 2023 has invertible activations; others are asked for",
        job="ills_growth",
        tasks=("activations",),
        quantity="training error at the end / Adam's",
        cases=grown.sizes(fitted.error("train")),
    ),
    Claim(
        name="ills-noise",
        says="Noisy targets: a test error no higher than Adam's",
        where=ASKED,
        job="ills_robust",
        tasks=("noise",),
        quantity="test error with early stopping / Adam's",
        cases=grown.corrupted({"ILLS": "Adam", "L-BFGS": "Adam"}),
    ),
    Claim(
        name="ills-outliers",
        says="Gross outliers: a test error no higher than Adam's with Huber's loss",
        where=ASKED,
        job="ills_robust",
        tasks=("outliers",),
        quantity="test error with early stopping / Adam's with Huber's loss",
        cases=grown.corrupted(
            {
                "ILLS, Huber": "Adam, Huber",
                "ILLS, Tukey": "Adam, Huber",
            }
        ),
        reading=(
            "Both turn to a loss for outliers; that of ILLS turns at the scale of the "
            "residuals. The default, squared, is not meant for outliers: it is in the "
            "results, and far off."
        ),
    ),
    Claim(
        name="ills-missing",
        says="Missing targets: a test error no higher than Adam's with the same mask",
        where=ASKED,
        job="ills_robust",
        tasks=("missing",),
        quantity="test error with early stopping / Adam's, masked in the same way",
        cases=grown.corrupted(
            {"ILLS, mask": "Adam, mask", "ILLS, complete rows": "Adam, complete rows"}
        ),
    ),
    Claim(
        name="ills-planted",
        says="The diagnostics find a planted fault",
        where="Asked by users: every step is open to inspection",
        job="ills_planted",
        tasks=JOBS["ills_planted"].tasks,
        quantity="share of ten seeds in which the fault is not found",
        cases=grown.missed,
        limit=0.0,
        log=False,
        form="{:.0%}",
        reading="By one fixed rule a fault, whose limit was chosen on other seeds.",
    ),
    Claim(
        name="ills-alarms",
        says="The same rules find nothing where nothing was planted",
        where="Asked by users: every step is open to inspection",
        job="ills_planted",
        tasks=JOBS["ills_planted"].tasks,
        quantity="share of ten seeds with a false alarm",
        cases=grown.false_alarms,
        limit=0.0,
        log=False,
        form="{:.0%}",
    ),
    Claim(
        name="ills-uci",
        says="UCI sets: a test error no higher than Adam's",
        where="The protocol of Hernandez-Lobato and Adams 2015",
        job="ills_uci",
        tasks=UCI,
        quantity="test error / Adam's on the same split",
        cases=grown.over_adam,
        reading=(
            "Twenty random splits, one hidden layer of 50 units, early stopping on a "
            "part of the training data."
        ),
    ),
    Claim(
        name="ills-uci-published",
        says="UCI sets: a test error no higher than the lowest published one",
        where="PBP, MC dropout and deep ensembles, with sources in the results",
        job="ills_uci",
        tasks=UCI,
        quantity="mean test error / the lowest of three published ones",
        cases=grown.over_published,
        reading=(
            "Deep ensembles are five networks. Sets whose published errors have no "
            "digit to compare with are left out, and so is one without figures."
        ),
    ),
    Claim(
        name="ills-recovery",
        says="A student recovers its teacher",
        where=ASKED,
        job="ills_recovery",
        tasks=("noise_free",),
        quantity="training error / spread of the targets",
        cases=grown.recovered,
        limit=0.01,
        form="{:.2g}",
        reading=(
            "A teacher of ten tanh units without noise, students of as many or more. "
            "The quartiles tell how often."
        ),
    ),
)

PROOFS = (
    Proof(
        name="ills-descent",
        says="The objective never rises",
        where="Khadilkar 2023, stability",
        tests=(
            "ills/test_convergence.py::test_objective_never_rises",
            "ills/test_convergence.py::test_objective_never_rises_with_other_options",
        ),
        reading="Random data of random scale, degenerate ones included.",
    ),
    Proof(
        name="ills-published",
        says="The published algorithm is what runs under its name",
        where="Khadilkar 2023, algorithm",
        tests=("ills/test_steps.py::test_published_iteration",),
        reading="Against an independent implementation in NumPy.",
    ),
    Proof(
        name="ills-absent",
        says="A missing target is as if its row were not there",
        where=ASKED,
        tests=(
            "ills/test_data.py::test_mask_equals_dropping",
            "ills/test_data.py::test_missing_targets_do_not_matter",
            "ills/test_data.py::test_zero_weight_is_absence",
        ),
        reading="Against the same fit without the row.",
    ),
)

PAGE = Page(
    file="evidence_ills.md",
    title="Evidence: Iterative Linear Least Squares",
    preface="""
What [Khadilkar 2023](https://arxiv.org/abs/2307.05189) claims, and what users of small
regression networks ask besides: of [`ills`](ills.md) by its defaults, whose verdicts
sort the claims, of the method as published, and of others without a learning rate.
""",
    leading="ILLS",
    claims=CLAIMS,
    proofs=PROOFS,
)
