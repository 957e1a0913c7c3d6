"""The report in a headless browser: no errors, no requests, phone and desktop widths, and a viewer that draws."""

import io

import numpy as np
import pytest
from browser import Browser, find_chromium
from PIL import Image

from segscse.evaluation.folders import evaluate_folders

from .conftest import blocks

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the address of a report of 12 cases."""
    import nibabel as nib

    folder = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    for name in ("pred", "ref", "img"):
        (folder / name).mkdir()
    for number in range(12):
        for name, array in (
            ("pred", blocks(number % 5)),
            ("ref", blocks()),
            ("img", 50 * blocks() + rng.normal(0, 5, (12, 12, 8)).astype(np.float32)),
        ):
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 2.0, 2.5, 1.0])), folder / name / f"case_{number:02d}.nii.gz")
    names = {1: "left & <b>long</b> name of a structure that goes on and on", 2: "right"}
    evaluate_folders(folder / "pred", folder / "ref", folder / "out", folder / "img", names=names)
    return (folder / "out" / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(find_chromium(), tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(params=[390, 1280])
def opened(browser, page, request):
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page, request.param)
    yield browser
    assert browser.errors == []
    assert set(browser.requests) == {page}


def test_nothing_is_wider_than_the_window(opened):
    assert opened.run("document.documentElement.scrollWidth <= innerWidth")
    assert opened.run("document.querySelector('h1').textContent") == "Segmentation report"
    clipped = """[...document.querySelectorAll('.plot circle, .planes img, .fact')].filter((element) => {
        const box = element.getBoundingClientRect();
        return box.width > 0 && (box.left < 0 || box.right > innerWidth);
    }).length"""
    assert opened.run(clipped) == 0
    assert opened.run("parseFloat(getComputedStyle(document.querySelector('.plot text')).fontSize)") >= 11


def _choose(browser, selector, value):
    """Set a control of the page as a person would."""
    browser.run(
        f"""(() => {{
            const control = document.querySelector({selector!r});
            control.value = {value!r};
            for (const kind of ["input", "change"]) control.dispatchEvent(new Event(kind));
        }})()"""
    )


def test_a_point_leads_to_its_row_even_when_the_filter_hides_it(opened):
    _choose(opened, "#filter", "0.")  # in numbers of every row, and in no name
    assert opened.run("document.getElementById('count').textContent") == "0 of 12 cases"
    _choose(opened, "#filter", "case_03")
    assert opened.run("document.getElementById('count').textContent") == "1 of 12 cases"
    opened.run("document.querySelector('.plot a[data-case=\"5\"]').dispatchEvent(new MouseEvent('click'))")
    opened.wait_for("document.getElementById('case-5').classList.contains('target')")
    assert opened.run("document.getElementById('count').textContent") == "12 cases"
    assert opened.run("document.querySelectorAll('a.chosen').length") >= 2


def test_the_table_sorts_both_ways_and_shows_details(opened):
    column = "[...document.querySelectorAll('#cases > tbody > tr')].map((row) => Number(row.cells[1].textContent))"
    opened.run("document.querySelectorAll('#cases th button')[1].click()")
    values = opened.run(column)
    assert values == sorted(values)
    opened.run("document.querySelectorAll('#cases th button')[1].click()")
    assert opened.run(column) == sorted(values, reverse=True)
    opened.run("document.querySelector('#cases .open').click()")
    details = opened.run("document.querySelector('#cases tr.details').textContent")
    assert "volume_ref_ml" in details
    assert "<b>long</b>" in details


def test_one_chart_of_each_kind_is_shown_and_can_be_changed(opened):
    shown = "[...document.querySelectorAll('#distributions .panel:not([hidden])')].map((panel) => panel.dataset.panel)"
    assert opened.run(shown) == ["dice"]
    _choose(opened, "[data-panels=distributions]", "hd95_mm")
    assert opened.run(shown) == ["hd95_mm"]


def test_the_viewer_shows_the_case_of_the_last_click(opened):
    box, buttons = "document.getElementById('viewer')", "document.querySelectorAll('#viewer [data-open]')"
    opened.run(f"{buttons}[0].click()")
    opened.wait_for(f"{box}.dataset.ready !== undefined")
    opened.run(
        """(() => {
            window.shown = 4;
            for (const [name, more] of [["addVolume", 1], ["removeVolume", -1]]) {
                const whole = niivue.Niivue.prototype[name];
                niivue.Niivue.prototype[name] = function (...given) {
                    window.shown += more;
                    return whole.apply(this, given);
                };
            }
        })()"""
    )
    opened.run(f"(() => {{ {buttons}[0].click(); {buttons}[0].click(); {buttons}[1].click(); }})()")
    opened.wait_for(f"{box}.dataset.ready === {buttons}[1].dataset.open")
    opened.run("new Promise((done) => setTimeout(done, 1000))")  # for what the others would add
    assert opened.run("window.shown") == 4
    assert opened.run(f"{box}.dataset.ready === {buttons}[1].dataset.open")


def test_the_viewer_draws_the_case_and_its_overlays(opened):
    opened.run("document.querySelector('#viewer [data-open]').click()")
    opened.wait_for("document.getElementById('viewer').dataset.ready !== undefined")
    opened.run("document.getElementById('viewer').scrollIntoView({behavior: 'instant'})")
    box = "document.getElementById('viewer-canvas').getBoundingClientRect()"
    left, top, right, bottom = (round(opened.run(f"{box}.{side}")) for side in ("left", "top", "right", "bottom"))

    def colours(view, expected):
        """Return how many pixels of the viewer are coloured, once as expected or after 10 s, and how many bright."""
        _choose(opened, "#viewer-view", view)
        for _ in range(25):
            opened.run("new Promise((done) => setTimeout(done, 400))")
            pixels = np.asarray(Image.open(io.BytesIO(opened.screenshot())).convert("RGB")).astype(int)
            cut = pixels[max(top, 0) : bottom, left:right]
            coloured, bright = int((np.ptp(cut, axis=2) > 60).sum()), int((cut.min(axis=2) > 100).sum())
            if expected(coloured):
                break
        return coloured, bright

    coloured, bright = colours("prediction", lambda count: count > 500)
    assert coloured > 500
    assert bright > 1000
    plain, _ = colours("image only", lambda count: count < coloured - 500)
    assert plain < coloured - 500
    disagreeing, _ = colours("disagreement", lambda count: count > plain + 500)
    assert disagreeing > plain + 500
