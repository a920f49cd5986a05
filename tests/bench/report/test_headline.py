"""The large figures stand beside what they have to be compared with."""

from bench.report import headline
from tests.helpers import bench_results
from tests.helpers.bench_results import arms


def content(**figures):
    """Three arms: what is praised, a baseline, and one that beats both."""
    changed = bench_results.content()
    changed["arms"]["static-sorted"] = dict(changed["arms"]["static-padded"])
    for name, steps, rate in (
        ("continuous", 326, 50.0),
        ("static-padded", 712, 40.0),
        ("static-sorted", 320, 60.0),
    ):
        changed["arms"][name] |= {"num_steps": steps, "output_throughput": rate, "repeats": [rate, rate]}
    changed["gains"] = {"num_steps static-padded / continuous": 2.184, "continuous / static-padded": 1.25}
    changed["gains"] |= {"continuous / static-sorted": 0.83}
    for name, changes in figures.items():
        changed["arms"][name.replace("_", "-")] |= changes
    return changed


def numbers(changed):
    return headline.numbers(changed, headline_arms(changed))


def headline_arms(changed):
    return arms(**changed)


def test_a_figure_names_its_baseline_and_whoever_is_ahead():
    steps, rate, ttft = numbers(content())
    assert (steps.label, steps.value) == ("steps, continuous", "326")
    assert list(steps.beside) == ["static-padded: 712, gain 2.18 x", "static-sorted: 320"]
    assert list(rate.beside) == ["static-padded: 40, gain 1.25 x", "static-sorted: 60, gain 0.83 x"]
    assert ttft.label == "ms TTFT p50, continuous"


def test_times_that_differ_too_much_are_not_trusted_and_counts_are():
    wild = numbers(content(continuous={"repeats": [50.0, 100.0]}))
    doubted = [any("not to be trusted" in line for line in shown.beside) for shown in wild]
    assert doubted == [False, True, True]
    assert "gain" in wild[0].beside[0] and not any("gain" in line for line in wild[1].beside)


def test_no_gain_is_named_where_it_is_refused():
    refused = content() | {"gains": {"refused": "too few requests"}}
    assert not any("gain" in line for shown in numbers(refused) for line in shown.beside)
    assert numbers(refused)[0].value == "326"


def test_where_nothing_is_praised_nothing_is_large():
    changed = content()
    del changed["arms"]["continuous"]
    assert numbers(changed) == []
