"""A picture is well-formed, follows a dark page, and says in words what it shows."""

import xml.etree.ElementTree as ElementTree

from bench.report.svg import WIDTH, Key, Panel, Picture, element, standalone, text

PICTURE = Picture(
    "x.svg",
    [Panel(20, text("a < b & c", "0", 10)), Panel(30, element("rect", width="100%"), left=40, right=10)],
    "A caption.",
    'Arms & "figures": 3 < 4.',
    [Key("a label that is rather long", "#0072b2")] * 8,
)


def test_a_file_is_well_formed_and_holds_all_panels():
    root = ElementTree.fromstring(standalone(PICTURE))
    panels = [child for child in root if child.tag.endswith("svg")]
    assert [panel.get("y") for panel in panels] == ["0", "20", "50"]  # the legend is the last
    assert (panels[1].get("x"), panels[1].get("width")) == ("40", str(WIDTH - 50))
    assert "".join(panels[0].itertext()) == "a < b & c"
    right = [
        float(label.get("x")) + 6.6 * len(label.text) for label in panels[2] if label.tag.endswith("text")
    ]
    assert len(right) == 8 and max(right) <= WIDTH, "the legend wraps"


def test_a_file_follows_a_dark_page_and_has_no_ground_of_its_own():
    written = standalone(PICTURE)
    assert "prefers-color-scheme: dark" in written and 'fill="currentColor"' in written
    assert "background" not in written and "<image" not in written


def test_on_a_page_a_picture_is_named_by_its_figures():
    shown = PICTURE.html()
    assert 'role="img" aria-label="Arms &amp; &quot;figures&quot;: 3 &lt; 4."' in shown
    assert "xmlns" not in shown and shown.count("<li>") == 8 and "<figcaption>A caption." in shown
