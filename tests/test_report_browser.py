"""The pages in a real browser: headless Chromium where there is one, else skipped."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from art_logits.comparison import render_comparison
from art_logits.records import Records
from art_logits.report import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome on the PATH")

EVIL = "<script>alert(1)</script>"
LONG = "a_class_whose_name_is_one_very_long_word_" * 4
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"),
)

#: Runs in a copy of the page, in a frame as wide as a phone or a desktop; what it finds becomes the title.
PROBE = """
const wide = [...document.body.querySelectorAll("*")].filter((each) =>
  !each.closest(".scroll, svg") && each.getBoundingClientRect().right > innerWidth + 1);
const table = [...document.querySelectorAll("#classes table, #run-1 table")].pop(), names = () =>
  [...table.tBodies[0].rows].map((row) => row.cells[0].firstChild.textContent.trim());
const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent);
const robust = heads.findIndex((head) => head === "all attacks" || head.startsWith("difference"));
const found = { width: innerWidth, scroll: document.documentElement.scrollWidth, names: [names()],
  wide: wide.map((each) => each.tagName + "." + each.className) };
for (const column of [robust, robust, robust, 0]) {
  table.tHead.rows[0].cells[column].querySelector("button").click();
  found.names.push(names());
}
const filter = document.querySelector("details input.filter");
if (filter) {
  filter.value = "7";
  filter.dispatchEvent(new Event("input"));
  const rows = [...filter.parentNode.querySelector("tbody").rows];
  found.filtered = rows.filter((row) => !row.hidden).map((row) => row.cells[0].textContent.trim());
}
dispatchEvent(new Event("beforeprint"));
found.closed = document.querySelectorAll("details:not([open])").length;
dispatchEvent(new Event("afterprint"));
found.opened = document.querySelectorAll("details[open]").length;
parent.document.title = JSON.stringify(found);
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """Opens a page ``(text, *options)`` from a file; returns what Chromium printed."""

    def run(text, *options):
        folder = tmp_path_factory.mktemp("chromium")
        (folder / "page <b>&.html").write_text(text, encoding="utf-8")
        profile = f"--user-data-dir={folder / 'profile'}"
        address = (folder / "page <b>&.html").as_uri()
        done = subprocess.run(
            [CHROMIUM, *OPTIONS, profile, *options, address],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def probe(chromium):
    """What the probe finds in a page of this width, in CSS pixels."""

    def run(page, width):
        open_page = re.sub(r"<meta http-equiv[^>]*>", "", page)
        copy = open_page.replace("</body>", f"<script>{PROBE}</script></body>")
        frame = (
            f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(copy)}"></iframe>'
        )
        dom = chromium(
            f"<!DOCTYPE html><title>nothing</title>{frame}", "--dump-dom", "--window-size=1400,1000"
        )
        title = re.search(r"<title>(.*?)</title>", dom, flags=re.DOTALL)
        return json.loads(html.unescape(title.group(1)))

    return run


@pytest.fixture(scope="module")
def records(random_table, make_manifest, thumbnails):
    names = ["cat", EVIL, LONG]
    manifest = make_manifest(class_names=names, model={"name": EVIL}, reference={"name": "other"})
    table = random_table(60, 3, reference=True)
    return Records(table, manifest, thumbnails(["above_reference", "confident_falls"], [3, 5, 7, 8]))


@pytest.fixture(scope="module")
def page(records):
    return render(records)


@pytest.fixture(scope="module")
def pages(page, records, random_table):
    many = Records(random_table(300, 120))
    return {
        "report": page,
        "comparison": render_comparison(
            {EVIL: records, LONG: Records(random_table(60, 3, seed=0), records.manifest)}
        ),
        "many classes": render(many),
    }


def test_the_page_runs_its_own_script_and_nothing_else(chromium, page):
    evil = page.replace("</body>", '<script>document.title = "ran"</script><img src="x"></body>', 1)
    with pytest.raises(AssertionError, match="Content Security Policy"):
        chromium(evil, "--dump-dom")
    dom = chromium(page, "--dump-dom")
    # Made by the script, which the policy knows by its hash.
    assert '<th scope="col"><button type="button">class</button></th>' in dom
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in dom
    assert dom.count("<script>") == 1


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["report", "comparison", "many classes"])
def test_nothing_is_wider_than_the_page(probe, pages, name, width):
    found = probe(pages[name], width)
    assert found["width"] == width
    assert found["scroll"] <= width
    assert found["wide"] == []


def test_tables_are_sorted(probe, pages, records):
    found = probe(pages["report"], 1280)
    classes = records.classwise()
    order = [classes.class_names[index] for index in np.argsort(classes.robust, kind="stable")]
    assert found["names"] == [
        list(classes.class_names),
        order,
        order[::-1],
        list(classes.class_names),
        sorted(classes.class_names),
    ]


def test_long_tables_are_sorted_filtered_and_unfolded_for_print(probe, pages, random_table):
    many = probe(pages["many classes"], 1280)
    robust = Records(random_table(300, 120)).classwise().robust
    present, absent = ([i for i in range(120) if np.isnan(robust[i]) == missing] for missing in (False, True))
    assert absent
    # Equal ones keep their order, and those without a value come last, in both directions.
    orders = [sorted(present, key=lambda i: sign * robust[i]) + absent for sign in (1, -1)]
    assert many["names"][1:3] == [[str(index) for index in order] for order in orders]
    assert many["filtered"] == [name for name in map(str, range(120)) if "7" in name]
    assert (many["closed"], many["opened"]) == (0, 0)


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_the_page_is_drawn(chromium, pages, name, tmp_path):
    picture = tmp_path / "page.png"
    chromium(pages[name], f"--screenshot={picture}", "--window-size=1280,1600")
    colours = np.array(Image.open(picture).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 50
    # Its bars or points have the colour of what happens under attack.
    assert (colours == [213, 94, 0]).all(axis=1).sum() > 20
