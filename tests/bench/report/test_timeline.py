"""The slot timeline of steps that were driven by hand, and how a notebook shows it."""

import re
from xml.etree import ElementTree

from bench.ladder.arms import ARMS
from bench.measure.drive import forced_params
from bench.report.timeline import timeline
from tests.helpers.fake_subject import FakeSubject


def steps_of(arm, lengths=(4, 12, 4, 4, 12, 4)):
    engine = FakeSubject(max_num_seqs=2).new_engine(ARMS[arm], 2)
    for idx, length in enumerate(lengths):
        engine.add_request(str(idx), [1, 2, 3], forced_params(length))
    steps = []
    while engine.has_unfinished:
        steps.append(engine.step())
    return steps, engine.summary


def test_engines_share_one_axis():
    (static, static_total), (continuous, continuous_total) = steps_of("static"), steps_of("continuous")
    picture = timeline({"static": static, "continuous": continuous})
    assert continuous_total.num_steps < static_total.num_steps
    for name, summary in (("static", static_total), ("continuous", continuous_total)):
        steps, use = summary.num_steps, f"{summary.slot_use:.0%}"
        assert f"{name}: done after {steps} steps, {use} of computed slots useful" in picture.alt
        (panel,) = (panel.elements for panel in picture.panels if f">{name}<" in panel.elements)
        assert f"done at {steps} of {static_total.num_steps} steps" in panel
        assert set(re.findall(r'fill="(#[0-9a-f]{6})"', panel)) >= {"#0072b2", "#f3c46b", "#00916b"}
    assert repr(picture) == f"<Picture: {picture.alt}>"


def test_a_notebook_gets_one_svg_in_its_own_colours():
    steps, _ = steps_of("continuous")
    shown = timeline({"<b>mine</b>": steps})._repr_html_()
    svg, caption = re.fullmatch(r"(<svg.*</svg>)(<div>.*</div>)", shown, re.DOTALL).groups()
    assert ElementTree.fromstring(svg).tag.endswith("svg") and "A row is a slot" in caption
    assert "<style" not in shown and "&lt;b&gt;mine" in shown and "<b>mine" not in shown
    assert 'fill="currentColor"' in shown and len(shown) < 10_000
