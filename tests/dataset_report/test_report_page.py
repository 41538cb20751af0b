"""The page of a dataset shows what training will see, says what is wrong, and needs nothing but itself."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from library.cli.errors import UserError
from library.data.batches.loader import BatchDataset
from library.data.images.inpaint_masks import MaskShares
from library.data.records import StepCounter
from library.dataset_report.caption_length import TokenLimit
from library.dataset_report.page import Report, write_page
from library.dataset_report.sampled_items import DrawSettings
from tests.browser import browse, needs_browser
from tests.dataset_report.page_reader import cards, pixels, read_page

HOSTILE_NAME = "<img src=x onerror=alert(1)>&quot;.png"
HOSTILE_CAPTION = "</span></style><script>document.title='owned'</script> \"' onload=x http://evil.example/x.png &lt;"
WORDS = TokenLimit(lambda text: len(text.split()), limit=6)


def noise(number: int, size: tuple[int, int]) -> np.ndarray:
    """Coarse noise: blocks of 16 x 16 pixels, which JPEG keeps."""
    width, height = size
    blocks = np.random.RandomState(number).randint(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]


def save(folder: Path, name: str, array: np.ndarray, caption: str | None = "a cat", **options) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(folder / name, **options)
    if caption is not None:
        (folder / name).with_suffix(".caption").write_text(caption, encoding="utf-8")


@pytest.fixture
def nasty(tmp_path, load_toml):
    """A dataset with one of everything; gives the report of it."""
    folder, masks = tmp_path / "images", tmp_path / "masks"
    save(folder, "half.png", noise(1, (256, 128)), "one, two, three")
    save(folder, "wide.png", noise(2, (384, 128)), "one, two")
    save(folder, "turned.png", noise(3, (128, 256)), exif=_turned())
    save(folder, "tiny.png", noise(4, (32, 16)))
    save(folder, "long.png", noise(5, (128, 64)), "one two three four five six seven eight")
    save(folder, "empty.png", noise(6, (128, 64)), "")
    save(folder, "alone.png", noise(7, (128, 64)), None)
    save(folder, HOSTILE_NAME, noise(8, (128, 64)), HOSTILE_CAPTION)
    save(folder, "日本 é.png", noise(9, (128, 64)), "初音ミク")
    save(folder, "broken.png", noise(10, (128, 64)))
    content = (folder / "broken.png").read_bytes()
    middle = len(content) // 3  # its header and its end are sound: it is found when it is decoded
    (folder / "broken.png").write_bytes(content[:middle] + bytes(middle) + content[2 * middle :])
    shutil.copy(folder / "half.png", folder / "copy.png")
    (folder / "copy.caption").write_text("one", encoding="utf-8")
    Image.fromarray(noise(5, (128, 64))).resize((192, 96), Image.Resampling.BICUBIC).save(folder / "resaved.jpg")
    (folder / "resaved.caption").write_text("one", encoding="utf-8")
    opacity = np.zeros((64, 128, 1), np.uint8)
    opacity[:, :64] = 255
    save(masks, "mask.png", np.concatenate([noise(11, (128, 64)), opacity], axis=2))
    for number in range(30):
        save(tmp_path / "class", f"{number}.png", noise(20 + number, (128, 64)), None)
    text = """
        [[datasets]]
        resolution = [128, 64]
        batch_size = 4
        [[datasets.subsets]]
        image_dir = "{dir}/images"
        class_tokens = "cat"
        flip_aug = true
        [[datasets.subsets]]
        image_dir = "{dir}/masks"
        alpha_mask = true
        num_repeats = 3
        [[datasets.subsets]]
        image_dir = "{dir}/class"
        class_tokens = "animal"
        is_reg = true
        """
    return make_report(load_toml(text))


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was turned: show it 90 degrees clockwise
    return exif


def make_report(data, seed: int = 3, tokens: TokenLimit = WORDS) -> Report:
    return Report(
        data, DrawSettings(seed, True, StepCounter(1, data.num_micro_batches, 4 * data.num_micro_batches)), tokens
    )


@pytest.fixture
def page(nasty, tmp_path):
    write_page(nasty, tmp_path / "out" / "index.html", advance=lambda count: None)
    return tmp_path / "out" / "index.html"


def test_each_image_is_shown_as_it_is_trained(page):
    shown = cards(read_page(page))
    assert len(shown) == 12 + 1 + 30
    plain, flipped = shown["half.png"].all("img")
    expected = noise(1, (256, 128)).reshape(64, 2, 128, 2, 3).mean(axis=(1, 3))  # half the size: means of 2 x 2 pixels
    assert np.abs(pixels(plain) - expected).mean() < 2
    assert np.abs(pixels(flipped) - expected[:, ::-1]).mean() < 2
    # 384 x 128 becomes 192 x 64, of which 32 columns are cut off on each side
    expected = noise(2, (384, 128)).reshape(64, 2, 192, 2, 3).mean(axis=(1, 3))[:, 32:160]
    assert np.abs(pixels(shown["wide.png"].all("img")[0]) - expected).mean() < 2
    assert "384x128 → resized 192x64 → cropped 128x64 · 33.3% cropped away" in shown["wide.png"].text
    # turned upright before anything else
    expected = np.rot90(noise(3, (128, 256)), -1).reshape(64, 2, 128, 2, 3).mean(axis=(1, 3))
    assert np.abs(pixels(shown["turned.png"].all("img")[0]) - expected).mean() < 2
    assert "256x128 → resized 128x64" in shown["turned.png"].text


def test_what_an_inpainting_model_has_to_draw_is_grey(nasty, tmp_path):
    """A mask that is drawn, here of all, and the alpha channel's own in place of its weights of the loss."""
    report = replace(nasty, draw=replace(nasty.draw, masks=MaskShares({"full": 1.0})))
    write_page(report, tmp_path / "index.html", advance=lambda count: None)
    shown = cards(read_page(tmp_path / "index.html"))
    _, masked, _ = shown["half.png"].all("img")
    assert np.abs(pixels(masked).astype(int) - 128).max() <= 1
    image, masked = shown["mask.png"].all("img")
    assert np.abs(pixels(masked)[:, 64:].astype(int) - 128).mean() < 8  # JPEG: grey beside noise
    assert np.abs(pixels(masked)[:, :56] - pixels(image)[:, :56].astype(int)).mean() < 2
    assert "to be drawn: the grey part" in shown["mask.png"].text and "loss mask" not in shown["mask.png"].text


def test_the_mask_of_the_loss_is_shown(page):
    shown = cards(read_page(page))
    image, mask = shown["mask.png"].all("img")
    assert np.abs(pixels(image) - noise(11, (128, 64))).mean() < 2  # not over white: the mask hides the rest
    expected = np.zeros((8, 16))  # one value for each 8 x 8 pixels
    expected[:, :8] = 255
    assert np.array_equal(pixels(mask), expected)
    assert "3 uses per epoch" in shown["mask.png"].text


def test_nothing_is_fetched_from_anywhere(page):
    for element in read_page(page).all():
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            value = element.attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (element.tag, value)
        assert "url(" not in (element.attributes.get("style") or "")
    style = read_page(page).all("style")[0].text
    assert "url(" not in style and "@import" not in style
    policy = next(meta.attributes["content"] for meta in read_page(page).all("meta") if "http-equiv" in meta.attributes)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_names_and_captions_cannot_inject_anything(page):
    read = read_page(page)
    card = cards(read)[HOSTILE_NAME]
    assert card.all("li")[0].all(of_class="text")[0].text == HOSTILE_CAPTION
    assert len(read.all("script")) == 1 and len(read.all("style")) == 1
    assert not [name for element in read.all() for name in element.attributes if name.startswith("on")]


FINDINGS = {
    "unreadable": {"broken.png"},
    "missing": {"alone.png"},
    "empty": {"empty.png"},
    "long": {"long.png"},
    "duplicate": {"half.png", "copy.png"},
    "similar": {"long.png", "resaved.jpg"},
    "crop": {"wide.png"},
    "tiny": {"tiny.png"},
    # 12 images and one three times are 15 items: as many of the 30 class images are used, in the order of names
    "unused": set(sorted(f"{number}.png" for number in range(30))[15:]),
}


@pytest.mark.parametrize("kind", FINDINGS)
def test_what_is_wrong_is_listed_and_marked(kind, page):
    read = read_page(page)
    (link,) = [link for link in read.all("a", "only") if link.attributes["href"] == f"#only={kind}"]
    details = link.parent.parent
    assert details.tag == "details" and details.all("b")[0].text == str(len(FINDINGS[kind]))
    assert {bdi.text for bdi in details.all("bdi")} == FINDINGS[kind]
    marked = {name for name, card in cards(read).items() if kind in card.attributes["data-kinds"].split()}
    assert marked == FINDINGS[kind]
    for name in details.all("a")[1:]:
        assert read.by_id(name.attributes["href"][1:]).all("h4")[0].text == name.text


def test_an_unreadable_image_is_shown_with_its_error(page):
    card = cards(read_page(page))["broken.png"]
    assert not card.all("img") and "broken.png cannot be read" in card.all(of_class="unreadable")[0].text


def test_what_is_beyond_the_token_limit_is_struck_through(page):
    card = cards(read_page(page))["long.png"]
    (caption,) = card.all("li")
    assert caption.all(of_class="tokens")[0].text == "8"
    assert caption.all("s")[0].text == " seven eight"
    assert not cards(read_page(page))["half.png"].all("s")


def test_totals_buckets_and_tags_are_counted(page):
    read = read_page(page)
    tiles = [tile.text for tile in read.by_id("totals").all("div")]
    # 12 + 1 x 3 items, and as many of the class images; batches of 4
    for text in ("13training images", "30regularisation images", "30items per epoch", "8batches", "3subsets"):
        assert any(tile.startswith(text) for tile in tiles), text
    (row,) = read.by_id("buckets").all("tbody")[1].all("tr")
    assert [cell.text for cell in row.all("td")] == ["128x64", "28", "30", "8", "94%"]
    assert "key_path" not in read.by_id("buckets").text
    fill = row.all("i")[-1].attributes["style"]
    assert fill == "width:93.8%"
    counts = {row.all("td")[0].text: row.all("td")[1].text for row in read.by_id("tags").all("tbody")[0].all("tr")}
    assert counts["animal"] == "30" and counts["one"] == "4" and counts["two"] == "2" and counts["three once"] == "1"


def test_held_out_images_are_counted(make_images, load_toml, tmp_path):
    """The page would otherwise show fewer images than the folder has, and not say why."""
    make_images("images", 5, caption="a cat")
    data = load_toml(
        "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{dir}/images'\nvalidation_split = 0.4\n"
    )
    write_page(make_report(data), tmp_path / "index.html", advance=lambda count: None)
    tiles = [tile.text for tile in read_page(tmp_path / "index.html").by_id("totals").all("div")]
    assert any(tile.startswith("3training images") for tile in tiles)
    assert any(tile.startswith("2held out for validation") for tile in tiles)


def test_the_page_is_a_function_of_the_data(nasty, page, tmp_path):
    write_page(nasty, tmp_path / "again.html", advance=lambda count: None)
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_captions_are_those_that_training_draws(make_images, load_toml, tmp_path):
    for path in make_images("images", 5):
        path.with_suffix(".caption").write_text("one, two, three, four, five, six", encoding="utf-8")
    data = load_toml(
        "[[datasets]]\nresolution = 64\nbatch_size = 2\n[[datasets.subsets]]\nimage_dir = '{dir}/images'\n"
        "shuffle_caption = true\n"
    )
    report = make_report(data, seed=11)
    write_page(report, tmp_path / "index.html", advance=lambda count: None)
    shown = {
        name: [text.text for text in card.all(of_class="text")]
        for name, card in cards(read_page(tmp_path / "index.html")).items()
    }
    batches = BatchDataset(data, seed=11, clock=report.draw.clock, latent_source="memory")
    for epoch in range(4):
        for micro_batch in data.batches_of_epoch(11, epoch):
            batch = batches[micro_batch]
            for key, caption in zip(batch.latent_keys, batch.captions, strict=True):
                assert shown[key.image_key][epoch] == caption


def test_large_datasets_are_shown_in_part_and_the_page_says_so(nasty, tmp_path):
    write_page(nasty, tmp_path / "index.html", advance=lambda count: None, most=10)
    read = read_page(tmp_path / "index.html")
    assert len(cards(read)) == 10
    assert "10 of 43 images are shown" in read.by_id("images").text
    # a warning about an image that is not shown has no link to nowhere
    anchors = {element.attributes.get("id") for element in read.all()}
    links = [link.attributes["href"][1:] for link in read.all("a")]
    assert [link for link in links if link not in anchors and not link.startswith("only=")] == []


def test_a_failure_leaves_the_last_page(nasty, page, tmp_path):
    before = page.read_bytes()

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_page(nasty, page, advance=stop)
    assert page.read_bytes() == before and list(page.parent.iterdir()) == [page]
    cannot_be_written = replace(nasty, messages=(None,))  # found in the middle of writing
    with pytest.raises(UndefinedError):
        write_page(cannot_be_written, page, advance=lambda count: None)
    assert page.read_bytes() == before and list(page.parent.iterdir()) == [page]
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written"):
        write_page(nasty, tmp_path / "file" / "index.html", advance=lambda count: None)


@needs_browser
@pytest.mark.parametrize(
    ("fragment", "left"),
    [
        ("", None),
        ("#only=tiny", {"tiny.png"}),
        ("#find=one,%20THREE", {"half.png"}),
        ("#find=nowhere", set()),
    ],
)
def test_a_browser_shows_the_page_and_its_filter_works(fragment, left, page, tmp_path):
    dom, said = browse(page, tmp_path / "profile", fragment)
    assert said == ""
    (tmp_path / "dom.html").write_text(dom, encoding="utf-8")
    read = read_page(tmp_path / "dom.html")
    assert read.all("title")[0].text == "Dataset preview"  # the hostile caption did not run
    visible = {name for name, card in cards(read).items() if "hidden" not in card.attributes}
    assert visible == (set(cards(read)) if left is None else left)
    assert "hidden" not in read.all(of_class="controls")[0].attributes
    assert re.fullmatch(r"43 images" if left is None else rf"{len(left)} of 43 images", read.by_id("count").text)
    assert ("hidden" in read.by_id("none").attributes) == bool(visible)
    assert [button.text for button in read.by_id("tags").all("button")] == ["tag", "images"]
