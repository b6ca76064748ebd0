import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.data.coco import Summary, read_coco, summarise, true_size
from model.data.records import ImageRecord, ImageTable
from model.errors import DataError
from model.spec import Source

MakeCoco = Callable[..., Source]


def edit(source: Source, **changes: Any) -> Source:
    """Replace members of the annotation file."""
    assert source.json_file is not None
    file = Path(source.json_file)
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return source


def test_boxes_and_images_belong_together(make_coco: MakeCoco) -> None:
    index = read_coco([make_coco(ids=(9, 4, 6), boxes=((6, 5, 0, 0, 4, 4), (9, 2, 1, 2, 3, 4), (6, 2, 5, 6, 7, 8)))], 6)
    assert [image.id for image in index.images] == [9, 4, 6]
    assert index.categories == {2: "cat", 5: "dog"}
    assert index.annotations_of(0).boxes.tolist() == [[1, 2, 4, 6]]
    assert index.annotations_of(1).boxes.shape == (0, 4)
    assert index.annotations_of(2).boxes.tolist() == [[0, 0, 4, 4], [5, 6, 12, 14]]
    assert index.annotations_of(2).labels.tolist() == [5, 2]
    assert index.annotations_of(2).areas.tolist() == [16, 56]
    assert not index.annotations.crowd.any()


def test_colliding_ids_are_made_unique(make_coco: MakeCoco) -> None:
    first, second = make_coco("a", ids=(3, 8)), make_coco("b", ids=(8, 20), boxes=((20, 5, 0, 0, 4, 4),))
    index = read_coco([first, second])
    assert [image.id for image in index.images][:2] == [3, 8]
    assert len({image.id for image in index.images}) == 4
    assert index.annotations_of(3).labels.tolist() == [5]
    assert index.images[3].path == Path(str(second.image_dir)) / "20.png"


def test_ids_without_collision_are_kept(make_coco: MakeCoco) -> None:
    index = read_coco([make_coco("a", ids=(3, 8)), make_coco("b", ids=(9, 1), boxes=())])
    assert [image.id for image in index.images] == [3, 8, 9, 1]


def test_boxes_are_cut_counted_and_dropped(make_coco: MakeCoco) -> None:
    boxes = ((3, 2, -4, 2, 10, 8), (3, 2, 40, 2, 5, 5), (3, 2, 5, 5, 0, 4), (8, 2, 20, 10, 10.2, 10))
    index = read_coco([make_coco(boxes=boxes)])
    assert index.annotations.boxes.tolist() == [[0, 2, 6, 10], [20, 10, 30, 20]]
    assert (index.clamped, index.dropped) == (1, 2)


def test_crowd_is_marked(make_coco: MakeCoco) -> None:
    assert read_coco([make_coco(iscrowd=1)]).annotations.crowd.tolist() == [True]


@pytest.mark.parametrize(("size", "area"), [({}, {}), ({"width": 1 << 63, "height": 6}, {"area": 10**400})])
def test_area_and_size_may_be_absent_or_beyond_all_numbers(
    make_coco: MakeCoco, size: dict[str, int], area: dict[str, int]
) -> None:
    source = edit(
        make_coco(),
        images=[{"id": 3, "file_name": "3.png", **size}],
        annotations=[{"id": 1, "image_id": 3, "category_id": 2, "bbox": [1, 2, 3, 4], **area}],
    )
    index = read_coco([source])
    assert index.images[0][2:] == (20, 30)
    assert index.annotations.areas.tolist() == [12]


@pytest.mark.parametrize("name", ["images/3.png", "3.png"])
@pytest.mark.parametrize("parent", [False, True])
def test_file_names_with_or_without_the_folder(make_coco: MakeCoco, name: str, parent: bool) -> None:
    source = edit(make_coco(boxes=()), images=[{"id": 3, "file_name": name}])
    folder = str(Path(str(source.image_dir)).parent) if parent else source.image_dir
    index = read_coco([Source(image_dir=folder, json_file=source.json_file)])
    assert index.images[0].path.is_file()


def test_a_turned_photo_keeps_boxes_beyond_its_unturned_width(make_coco: MakeCoco, tmp_path: Path) -> None:
    """Annotated as seen (40 wide) but listed as stored (20 wide): the image itself decides."""
    exif = Image.Exif()
    exif[0x0112] = 6
    source = edit(
        make_coco(boxes=()),
        images=[{"id": 3, "file_name": "t.jpg", "height": 40, "width": 20}],
        annotations=[{"id": 1, "image_id": 3, "category_id": 2, "bbox": [25, 2, 10, 10]}],
    )
    photo = Path(str(source.image_dir)) / "t.jpg"
    Image.new("RGB", (20, 40)).save(photo, exif=exif)
    assert true_size(photo) == (20, 40)
    assert read_coco([source]).annotations.boxes.tolist() == [[25, 2, 35, 12]]


NO_FOLDER = {"images": [{"id": 1, "file_name": "absent.png"}, {"id": 3, "file_name": "3.png"}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": [{"id": 9, "name": "owl"}]}, r"id 9 \(`owl`\) and num_classes=6; set dataset.num_classes=10"),
        ({"categories": []}, "no categories"),
        ({"categories": [{"id": -1, "name": "owl"}]}, "must not be negative"),
        ({"categories": [{"name": "owl"}]}, "needs an integer `id`"),
        ({"images": []}, "has no images"),
        ({"images": "many"}, "needs a list of objects `images`"),
        ({"images": [{"id": 3, "file_name": "3.png"}] * 2}, "3 is there twice"),
        (NO_FOLDER, "names 2 images, but 1 are not in .*, the first `absent.png`"),
        ({"images": [{"id": 1, "file_name": "x" * 4000}]}, "but 1 are not in"),  # longer than any name can be
        ({"images": [{"id": 1 << 63, "file_name": "3.png"}]}, "`id` of each of `images` must fit into 64 bits"),
        ({"annotations": [{"id": 1, "image_id": 77, "category_id": 2, "bbox": [0, 0, 1, 1]}]}, "names image 77"),
        ({"annotations": [{"id": 1, "image_id": 3, "category_id": 3, "bbox": [0, 0, 1, 1]}]}, "has category 3"),
        ({"annotations": [{"id": 1, "image_id": 3, "category_id": 2, "bbox": [0, 0, 1]}]}, "bbox of four numbers"),
        ({"annotations": [{"id": 1, "image_id": 3, "category_id": 2, "bbox": [0, 0, 1, "NaN"]}]}, "bbox of four"),
    ],
)
def test_contradictions_name_file_value_and_fix(make_coco: MakeCoco, changes: dict[str, Any], message: str) -> None:
    source = edit(make_coco(), **changes)
    with pytest.raises(DataError, match=message) as caught:
        read_coco([source], 6)
    assert str(source.json_file) in str(caught.value)


def test_unreadable_annotations(make_coco: MakeCoco, tmp_path: Path) -> None:
    source = make_coco()
    Path(str(source.json_file)).write_text("{")
    with pytest.raises(DataError, match="must be a COCO JSON file"):
        read_coco([source])
    Path(str(source.json_file)).write_text("[]")
    with pytest.raises(DataError, match="must hold a JSON object"):
        read_coco([source])
    with pytest.raises(DataError, match="needs `image_dir` and `json_file`"):
        read_coco([Source(image_dir=str(tmp_path))])


def test_sources_must_agree_on_names(make_coco: MakeCoco) -> None:
    with pytest.raises(DataError, match="category 2 is `cow`, but an earlier source calls it `cat`"):
        read_coco([make_coco("a"), make_coco("b", categories=((2, "cow"),))])
    index = read_coco([make_coco("c", categories=((2, "cat"),)), make_coco("d", categories=((1, "ant"), (2, "cat")))])
    assert list(index.categories) == [1, 2]
    assert index.annotations.boxes.dtype == np.float64


def test_shards_are_found_by_pattern_and_read_by_name(make_coco: MakeCoco, tmp_path: Path) -> None:
    first, second = make_coco("b", ids=(3, 8)), make_coco("a", ids=(3,), boxes=((3, 5, 0, 0, 4, 4),))
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, source in enumerate((first, second)):
        (folder / f"s-{number}.json").write_text(Path(str(source.json_file)).read_text())
    (folder / "notes.txt").write_text("no annotations")
    for pattern in (folder, folder / "*", folder / "*.json", folder / "s-?.json"):
        index = read_coco([Source(image_dir=first.image_dir, json_file=str(pattern))])
        assert index.shards == (2, 1)
        assert len({image.id for image in index.images}) == 3
        assert index.annotations_of(2).labels.tolist() == [5]
    (folder / "s[0].json").write_text((folder / "s-0.json").read_text())
    literal = Source(image_dir=first.image_dir, json_file=str(folder / "s[0].json"))
    assert read_coco([literal]).shards == (2,), "an existing name is no pattern"
    with pytest.raises(DataError, match=r"x-\*` must match annotation files"):
        read_coco([Source(image_dir=first.image_dir, json_file=str(folder / "x-*"))])


def test_a_summary_says_what_the_whole_index_says(make_coco: MakeCoco) -> None:
    boxes = ((3, 2, 1, 2, 10, 8), (8, 2, 0, 0, 4, 4), (8, 5, 2, 2, 4, 4), (8, 5, 2, 2, 0, 4))
    sources = [make_coco("a", boxes=boxes), make_coco("b", size=(40, 17), categories=((7, "fox"), (2, "cat")))]
    index = read_coco(sources)
    sides = [side for image in index.images for side in (image.height, image.width)]
    objects = max(len(index.annotations_of(at).labels) for at in range(len(index.images)))
    found = summarise([sources[0], Source(), sources[1]])
    unused = tuple(sorted({*range(1, 7)} - {*index.categories}))
    assert found == Summary(len(index.images), objects, min(sides), max(sides), max(index.categories) + 1, unused)
    assert found == Summary(4, 2, 17, 40, 8, (1, 3, 4, 6))


def test_a_summary_needs_no_image_and_no_sizes(make_coco: MakeCoco) -> None:
    source = make_coco(boxes=((3, 2, 1, 2, 10, 8),), iscrowd=1)
    content = json.loads(Path(source.json_file).read_text())
    del content["images"][0]["height"]
    Path(source.json_file).write_text(json.dumps(content))
    elsewhere = Source(image_dir="/nowhere", json_file=source.json_file)
    assert summarise([elsewhere]) == Summary(2, 0, None, None, 6, (1, 3, 4))
    assert summarise([Source()]) is None
    with pytest.raises(DataError, match=r"num_classes=6 \(max id \+ 1\)"):
        summarise([elsewhere], num_classes=5)


def test_boxes_outside_are_told_with_file_and_place(make_coco: MakeCoco) -> None:
    source = make_coco(boxes=((3, 2, 1, 2, 3, 4), (3, 2, -4, 2, 10, 8), (8, 2, 40, 2, 5, 5)))
    (notice,) = read_coco([source]).notices
    assert notice.startswith(f"`{source.json_file}`: 1 boxes reach over")
    assert "1 have no extent" in notice
    assert notice.endswith("annotation 1 of 3.png.")
    assert read_coco([make_coco("fine")]).notices == ()


def test_one_unreadable_image_is_no_obstacle_to_the_index(make_coco: MakeCoco) -> None:
    """Whoever wants its pixels reports it; its boxes stay, and count as missed."""
    source = make_coco(boxes=((3, 2, 1, 2, 3, 4), (8, 2, 25, 2, 10, 8)))
    (Path(str(source.image_dir)) / "8.png").write_bytes(b"no image")
    assert read_coco([source]).annotations.boxes.tolist() == [[1, 2, 4, 6], [25, 2, 30, 10]]
    index = read_coco([edit(source, images=[{"id": 3, "file_name": "3.png"}, {"id": 8, "file_name": "8.png"}])])
    assert index.images[1][2:] == (0, 0)
    assert index.annotations_of(1).boxes.tolist() == [[25, 2, 35, 10]]


def test_records_are_what_they_were_made_of(tmp_path: Path) -> None:
    records = [
        ImageRecord(7, tmp_path / "a.png", 20, 30),
        ImageRecord(2**53 + 1, Path("deep/\u00e9\udcff.png"), 0, 0),  # a name that is not UTF-8
        ImageRecord(-1, Path("c"), 5, 6),
    ]
    table = ImageTable(records)
    assert list(table) == records
    assert table[-1] == records[2]
    assert table[1:] == records[1:]
    assert list(pickle.loads(pickle.dumps(table))) == records  # noqa: S301 - our own bytes
    with pytest.raises(IndexError):
        _ = table[3]
