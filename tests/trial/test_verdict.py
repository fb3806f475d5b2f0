"""Verdicts on records whose right verdict is plain to see."""

import pytest

from linboost_optax._trial import tables
from linboost_optax._trial.outcome import Trial
from linboost_optax._trial.verdict import verdict
from tests.trial.records import FAST, LOW, SLOW, curve, entry, record, three, worth_it

OWN = entry("yours", 1e-3, three(SLOW))


def polar(curves):
    return entry("polar", 1e-2, curves, tapped=True)


def test_worth_it():
    found = verdict(worth_it())
    assert (found.winner, found.worth) == ("polar", True)
    assert found.headline == (
        "Worth it: polar at 0.01 takes 0.30x of the time to your loss, and 0.60x of "
        "the time to the loss of Adam at 0.01, the lowest without statistics."
    )
    assert found.reasons == (
        "polar comes to your test loss in 0.25x of the steps and 0.30x of the time.",
        "Its lowest test loss is lower: 1.3 against 2.",
        "2 of 3 learning rates work; of yours, 1 of 3.",
        "A step takes 1.20x of the time and holds 1.50x of the memory; it takes 1.0 s "
        "more to compile, once.",
        "Without statistics, Adam at 0.01 is first at your loss, in 0.75x of the steps "
        "and 0.75x of the time.",
        "Without statistics, Adam at 0.01 ends lowest, at 1.5; polar comes to that "
        "loss in 0.50x of its steps and 0.60x of its time, and ends lower, at 1.3.",
    )


def test_slower_by_the_clock():
    found = verdict(record({"own": OWN, "polar": polar(three(FAST, 8.0))}))
    assert (found.winner, found.worth) == ("own", False)
    assert found.headline == (
        "Not worth it here, because polar takes 2.00x of the time to the same loss: "
        "keep what you have. For the lowest loss take polar at 0.01: 1.3 against 2."
    )


def test_a_seed_that_is_slower_is_chance():
    runs = [curve(FAST, 1.0), curve(FAST, 1.0), curve(FAST, 4.1)]
    found = verdict(record({"own": OWN, "polar": polar(runs)}))
    assert not found.worth
    assert "0.25x (0.25 to 1.02) of the time" in found.headline
    assert "cannot be told from chance" in found.headline


def test_hardly_less():
    found = verdict(record({"own": OWN, "polar": polar(three(SLOW, 0.97))}))
    assert not found.worth
    assert "0.97x of the time to the same loss, which is hardly less" in found.headline


def test_it_does_not_come_to_the_loss():
    found = verdict(record({"own": OWN, "polar": polar(three([8.0, 7, 7, 7, 7]))}))
    assert found.headline == (
        "Not worth it here, because polar does not come to that loss on every seed: "
        "keep what you have."
    )
    assert found.reasons[0] == "polar does not come to your test loss."


def test_another_rate_of_what_one_has_does_as_well():
    tuned = entry("yours, other rate", 1e-2, three(LOW, 0.5))
    entries = {"own": OWN, "own_tuned": tuned, "polar": polar(three(FAST, 2.0))}
    found = verdict(record(entries))
    assert (found.winner, found.worth) == ("own_tuned", False)
    assert found.headline == (
        "Not worth it here, because yours, other rate at 0.01 does as well without it: "
        "0.38x of the time to your loss."
    )
    assert "polar comes to that loss on 0 of 3 seeds." in found.reasons[-1]


def test_of_two_that_are_faster_the_one_that_ends_lower_is_recommended():
    tuned = entry("yours, other rate", 1e-2, three([8.0, 2, 1.9, 1.8, 1.7], 0.5))
    muon = entry("Muon", 0.02, three([8.0, 3, 2, 1, 0.1], 0.9))
    mine = polar(three([8.0, 3, 2, 1, 0.5], 0.9))
    entries = {"own": OWN, "own_tuned": tuned, "muon": muon, "polar": mine}
    found = verdict(record(entries))
    assert found.headline == (
        "Not worth it here, because Muon at 0.02 does as well without it: 0.45x of the "
        "time to your loss."
    )


def test_whoever_ends_lower_than_who_is_recommended_is_named():
    tuned = entry("yours, other rate", 1e-2, three([8.0, 2, 1.9, 1.8, 1.7], 0.5))
    muon = entry("Muon", 0.02, three([8.0, 5, 3, 2, 0.1], 1.3))
    mine = polar(three([8.0, 3, 2, 1, 0.5], 0.9))
    entries = {"own": OWN, "own_tuned": tuned, "muon": muon, "polar": mine}
    found = verdict(record(entries))
    assert found.winner == "own_tuned"
    assert found.headline.endswith(
        "For the lowest loss take Muon at 0.02: 0.1 against 1.7."
    )


def test_a_rate_that_is_faster_and_a_loss_that_is_lower():
    # To the user's loss another rate is faster; to what that ends at, ours is.
    tuned = entry("yours, other rate", 0.3, three([8.0, 1.9, 1.8, 1.7, 1.6], 0.5))
    entries = {"own": OWN, "own_tuned": tuned, "polar": polar(three(FAST, 0.9))}
    found = verdict(record(entries))
    assert (found.winner, found.worth) == ("polar", True)
    assert found.headline == (
        "Worth it for a lower loss: polar at 0.01 takes 0.90x of the time to the loss "
        "of yours, other rate at 0.3, the lowest without statistics. To your loss, "
        "yours, other rate at 0.3 is faster: 0.12x of the time against 0.23x."
    )


def test_faster_to_the_users_loss_alone_is_worth_it_too():
    muon = entry("Muon", 0.02, three([8.0, 4, 3, 2, 0.1]))
    found = verdict(record({"own": OWN, "muon": muon, "polar": polar(three(FAST))}))
    assert found.headline == (
        "Worth it: polar at 0.01 takes 0.25x of the time to your loss. For the lowest "
        "loss take Muon at 0.02: 0.1 against 1.3."
    )
    assert "Muon at 0.02 ends lowest, at 0.1; polar comes to that loss on 0 of" in str(
        found
    )


def test_a_rival_is_worth_it_where_ours_is_not():
    adam = entry("Adam", 1e-2, three(FAST))
    entries = {"own": OWN, "adam": adam, "polar": polar(three(FAST, 8.0))}
    found = verdict(record(entries))
    assert (found.winner, found.worth) == ("adam", False)
    assert found.headline == (
        "Not worth it here, because polar takes 2.00x of the time to the same loss. "
        "Adam at 0.01, which takes 0.25x of the time to your loss, is."
    )


def test_of_two_of_ours_the_faster_one_is_meant():
    lnb = entry("LNB", 0.3, three(FAST, 0.5), tapped=True)
    found = verdict(record({"own": OWN, "lnb": lnb, "polar": polar(three(FAST))}))
    assert found.winner == "lnb"


def test_without_an_optimizer_of_the_users_tuned_adam_is_the_measure():
    adam = entry("Adam", 1e-2, three(SLOW))
    found = verdict(record({"adam": adam, "polar": polar(three(FAST))}))
    assert found.headline.endswith("0.25x of the time to tuned Adam's loss.")
    found = verdict(record({"adam": adam, "polar": polar(three(FAST, 9.0))}))
    assert found.headline.endswith(
        "take Adam at 0.01. For the lowest loss take polar at 0.01: 1.3 against 2."
    )


def test_none_of_ours_could_run():
    left = {"polar": "ValueError: no layer can be tapped"}
    found = verdict(record({"own": OWN}, left_out=left))
    assert found.headline == (
        "Not worth it here, because none of ours could run: keep what you have."
    )
    assert found.reasons == ("polar was left out: ValueError: no layer can be tapped",)


def test_what_lessens_trust_is_said():
    found = record(
        {"own": entry("yours", 1, [curve(SLOW)]), "polar": polar([curve(FAST)])}
    )
    found["interrupted"] = True
    found["entries"]["polar"]["edge"] = True
    text = str(verdict(found))
    assert "It was stopped early" in text
    assert "It ran on 1 seed: differences may be chance." in text
    assert "The best rate lies at the edge of those that were tried: polar." in text


def test_no_race_no_verdict():
    found = Trial(record({"own": entry("yours", 1, [], {1: 2.0})}))
    assert found.verdict.winner is None
    assert found.verdict.headline == "No verdict: there was no time for a race."
    assert found.change == "nothing"
    assert "No verdict" in str(found)
    assert "No verdict" in found.html()
    assert "of 10 minutes; no race; cpu" in str(found)


@pytest.mark.parametrize(
    ("winner", "expected"),
    [
        ("polar", "+taps = linen.taps(model, x)\n+tx = polar(0.01)"),
        ("adam", "+tx = adam(0.01)"),
        ("own", "nothing"),
    ],
)
def test_the_change_is_the_winners(winner, expected):
    found = worth_it()
    judged = verdict(found)._replace(winner=winner)
    assert tables.change(found, judged) == expected
