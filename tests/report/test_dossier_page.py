"""The dossier's page, model card and PDF: self-contained, escaped, complete, and visible."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image

from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.build import build_dossier
from lightning_privacy.report.dossier.canonical import content_hash, dossier_json
from lightning_privacy.report.dossier.figures import history_figure, roc_band_figure, score_figure
from lightning_privacy.report.dossier.html import render_html
from lightning_privacy.report.dossier.model_card import render_model_card
from lightning_privacy.report.dossier.models import About
from lightning_privacy.report.dossier.pdf import find_chromium, run_chromium, write_pdf
from lightning_privacy.report.dossier.policy import load_policy
from lightning_privacy.report.dossier.wording import interval_text, value_text
from lightning_privacy.testing.toy_run import toy_result, write_toy_run

HOSTILE = "<script>alert('x')</script>"


class Page(HTMLParser):
    """What a page loads, which elements it has, and its text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.assets, self.tags, self.text, self.comments = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        loading = ("src", "href", "xlink:href", "srcset", "data", "action", "background", "poster")
        self.assets += [v for k, v in attrs if k in loading]
        self.assets += [v for k, v in attrs if k == "style" and "url(" in (v or "")]
        self.assets += [f"{k}={v}" for k, v in attrs if k.startswith("on")]

    def handle_data(self, data):
        self.text.append(data)

    def handle_comment(self, data):
        self.comments.append(data)


@pytest.fixture(scope="module")
def dossier(tmp_path_factory):
    early = [toy_result("calibrated_loss", 0.1 * i, step=100 * i, strongest=True) for i in (1, 2)]
    last = [
        toy_result("calibrated_loss", 0.5, strongest=True, notes=(HOSTILE,), access="<b>weights</b>"),
        toy_result("h_prime", 0.4, converged=False),
        toy_result("broken", metrics={}, extra={"failed": HOSTILE}, roc=()),
    ]
    measured = [
        {"kind": "utility", "name": "val_loss", "value": 0.285 - 0.004 * i, "step": 100 * i} for i in range(4)
    ] + [{"kind": "quality", "name": "kid", "value": float("nan"), "step": 300}]
    settings = {"defences": {"$x & <i>y</i>": {"strength": 4.5}}}
    run = write_toy_run(tmp_path_factory.mktemp("r") / "a<b>&$run", [*early, *last], settings, measured)
    return build_dossier(
        run, load_policy("research-default"), about=About(owner=f"We {HOSTILE}", licence="mit")
    ).dossier


@pytest.fixture(scope="module")
def html(dossier):
    return render_html(dossier)


def test_the_page_loads_nothing_and_runs_nothing(html):
    page = Page(html)
    assert [a for a in page.assets if not a.startswith("#")] == []
    assert not {"script", "link", "iframe", "object", "embed", "img", "base", "form"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", html)
    assert page.tags.count("svg") == 3


def test_markup_in_names_and_notes_is_text(html):
    page = Page(html)
    text = "".join(page.text)
    assert text.count(HOSTILE) >= 3 and "a<b>&$run" in text and "<b>weights</b>" in text and "<i>y</i>" in text
    assert "i" not in page.tags and "b" not in page.tags and HOSTILE not in html
    assert all("-->" not in c and "<script" not in c for c in page.comments)


def test_the_verdict_stands_on_top_with_its_reasons(html, dossier):
    assert dossier.decision.verdict == "no_go"
    top = html[html.index("<body>") : html.index("<svg")]
    text = " ".join("".join(Page(top).text).split())
    for words in ["No go", dossier.decision.summary, *dossier.decision.reasons]:
        assert " ".join(words.replace("`", "").split()) in text


def numbers(value):
    if isinstance(value, dict):
        for each in value.values():
            yield from numbers(each)
    elif isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, float | int) and not isinstance(value, bool):
        yield value


def test_every_number_of_the_json_appears(html, dossier):
    text = "".join(Page(html).text)
    found = set(re.findall(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?", text))
    raw = json.loads(dossier_json(dossier))
    assert {json.dumps(n) for n in numbers(raw)} - found == set()
    shown = text[: text.index("dossier.json", text.index("Settings"))]
    for attack in dossier.attacks:
        for name, metric in attack.metrics.items():
            assert value_text(metric) in shown and interval_text(metric) in shown, (attack.name, name)
    assert all(f"{f.margin:.4g}" in shown for f in dossier.decision.findings if f.margin is not None)


def test_invalid_numbers_and_doubtful_attacks_are_marked_with_the_reason(html):
    text = " ".join("".join(Page(html).text).split())
    assert "1200 non-members cannot support a false-positive rate of 0.001" in text and "†" in text
    assert "the value is nan (quality/kid)" in text
    assert "did not converge" in text and f"`broken` failed: {HOSTILE}".replace("`", "") in text
    assert all(r.origin in text for r in load_policy("research-default").rules)
    assert "Chosen here; no standard exists" in text


def test_the_page_of_a_bare_run_says_what_is_missing(tmp_path):
    bare = build_dossier(write_toy_run(tmp_path / "bare", [], checkpoint=b""), load_policy("sacro-compat")).dossier
    text = "".join(Page(render_html(bare)).text)
    assert "Insufficient evidence" in text and "Nothing is known of what this model leaks" in text
    assert "<svg" not in render_html(bare)
    assert "Nothing was measured" in render_model_card(bare)


def test_the_roc_has_an_exact_band_and_begins_at_the_floor(dossier):
    from scipy.stats import beta, binom

    top = dossier.attacks[0]
    axes = roc_band_figure(dossier.attacks, top).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlim()[0] == pytest.approx(1 / 1200)
    band = axes.collections[0].get_paths()[0].vertices
    alarms = int(binom.isf(0.0125, 1200, 1 / 1200))  # a cut with this rate gives no more of them, but in one case of 80
    counts = sorted((round(x * 1200), round(y * 400)) for x, y in top.roc)
    hits = next(
        found for accused, found in counts if accused > alarms
    )  # the curve is thinned: the next point bounds it
    at_floor = band[np.isclose(band[:, 0], 1 / 1200), 1]
    assert at_floor.max() == pytest.approx(beta.ppf(1 - 0.0125, hits + 1, 400 - hits))
    assert at_floor.min() == pytest.approx(1 / 1200)  # such a cut may find nobody


def test_histograms_are_shares_and_show_the_threshold(dossier):
    top = dossier.attacks[0]
    axes = score_figure(top, 0.25).axes[0]
    heights = [np.sum(p.get_data().values) for p in axes.patches]
    assert heights == pytest.approx([1.0] * 4)
    assert axes.lines[0].get_xdata()[0] == 0.25
    assert score_figure(dossier.attacks[1]) is None and score_figure(None) is None
    assert roc_band_figure([], None) is None
    above, below = history_figure(dossier.history).axes
    assert above.lines[0].get_xdata().tolist() == [100, 200, 300] and below.lines[0].get_xdata().tolist() == [
        0,
        100,
        200,
        300,
    ]


def test_the_model_card_has_a_head_for_hubs_and_all_that_the_verdict_needs(dossier):
    card = render_model_card(dossier)
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "mit" and "privacy-audit" in yaml.safe_load(head)["tags"]
    assert "**Release verdict: No go**" in body and content_hash(dossier) in body
    assert "<script>" not in body and "&lt;script&gt;" in body
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + sum(len(a.metrics) for a in dossier.attacks)
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
    assert body.count("\n- ") >= len(dossier.limitations) + len(dossier.decision.reasons)
    for section in ("## Model", "## Attacks", "## Utility", "## Limitations"):
        assert f"\n\n{section}\n" in body


def test_without_a_chromium_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(InputError, match=r"needs a Chromium.*print dossier\.html from any browser"):
        write_pdf(tmp_path / "dossier.html", tmp_path / "dossier.pdf")


def test_a_browser_that_prints_nothing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: "/bin/true")
    with pytest.raises(InputError, match="printed nothing"):
        write_pdf(tmp_path / "dossier.html", tmp_path / "dossier.pdf")
    assert list(tmp_path.iterdir()) == []


needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the PATH to draw the page with")


@needs_chromium
def test_a_browser_draws_the_verdict_and_the_figures(html, tmp_path):
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    shot = tmp_path / "shot.png"
    options = ("--hide-scrollbars", "--window-size=1200,1600", f"--screenshot={shot}")
    run_chromium(*options, (tmp_path / "page.html").as_uri(), made=shot)
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[:2] == (1600, 1200)
    red = (abs(pixels - [0xA8, 0x3A, 0x00]).sum(-1) < 30).any(1)  # the bar beside "no go"
    assert red[:600].sum() > 100
    orange = abs(pixels - [0xD5, 0x5E, 0x00]).sum(-1) < 60  # the members' curve
    assert orange.sum() > 300
    assert (pixels.sum(-1) < 740).mean() > 0.03 and (pixels[:, -8:].sum(-1) == 765).all()  # nothing runs off the side


@needs_chromium
def test_the_page_prints_to_pdf(html, tmp_path):
    (tmp_path / "dossier.html").write_text(html, encoding="utf-8")
    assert write_pdf(tmp_path / "dossier.html", tmp_path / "dossier.pdf").read_bytes().startswith(b"%PDF")
