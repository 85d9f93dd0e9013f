"""Data sets as large as the published ones load in the time and memory that users can expect.

Parts of them are loaded, in parts of that time and memory, to which all of a load is proportional.
"""

import json
import random
import re
import time
from pathlib import Path

from scnet_d2.data.coco import load_coco_multilabel
from scnet_d2.data.voc import load_voc_multilabel

import processes


def memory(key: str) -> float:
    """MB of this process: VmRSS, or VmHWM, the most of all times."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+)", status)[1]) / 1024


def measure_here(pipe, load, *args):
    before, start = memory("VmRSS"), time.process_time()
    records = load(*args)
    first = time.process_time() - start
    grown = memory("VmHWM") - before
    images, objects = len(records), sum(len(r["annotations"]) for r in records)
    del records
    start = time.process_time()
    load(*args)
    pipe.send((images, objects, first, time.process_time() - start, grown))


def measure(load, *args) -> tuple[int, int, float, float, float]:
    """Images, objects, CPU seconds of a first and a second load, MB that the first takes."""
    ours, other = processes.context().Pipe()
    process = processes.start(measure_here, other, load, *args)
    other.close()
    measured = ours.recv()
    process.join()
    return measured


def test_a_tenth_of_a_json_such_as_val2014_loads_in_2_seconds_and_60_megabytes(tmp_path):
    rng = random.Random(0)
    images = [
        {"id": i, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640}
        for i in range(1, 4_051)
    ]
    annotations = [
        {
            "id": i,
            "image_id": rng.randint(1, 4_050),
            "category_id": rng.randint(1, 80),
            "bbox": [rng.uniform(0, 500), rng.uniform(0, 300), 99.5, 120.25],
            "area": 11964.9,
            "iscrowd": 0,
            "segmentation": [[round(rng.uniform(0, 480), 2) for _ in range(40)]],
        }
        for i in range(29_000)
    ]
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "val.json").write_text(json.dumps(content))
    args = (str(tmp_path / "val.json"), str(tmp_path), "large")
    images, objects, first, _, grown = measure(load_coco_multilabel, *args)
    assert (images, objects) == (4_050, 29_000)
    assert first < 2
    assert grown < 60


def test_a_fifth_of_voc_2007_loads_in_a_second_and_again_in_half_the_time(
    tmp_path,
):
    rng = random.Random(0)
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    names = [f"{i:06d}" for i in range(1_993)]
    (tmp_path / "ImageSets" / "Main" / "all.txt").write_text("\n".join(names))
    for name in names:
        corners = [(rng.randint(1, 200), rng.randint(1, 150)) for _ in range(rng.randint(1, 5))]
        objects = "".join(
            f"<object><name>cat</name><difficult>0</difficult><bndbox><xmin>{x}</xmin>"
            f"<ymin>{y}</ymin><xmax>{x + 90}</xmax><ymax>{y + 99}</ymax></bndbox></object>"
            for x, y in corners
        )
        size = "<size><width>500</width><height>375</height><depth>3</depth></size>"
        xml = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
        (tmp_path / "Annotations" / f"{name}.xml").write_text(xml)
    images, _, first, second, _ = measure(load_voc_multilabel, str(tmp_path), "all", "x")
    assert images == 1_993
    assert first < 1
    assert second < first / 2
