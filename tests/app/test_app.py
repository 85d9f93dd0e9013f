"""The page of `scnet app`: the functions behind it, and the page itself in a headless Chromium."""

import base64
import importlib
import io
import json
import os
import re
import shutil
import socket
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

from scnet_command.arguments import get_parser
from scnet_d2.app.label_page import LabelledPhoto, list_labels, page_html
from scnet_d2.data.context_scenes import CLASSES, SceneConfig, generate
from scnet_d2.inference import SCNetPredictor

import pytest
import torch
from conftest import small_config
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image

HOSTILE = '<img src=x onerror="document.title=1">${alert(1)}{{value}}'
NAMES = (HOSTILE, *CLASSES[1:])


def load_app():
    sys.modules.pop("scnet_d2.cli.app", None)
    return importlib.import_module("scnet_d2.cli.app")


@pytest.fixture(scope="module")
def app():
    return load_app()


class Page(HTMLParser):
    """Elements with their attributes, and texts, as a browser would find them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag, style=None):
        found = [a for t, a in self.elements if t == tag]
        return [a for a in found if style is None or style in a.get("class", "").split()]


def made_output() -> dict:
    """Three detections of two boxes: the first box is one of a cat and one of a dog."""
    instances = Instances((100, 200))
    first, second = [10.0, 10, 50, 60], [100.0, 20, 180, 90]
    around_first, around_second = [0.0, 0, 70, 85], [60.0, 0, 200, 100]
    instances.pred_boxes = Boxes(torch.tensor([first, first, second]))
    instances.context_boxes = Boxes(torch.tensor([around_first, around_first, around_second]))
    instances.pred_classes = torch.tensor([0, 1, 0])
    instances.scores = torch.tensor([0.9, 0.7, 0.6])
    instances.label_scores = torch.tensor([[0.9, 0.7, 0.1]] * 2 + [[0.6, 0.2, 0.3]])
    return {
        "instances": instances,
        "image_scores": torch.tensor([0.9, 0.7, 0.3]),
        "label_boxes": torch.tensor([first, first, second]),
        "label_context_boxes": torch.tensor([around_first, around_first, around_second]),
    }


def made_page(output, names=("cat", "dog", "cow"), threshold=0.5, name="a.jpg") -> Page:
    url = "data:image/jpeg;base64,"
    photo = LabelledPhoto(name, name, (100, 200), url, output, 50, 12.4)
    return Page(page_html("result", photo, list_labels(output, names, [threshold] * 3)))


def test_labels_come_with_the_box_of_their_score_and_their_other_detections():
    labels = list_labels(made_output(), ("cat", "dog", "cow"), (0.5, 0.5, 0.5))
    assert [(x.name, x.score, x.predicted) for x in labels] == [
        ("cat", pytest.approx(0.9), True),
        ("dog", pytest.approx(0.7), True),
        ("cow", pytest.approx(0.3), False),
    ]
    first, second = [10, 10, 50, 60], [100, 20, 180, 90]
    assert [[b.tight.tolist() for b in x.boxes] for x in labels] == [
        [first, second],
        [first],  # once, though two detections have this box
        [second],
    ]
    assert [x.number for x in labels] == [1, 2, 3]
    assert labels[2].boxes[0].context.tolist() == [60, 0, 200, 100]


def test_the_box_of_a_label_need_not_be_a_detection():
    output = made_output()
    output["label_boxes"][2] = torch.tensor([5.0, 5, 20, 20])
    output["label_context_boxes"][2] = torch.tensor([0.0, 0, 30, 30])
    (box,) = list_labels(output, ("cat", "dog", "cow"), (0.5, 0.5, 0.5))[2].boxes
    assert (box.tight.tolist(), box.context.tolist()) == ([5, 5, 20, 20], [0, 0, 30, 30])


def test_detections_below_the_threshold_are_not_among_the_boxes():
    labels = list_labels(made_output(), ("cat", "dog", "cow"), (0.65, 0.5, 0.5))
    assert [len(x.boxes) for x in labels] == [1, 1, 1]


def test_scores_are_compared_unrounded_and_as_float32():
    output = made_output() | {"image_scores": torch.tensor([0.7, 0.49996, 0.5])}
    labels = list_labels(output, ("cat", "dog", "cow"), (0.7, 0.5, 0.5))
    assert {x.name: x.predicted for x in labels} == {"cat": True, "cow": True, "dog": False}


def test_page_shows_scores_thresholds_latency_and_each_box():
    page = made_page(made_output())
    buttons = page.all("button")
    assert [b["data-label"] for b in buttons] == ["0", "1", "2"]
    assert "--score:90.0%;--threshold:50.0%" in buttons[0]["style"]
    assert ["predicted" in b["class"] for b in buttons] == [True, True, False]
    assert "12 ms" in page.text and "200 × 100 px" in page.text and "2 labels" in page.text
    lines = [a for a in page.all("rect", "tight") if "stroke" in a]  # without their rims
    assert len(lines) == 4
    # 600 units for the long side of 200 px
    assert (lines[0]["x"], lines[0]["width"]) == ("300.0", "240.0")  # of the cow, drawn first


def test_a_model_without_boxes_shows_its_class_maps():
    maps = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]], [[2.0, 2.0]]])
    output = {"image_scores": torch.tensor([0.9, 0.7, 0.3]), "class_maps": maps}
    labels = list_labels(output, ("cat", "dog", "cow"), [0.5] * 3)
    photo = LabelledPhoto("a.jpg", "a.jpg", (100, 200), "data:,", output, 0, 12.4)
    page = Page(page_html("result", photo, labels))
    assert [tag["data-label"] for tag in page.all("g", "boxes")] == ["0", "1", "2"]
    pictures = page.all("image")[1:]  # after the photograph
    assert {(x["width"], x["height"]) for x in pictures} == {("600.0", "300.0")}
    png = base64.b64decode(pictures[0]["href"].partition(",")[2])
    drawn = Image.open(io.BytesIO(png))
    assert drawn.size == (96, 48)
    left, right = (drawn.getpixel((x, 0))[0] for x in (0, 95))
    assert left < 20  # the cat is right
    assert right > 230
    assert not any("disabled" in button for button in page.all("button"))
    assert " boxes" not in page.text and "context box" not in page.text


def test_a_model_without_boxes_and_maps_says_so():
    output = {"image_scores": torch.tensor([0.9, 0.7, 0.3])}
    labels = list_labels(output, ("cat", "dog", "cow"), [0.5] * 3)
    photo = LabelledPhoto("a.jpg", "a.jpg", (100, 200), "data:,", output, 0, 12.4)
    page = Page(page_html("result", photo, labels))
    assert "This model does not say where." in page.text
    assert all("disabled" in button for button in page.all("button"))


def test_names_with_markup_stay_text():
    names, file = (HOSTILE, """$\\frac$ & <b>'q"</b>""", "&lt;"), """<i>'".jpg"""
    page, plain = made_page(made_output(), names=names, name=file), made_page(made_output())
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert all(name in page.text for name in (*names, file))
    assert page.all("svg", "photo")[0]["aria-label"] == file
    examples = Page(page_html("examples", [(file, "data:,")]))
    assert examples.elements[1:] == [
        ("button", {"type": "button", "data-example": "0", "title": file}),
        ("img", {"src": "data:,", "alt": file}),
    ]
    assert "<u>" in Page(page_html("start", "<u>")).text
    assert "<u>" in Page(page_html("title", "<u>", 3, "cpu")).text


def test_without_any_box_the_labels_cannot_be_clicked():
    output = made_output()
    output["instances"] = output["instances"][:0]
    output["label_boxes"] = output["label_context_boxes"] = torch.full((3, 4), torch.nan)
    page = made_page(output, threshold=0.95)
    assert all("disabled" in b for b in page.all("button"))
    assert "The model found no box" in page.text and "No label reaches" in page.text


def write_damaged(folder) -> dict:
    whole = io.BytesIO()
    Image.new("RGB", (300, 200), "green").save(whole, "JPEG")
    contents = {
        "cut.jpg": whole.getvalue()[:400], "text.png": b"hello", "none.jpg": b"",
        "drawing.svg": b"<svg/>",
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return contents


def test_a_damaged_file_gives_one_message_that_names_it(app, tmp_path):
    for name in write_damaged(tmp_path):
        with pytest.raises(app.PhotoError, match=f"^{name} cannot be read: it is damaged, or no"):
            app.read_photo(str(tmp_path / name))


def test_too_many_pixels_are_refused_with_the_reason(app, tmp_path, monkeypatch):
    Image.new("RGB", (30, 20)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(app.PhotoError, match=r"^huge\.png is too large"):
        app.read_photo(str(tmp_path / "huge.png"))


def test_photographs_are_turned_as_their_exif_says(app, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert app.read_photo(str(tmp_path / "turned.jpg")).shape == (40, 20, 3)


def test_a_config_of_another_model_is_refused(app, tmp_path):
    (tmp_path / "config.yaml").write_text("MODEL: {META_ARCHITECTURE: GeneralizedRCNN}")
    (tmp_path / "w.pth").touch()
    opts = ["MODEL.WEIGHTS", str(tmp_path / "w.pth"), "MODEL.ROI_HEADS.NUM_CLASSES", 1]
    opts += ["DATASETS.CLASS_NAMES", "('cat',)"]
    args = SimpleNamespace(model=str(tmp_path / "config.yaml"), weights=None, opts=opts)
    with pytest.raises(ValueError, match=r"MODEL\.META_ARCHITECTURE is GeneralizedRCNN"):
        app.setup(args)


def test_a_folder_without_images_is_no_folder_of_examples(app, tmp_path):
    with pytest.raises(FileNotFoundError, match="no images there"):
        app.load_examples(str(tmp_path))


def test_examples_that_cannot_be_read_are_left_out(app, tmp_path):
    write_damaged(tmp_path)
    Image.new("RGB", (30, 20)).save(tmp_path / "whole.jpg")
    assert list(app.load_examples(str(tmp_path))) == [str(tmp_path / "whole.jpg")]


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install 'scnet_d2\[app\]'"):
        load_app()


def test_the_page_is_for_this_machine_alone_unless_asked(app):
    assert get_parser().parse_args(["app", "--model", "x"]).host == "127.0.0.1"


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "http://localhost"])
def test_an_address_that_cannot_be_served_on_is_named_before_the_model_is_loaded(app, host):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            ValueError, match=rf"on {host}, port {port} \(.*: choose another --port"
        ):
            app.serve(SimpleNamespace(host=host, port=port))
    app.require_free("127.0.0.1", port)
    app.require_free("0.0.0.0", None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run whose labels all reach their thresholds, one name of them with markup."""
    folder = tmp_path_factory.mktemp("run")
    generate(str(folder), SceneConfig(sizes=(3, 1, 1)))
    cfg = small_config(
        "DATASETS.CLASS_NAMES", list(NAMES), "TEST.LABEL_THRESHOLD", 0.0,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder, cfg


@pytest.fixture(scope="module")
def predictor(run):
    return SCNetPredictor(run[1])


def test_no_more_boxes_take_part_than_asked(app, run, predictor):
    seen = []
    hook = predictor.model.proposal_generator.register_forward_hook(
        lambda module, inputs, outputs: seen.append(len(outputs[0][0]))
    )
    scene = str(next((run[0] / "context_scenes" / "images" / "train").iterdir()))
    for number in (3, 40):
        photo = app.label_photo(predictor, scene, number)
        assert photo.boxes == number
    hook.remove()
    assert seen[0] == 3 < seen[1] <= 40


@pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
@pytest.mark.parametrize("channels", ["BGR", "RGB"])
def test_a_red_photograph_is_red_to_the_model_and_on_the_page(app, run, tmp_path, device, channels):
    cfg = run[1].clone()
    cfg.merge_from_list(["INPUT.FORMAT", channels, "MODEL.DEVICE", device])
    predictor, seen = SCNetPredictor(cfg), []
    predictor.model.register_forward_pre_hook(lambda model, args: seen.extend(args[0]))
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    photo, html = app.LabelPage(predictor, {}).label(str(tmp_path / "red.png"), 0.5, 10, False)
    assert seen[0]["image"].amax(dim=(1, 2)).tolist() == [255 * (c == "R") for c in channels]
    shown = Image.open(io.BytesIO(base64.b64decode(photo.url.partition(",")[2])))
    assert shown.getpixel((30, 20)) == pytest.approx((255, 0, 0), abs=3)
    assert len(Page(html).all("button")) == len(NAMES)


def test_a_big_photograph_reaches_the_page_reduced(app, predictor, tmp_path):
    Image.new("RGB", (2400, 1600), "teal").save(tmp_path / "big.jpg")
    photo = app.label_photo(predictor, str(tmp_path / "big.jpg"), 10)
    assert photo.size == (1600, 2400)
    shown = Image.open(io.BytesIO(base64.b64decode(photo.url.partition(",")[2])))
    assert shown.size == (1280, 853)


def test_a_strip_gives_a_message(app, predictor, tmp_path):
    Image.new("RGB", (4000, 1)).save(tmp_path / "strip.png")
    page = app.LabelPage(predictor, {})
    photo, html = page.label(str(tmp_path / "strip.png"), 0.5, 10, False)
    assert photo is None
    assert "strip.png is a strip of 4000 x 1" in Page(html).text


# The page in a browser


class Browser:
    """A headless Chromium that records its console and its requests."""

    def __init__(self, driver, support):
        self.driver, self.support, self.requests, self.errors = driver, support, [], []

    def css(self, selector):
        return self.driver.find_elements("css selector", selector)

    def wait(self, condition, seconds=20):
        waiting = self.support.WebDriverWait(self.driver, seconds, poll_frequency=0.05)
        return waiting.until(lambda _: condition())

    def open(self, url, width=1280, height=900):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(url)
        self.wait(lambda: self.css(".drop"))
        self.wait(lambda: self.css("#upload input[type=file]"))

    def upload(self, file, then):
        self.css("#upload input[type=file]")[0].send_keys(str(file))
        return self.wait(lambda: self.css(then))[0]

    def visible(self, selector):
        script = """return [...document.querySelectorAll(arguments[0])]
            .filter((element) => element.getBoundingClientRect().width);"""
        return self.driver.execute_script(script, selector)

    def read_logs(self):
        levels = ("SEVERE", "WARNING")
        self.errors += [e for e in self.driver.get_log("browser") if e["level"] in levels]
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        self.requests += [e["request"]["url"] for e in sent]


@pytest.fixture(scope="module")
def browser():
    driver_file = shutil.which("chromedriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium or not driver_file:
        pytest.skip("no chromium and chromedriver on the PATH")
    reason = "selenium is not installed: pip install 'scnet_d2[test]'"
    webdriver = pytest.importorskip("selenium.webdriver", reason=reason)
    support = pytest.importorskip("selenium.webdriver.support.ui", reason=reason)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.add_argument("--headless=new")
    options.add_argument("--disable-dev-shm-usage")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium has none for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_file))
    yield Browser(driver, support)
    driver.quit()


@pytest.fixture(scope="module")
def addresses():
    """Hosts that this process, which serves the page, asks for or connects to."""
    hosts = set()

    def watch(event, args):  # an audit hook stays until the process ends
        if event == "socket.getaddrinfo":
            hosts.add(args[0])
        elif event == "socket.connect" and isinstance(args[1], tuple):
            hosts.add(args[1][0])

    sys.addaudithook(watch)
    return hosts


@pytest.fixture(scope="module")
def url(app, run, browser, addresses):
    """The page as the command line serves it, with three example scenes."""
    folder, cfg = run
    command = [
        "app", "--config-file", folder / "config.yaml",
        "--examples", folder / "context_scenes" / "images" / "train",
        "--weights", cfg.MODEL.WEIGHTS,
    ]  # fmt: skip
    blocks = app.serve(get_parser().parse_args(map(str, command)))
    yield blocks.local_url
    blocks.close()


def test_clicking_a_label_draws_its_boxes_without_errors_or_outside_requests(
    url, run, browser, addresses
):
    scene = next((run[0] / "context_scenes" / "images" / "test").iterdir())
    browser.open(url)
    assert url.startswith("http://127.0.0.1:")
    browser.upload(scene, then="svg.photo")
    assert re.search(r"\d+ ms", browser.css(".facts")[0].text)
    assert not browser.visible("rect.context")
    first = browser.css(".labels button")[0]
    number = first.get_attribute("data-label")
    first.click()
    assert first.get_attribute("aria-pressed") == "true"
    shown = f'g[data-label="{number}"] > '
    assert browser.visible(f"{shown} rect.tight") and browser.visible(f"{shown} rect.context")
    assert len(browser.visible("g.boxes")) == 1
    dashes = browser.visible(f"{shown} rect.context")[0].value_of_css_property("stroke-dasharray")
    assert dashes != "none"
    first.click()
    assert len(browser.visible("g.boxes")) == len(NAMES)
    # A class name with markup is text, and ran nothing
    assert HOSTILE in [e.text for e in browser.css(".labels .name")]
    assert not browser.css(".labels img") and browser.driver.title != "1"
    browser.read_logs()
    assert browser.errors == []
    outside = [u for u in browser.requests if not u.startswith((url, "data:", "blob:"))]
    assert len(browser.requests) > 5 and outside == []
    assert addresses <= {"127.0.0.1", "localhost", "::1"}


def test_a_damaged_upload_gives_one_message_and_the_next_one_works(url, run, browser, tmp_path):
    write_damaged(tmp_path)
    browser.open(url)
    message = browser.upload(tmp_path / "cut.jpg", then="[role=alert].message")
    assert message.text.startswith("cut.jpg cannot be read: it is damaged")
    assert len(browser.css("[role=alert]")) == 1
    assert "Traceback" not in browser.driver.page_source
    browser.css(".examples button")[1].click()
    browser.wait(lambda: browser.css("svg.photo"))
    assert not browser.css("[role=alert]")


DROP = """const done = arguments[0], canvas = document.createElement("canvas");
canvas.toBlob((blob) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([blob], "dropped.png", { type: "image/png" }));
  document.querySelector(".drop").dispatchEvent(
    new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
  done();
});"""


def test_a_dropped_photograph_is_labelled(url, browser):
    browser.open(url)
    browser.driver.execute_async_script(DROP)
    browser.wait(lambda: browser.css("svg.photo"))
    assert "300 × 150 px · dropped.png" in browser.css(".facts")[0].text  # a canvas's own size


def test_sliders_change_threshold_and_boxes_of_the_photograph_shown(url, browser):
    browser.open(url)
    browser.css(".examples button")[0].click()
    browser.wait(lambda: browser.css("svg.photo"))
    browser.css(".labels button")[0].click()
    assert browser.css(".labels h2")[0].text == f"{len(NAMES)} labels"
    threshold, boxes = browser.css("#settings input[type=number]")
    set_number(threshold, 0.9)
    browser.wait(lambda: browser.css(".labels h2")[0].text == "No label reaches the threshold")
    assert len(browser.visible("g.boxes")) == 1  # the label that was clicked stays so
    set_number(boxes, 2)
    browser.wait(lambda: "2 boxes" in browser.css(".facts")[0].text)


def set_number(field, value):
    field.clear()
    field.send_keys(f"{value}\n")


def test_a_telephone_shows_the_page_without_scrolling_sideways(url, browser):
    browser.open(url, width=390, height=844)
    browser.css(".examples button")[0].click()
    photo = browser.wait(lambda: browser.css("svg.photo"))[0]
    assert browser.driver.execute_script("return document.documentElement.scrollWidth") == 390
    label = browser.css(".labels li")[0]
    assert label.rect["y"] > photo.rect["y"] + photo.rect["height"]
    assert min(photo.rect["width"], label.rect["width"]) > 300
