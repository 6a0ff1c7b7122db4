"""Claims about the page on a data set: what it shows, and that it needs nothing else."""

import base64
import io
import re

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from PIL import Image

from edm_jax.report import data_page

IMAGES = np.random.default_rng(0).normal(0, 0.5, (5, 6, 6, 3)).astype(np.float32)


def page(images=IMAGES, **changes):
    split = data_page.Split(
        "train", 1234, 500, np.array([3, 0, 7]), [1.0] * 3, [2.0] * 3, 0, 255
    )
    fields = {
        "title": "Data of <mine>",
        "facts": {"data.name": "/a & b"},
        "warnings": ["raw_mean <is> off"],
        "splits": [split],
        "classes": [data_page.Class("<cat>", images), data_page.Class("dog", images)],
        "class_names": ["<cat>", "dog", "猫"],
        "skipped": ["<b>.png is broken"],
        "sigma_data": 0.5,
    }
    return data_page.DataPage(**fields | changes)


def strips(html):
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(x)))) for x in found]


def test_a_class_is_a_row_of_its_images():
    one, other = strips(data_page.render(page()))
    np.testing.assert_array_equal(one, other)
    # 5 images of 6 pixels, each with a column beside it; sigma_data = 0.5, so that
    # -1 is black and 1 is white.
    assert one.shape == (6, 35, 3)
    levels = np.clip((IMAGES + 1) / 2, 0, 1) * 255
    for i, image in enumerate(levels):
        np.testing.assert_allclose(one[:, 7 * i : 7 * i + 6], image, atol=0.51)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_are_shown_as_far_as_they_are_colours(channels):
    images = np.zeros((2, 4, 4, channels))
    classes = [data_page.Class("0", images)]
    html = data_page.render(page(classes=classes))
    assert strips(html)[0].shape == (4, 10, 3)
    assert (f"Of the {channels} channels, the first" in html) == (channels != 1)


def test_what_a_name_holds_is_no_markup():
    html = data_page.render(page())
    for text in ("<mine>", "<cat>", "<is>", "<b>"):
        assert text not in html
    assert "&lt;b&gt;.png is broken" in html
    assert "1 classes have none" in html and "0 to 7 of the examples" in html


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_it_without_a_complaint(tmp_path):
    (tmp_path / "data.html").write_text(data_page.render(page()), encoding="utf-8")
    with Browser(tmp_path / "profile", 900) as browser:
        browser.open(tmp_path / "data.html")
        loaded = "[...document.images].filter(i => i.naturalWidth == 35).length"
        assert browser.evaluate(loaded) == 2
        wide = "document.documentElement.scrollWidth <= innerWidth"
        assert browser.evaluate(wide)
        assert not browser.complaints()
        assert all(url.startswith("file:") for url in browser.requests())
