"""Detections of images without annotations: which are found, what is written, and under which names."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.errors import DataError, SpecError
from model.evaluate import detector
from model.infer_sources import class_names, find_pictures
from model.inference import infer, inference
from model.network.detr import Prediction
from model.spec import ExperimentSpec

NAMES = {1: "traffic light", 2: "cat", 3: "dog"}
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A picture of noise at a path below the test's folder."""

    def build(name: str, size: tuple[int, int] = (60, 40), mode: str = "RGB") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(len(name))
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(path)
        return path

    return build


def spec_for(*image_dirs: Path | str, classmap: Path | None = None, **section: object) -> ExperimentSpec:
    sources = {"image_dir": [str(one) for one in image_dirs], "classmap": str(classmap) if classmap else None}
    dataset = {"infer_data_sources": sources, "num_classes": 5, "batch_size": 2}
    return ExperimentSpec.from_dict({"dataset": dataset, "inference": section}, network=False)


class Predictor:
    """Sees three boxes in every image: a cat at 0.9, a dog at 0.6, something of class 4 at 0.8."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.padded: list[bool] = []

    def __call__(self, pixels: Tensor, mask: Tensor | None) -> Prediction:
        self.shapes.append(tuple(pixels.shape))
        self.padded.append(mask is not None)
        logits = torch.full((len(pixels), 300, 5), -20.0)
        for query, (label, score) in enumerate(((2, 0.9), (3, 0.6), (4, 0.8))):
            logits[:, query, label] = torch.logit(torch.tensor(score))
        boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.2, 0.2]])
        rest = torch.full((297, 4), 0.5)
        return Prediction(logits, torch.cat([boxes, rest]).expand(len(pixels), -1, -1))


def run(spec: ExperimentSpec, out: Path, predictor: Predictor | None = None) -> int:
    return infer(detector(predictor or Predictor(), spec), find_pictures(spec), NAMES, spec, out)


def written(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def test_a_line_by_hand(make: Make, tmp_path: Path) -> None:
    """Pixels of the original image, not cut to it; the class without a name and the weak ones are left out."""
    assert run(spec_for(make("in/a.png", size=(600, 400))), tmp_path / "out") == 1
    lines = (tmp_path / "out/labels/a.txt").read_text().splitlines()
    assert lines[0] == "cat 0.00 0 0.00 150.000 100.000 450.000 300.000 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.900"
    assert lines[1] == "dog 0.00 0 0.00 -60.000 -40.000 180.000 120.000 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.600"
    assert len(lines) == 2
    run(spec_for(tmp_path / "in", conf_threshold=0.95), tmp_path / "none")
    assert (tmp_path / "none/labels/a.txt").read_text() == ""


def test_folders_are_searched_and_kept(make: Make, tmp_path: Path) -> None:
    for name in ("in/b/1.png", "in/a/1.jpg", "in/a/1.png", "in/2.JPEG", "in/.hidden/3.png", "in/._4.png"):
        make(name)
    (tmp_path / "in/notes.txt").write_text("not an image")
    spec = spec_for(tmp_path / "in")
    assert [one.path.relative_to(tmp_path / "in").as_posix() for one in find_pictures(spec)] == [
        "2.JPEG", "a/1.jpg", "a/1.png", "b/1.png"
    ]  # fmt: skip
    assert run(spec, tmp_path / "in/out") == 4
    assert written(tmp_path / "in/out") == [
        "images_annotated/2.JPEG", "images_annotated/a/1.jpg", "images_annotated/a/1.png", "images_annotated/b/1.png",
        "labels/2.txt", "labels/a/1.jpg.txt", "labels/a/1.png.txt", "labels/b/1.txt",
    ]  # fmt: skip
    assert run(spec, tmp_path / "in/out") == 4, "what it drew itself is no input"


def test_folders_of_equal_names_are_told_apart(make: Make, tmp_path: Path) -> None:
    for name in ("x/images/1.png", "y/images/1.png", "z/1.png"):
        make(name)
    run(spec_for(tmp_path / "x/images", tmp_path / "y/images", tmp_path / "x/images"), tmp_path / "out")
    assert [name for name in written(tmp_path / "out") if name.startswith("labels")] == [
        "labels/x/images/1.txt", "labels/y/images/1.txt"
    ]  # fmt: skip
    run(spec_for(tmp_path / "x/images", tmp_path / "z/1.png"), tmp_path / "two")
    assert [name for name in written(tmp_path / "two") if name.startswith("labels")] == [
        "labels/1.txt", "labels/images/1.txt"
    ]  # fmt: skip


def test_sequences_get_a_folder_each(make: Make, tmp_path: Path) -> None:
    for name in ("in/s1/left/1.png", "in/s1/right/1.png", "in/s1/left/2.png", "in/s2/left/1.png"):
        make(name)
    run(spec_for(tmp_path / "in", is_internal=True), tmp_path / "out")
    assert [name for name in written(tmp_path / "out") if name.endswith("txt")] == [
        "s1/labels/2.txt", "s1/labels/left/1.txt", "s1/labels/right/1.txt", "s2/labels/1.txt"
    ]  # fmt: skip
    assert [name for name in written(tmp_path / "out") if name.endswith("png")] == [
        "s1/images_annotated/2.png", "s1/images_annotated/left/1.png", "s1/images_annotated/right/1.png",
        "s2/images_annotated/1.png",
    ]  # fmt: skip


def test_an_archive_with_its_label_map(make: Make, tmp_path: Path) -> None:
    """The `coco_raw` layout: images.tar.gz and label_map.txt, no annotations."""
    for name in ("images/a.png", "images/b.png"):
        make(name)
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "images", "images")
    (tmp_path / "label_map.txt").write_text("person\nfire truck\n\nowl\n", encoding="utf-8")
    spec = spec_for(tmp_path / "images.tar.gz", classmap=tmp_path / "label_map.txt", conf_threshold=0.0)
    names = class_names(spec, {2: "cat"})
    assert names == {1: "person", 2: "fire truck", 4: "owl"}
    assert infer(detector(Predictor(), spec), find_pictures(spec), names, spec, tmp_path / "out") == 2
    firsts = [line.split(" ")[0] for line in (tmp_path / "out/labels/b.txt").read_text().splitlines()]
    assert firsts[:2] == ["fire_truck", "owl"], "one word a column, and the unnamed third class left out"
    run(spec_for(tmp_path / "images.tar.gz", tmp_path / "images"), tmp_path / "both")
    assert len([name for name in written(tmp_path / "both") if name.startswith("labels")]) == 4


def test_a_label_map_that_lacks_classes_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "map.txt").write_text("person\n")
    assert class_names(spec_for(classmap=tmp_path / "map.txt"), {1: "x", 7: "y"}) == {1: "person"}
    assert "no line names category 7" in caplog.text
    with pytest.raises(DataError, match="there is no"):
        class_names(spec_for(classmap=tmp_path / "absent.txt"), {})


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("RGBA", "png"), ("P", "bmp"), ("CMYK", "tif")])
def test_every_kind_of_image(make: Make, tmp_path: Path, mode: str, suffix: str) -> None:
    make(f"in/a.{suffix}", mode=mode)
    Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 20).save(tmp_path / "in/b.png")
    assert run(spec_for(tmp_path / "in"), tmp_path / "out") == 2
    with Image.open(tmp_path / f"out/images_annotated/a.{suffix}") as drawn:
        assert drawn.convert("RGB").size == (60, 40)


def test_an_unreadable_image_is_left_out_and_told(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("in/1.png", "in/2.png", "in/3.png", "in/4.png"):
        make(name)
    for name in ("1", "2"):  # a whole batch
        (tmp_path / f"in/{name}.png").write_bytes(b"")
    assert run(spec_for(tmp_path / "in"), tmp_path / "out") == 2
    assert written(tmp_path / "out/labels") == ["3.txt", "4.txt"]
    assert caplog.text.count("skipped: ") == 2
    last = json.loads((tmp_path / "out/status.json").read_text().splitlines()[-1])
    assert last["message"].startswith("2 of 4 images skipped: `")
    for name in ("3", "4"):
        (tmp_path / f"in/{name}.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of 4 images can be decoded"):
        run(spec_for(tmp_path / "in"), tmp_path / "out")


def test_sizes_and_batches(make: Make, tmp_path: Path) -> None:
    for number in range(3):
        make(f"in/{number}.png", size=(60 + 10 * number, 40))
    predictor = Predictor()
    run(spec_for(tmp_path / "in", input_height=64, input_width=96), tmp_path / "out", predictor)
    assert predictor.shapes == [(2, 3, 64, 96), (1, 3, 64, 96)]
    assert predictor.padded == [False, False], "an exact size leaves nothing to pad"
    predictor = Predictor()
    run(spec_for(tmp_path / "in", batch_size=3), tmp_path / "out", predictor)
    assert predictor.shapes == [(3, 3, 800, 1333)]
    with pytest.raises(ValueError, match="must be set together"):
        ExperimentSpec.from_dict({"inference": {"input_width": 64}})


def test_a_very_large_image(tmp_path: Path) -> None:
    Image.new("L", (9000, 6000)).save(tmp_path / "a.png")
    predictor = Predictor()
    assert run(spec_for(tmp_path / "a.png"), tmp_path / "out", predictor) == 1
    assert predictor.shapes == [(1, 3, 800, 1333)]
    assert " 2250.000 1500.000 6750.000 4500.000 " in (tmp_path / "out/labels/a.txt").read_text()


def test_outline_and_colours(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = make("in/a.png", size=(200, 100))

    def drawn(**section: object) -> np.ndarray:
        run(spec_for(source, conf_threshold=0.8, **section), tmp_path / "out")
        return np.asarray(Image.open(tmp_path / "out/images_annotated/a.png"))

    plain = np.asarray(Image.open(source))
    for outline in (1, 5):  # the cat's box begins at x = 50
        image = drawn(outline_width=outline, color_map={"cat": "#01ff02"})
        assert (image[60, 50 : 50 + outline] == (1, 255, 2)).all()
        assert (image[60, 50 + outline : 140] == plain[60, 50 + outline : 140]).all()
    assert (drawn()[60, 50] != plain[60, 50]).any(), "a class without a chosen colour has its own"
    drawn(color_map={"cow": "red"})
    assert "there is no class `cow`" in caplog.text
    with pytest.raises(SpecError, match=r"`cat` is 'reddish'; try red"):
        drawn(color_map={"cat": "reddish"})


def test_there_must_be_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds none"):
        find_pictures(spec_for(tmp_path / "empty"))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/images.tar.gz").touch()
    with pytest.raises(DataError, match=r"holds none; name its archive: .*raw/images.tar.gz"):
        find_pictures(spec_for(tmp_path / "raw"))
    with pytest.raises(DataError, match="does not exist"):
        find_pictures(spec_for(tmp_path / "absent.png"))
    with pytest.raises(DataError, match="is unset"):
        find_pictures(spec_for())


def test_the_action_on_a_checkpoint(tiny_checkpoint: Path, make: Make, tmp_path: Path) -> None:
    make("in/a.png")
    given = {
        "dataset": {"infer_data_sources": {"image_dir": str(tmp_path / "in")}},
        "inference": {"checkpoint": str(tiny_checkpoint), "conf_threshold": 0.0},
    }
    assert inference(given, tmp_path / "out") == 1
    lines = (tmp_path / "out/labels/a.txt").read_text().splitlines()
    assert {line.split(" ")[0] for line in lines} <= {"cat", "dog"}
    assert {len(line.split(" ")) for line in lines} == {16}
    with pytest.raises(SpecError, match=r"`inference.checkpoint` must name a checkpoint"):
        inference({}, tmp_path / "out")
    assert json.loads((tmp_path / "out/status.json").read_text().splitlines()[-1])["status"] == "FAILURE"
