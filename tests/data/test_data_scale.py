"""Data sets as large as the published ones load in the time and memory that users can expect."""

import json
import random
import subprocess
import sys

MEASURE = r"""
import re, time
from scnet_d2.data.coco import load_coco_multilabel
from scnet_d2.data.voc import load_voc_multilabel
start = time.process_time()
records = {load}
first = time.process_time() - start
# getrusage would count the memory of the process that started this one
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
objects = sum(len(r["annotations"]) for r in records)
images = len(records)
del records
start = time.process_time()
{load}
print(images, objects, first, time.process_time() - start, peak)
"""


def measure(load: str) -> list[float]:
    """Images, objects, CPU seconds of a first and a second load, peak memory of the first in MB."""
    code = MEASURE.replace("{load}", load)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(x) for x in done.stdout.splitlines()[-1].split()]


def test_a_json_as_large_as_val2014_loads_in_20_seconds_and_1500_megabytes(tmp_path):
    rng = random.Random(0)
    images = [
        {"id": i, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640}
        for i in range(1, 40_505)
    ]
    annotations = [
        {
            "id": i,
            "image_id": rng.randint(1, 40_504),
            "category_id": rng.randint(1, 80),
            "bbox": [rng.uniform(0, 500), rng.uniform(0, 300), 99.5, 120.25],
            "area": 11964.9,
            "iscrowd": 0,
            "segmentation": [[round(rng.uniform(0, 480), 2) for _ in range(40)]],
        }
        for i in range(290_000)
    ]
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "val.json").write_text(json.dumps(content))
    load = f"load_coco_multilabel({str(tmp_path / 'val.json')!r}, {str(tmp_path)!r}, 'large')"
    images, objects, first, _, peak = measure(load)
    assert (images, objects) == (40_504, 290_000)
    assert first < 20
    assert peak < 1500


def test_as_many_xml_files_as_voc_2007_load_in_5_seconds_and_faster_again(tmp_path):
    rng = random.Random(0)
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    names = [f"{i:06d}" for i in range(9_963)]
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
    images, _, first, second, _ = measure(f"load_voc_multilabel({str(tmp_path)!r}, 'all', 'x')")
    assert images == 9_963
    assert first < 5
    assert second < first
