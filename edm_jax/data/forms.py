"""What `conversion` makes of data: TFDS data sets, and the original code's ZIP."""

import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edm_jax import files
from edm_jax.data.conversion import Done, Example, Part, Records, Source, beside
from edm_jax.data.rows import MOMENTS
from edm_jax.data.store import RECORD


class TfdsForm:
    """array_record files that TFDS reads, and this project without TensorFlow."""

    shuffles = True  # the first examples of a split are then of all classes

    def __init__(self, out: Path, source: Source):
        import tensorflow_datasets as tfds

        shape, dtype = source.shape, source.dtype.type
        name = re.sub(r"[^a-z0-9]+", "_", out.stem.lower()).strip("_")
        self._name = name if name[:1].isalpha() else f"data_{name}".strip("_")
        self._is_png = dtype == np.uint8 and shape[-1] in (1, 3)
        self._image = MOMENTS if source.is_moments else "image"
        image = tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")
        if self._is_png:
            image = tfds.features.Image(shape=shape, encoding_format="png")
        features: dict[str, Any] = {self._image: image}
        self._labelled = source.num_classes > 0
        if self._labelled:
            named = source.classes or []
            features["label"] = (
                tfds.features.ClassLabel(names=named)
                if len(named) == source.num_classes
                else tfds.features.ClassLabel(num_classes=source.num_classes)
            )
        self._features = tfds.features.FeaturesDict(features)

    def name(self, part: Part) -> str:
        """As TFDS names it."""
        return f"{self._name}-{part.split}.array_record-{part.place}"

    def write(self, path: Path, examples: Iterator[Example]) -> None:
        """An array_record file."""
        from array_record.python.array_record_module import (
            ArrayRecordReader,
            ArrayRecordWriter,
        )

        count = 0
        writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
        try:
            for _, image, label in examples:
                value = encoded_png(image) if self._is_png else image
                fields = {self._image: value} | (
                    {"label": label} if self._labelled else {}
                )
                writer.write(self._features.serialize_example(fields))
                count += 1
        finally:
            writer.close()
        reader = ArrayRecordReader(os.fspath(path))
        if reader.num_records() != count:  # the writer does not say so
            raise OSError(f"{path} is not whole: is the disk full?")
        reader.close()

    def finish(self, work: Path, out: Path, records: Records, made: Done) -> None:
        """Describes the files as TFDS does, and names the folder."""
        import tensorflow_datasets as tfds
        from etils import epath
        from tensorflow_datasets.core.dataset_info import DatasetIdentity
        from tensorflow_datasets.core.splits import SplitDict

        infos = []
        for split in made.examples:
            mine = [record for part, record in records if part.split == split]
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[r["examples"] for r in mine],
                    num_bytes=sum(r["bytes"] for r in mine),
                    filename_template=tfds.core.ShardedFileTemplate(
                        data_dir=epath.Path(work),
                        dataset_name=self._name,
                        split=split,
                        filetype_suffix="array_record",
                    ),
                )
            )
        identity = DatasetIdentity(
            name=self._name,
            version=tfds.core.Version("1.0.0"),
            data_dir=os.fspath(work),
            module_name="",
        )
        info = tfds.core.DatasetInfo(builder=identity, features=self._features)
        info.set_file_format("array_record")
        info.set_splits(SplitDict(infos))
        info.write_to_directory(work)
        files.write_json(
            work / RECORD,
            {
                "schema": 1,
                "contents": made.contents,
                "examples": made.examples,
                "skipped": len(made.skipped),
                "made_of": files.read_json(work / "plan.json"),
            },
        )
        # From here on the folder is whole; what helped to make it goes last.
        os.rename(work, out)
        for part, _ in records:
            beside(out / self.name(part)).unlink()
        (out / "plan.json").unlink()


class ZipForm:
    """The original code's uncompressed ZIP: PNG or NPY files, and dataset.json."""

    shuffles = False

    def __init__(self, source: Source):
        self._source = source

    def name(self, part: Part) -> str:
        """Of a ZIP of some of the files."""
        return f"{part.split}-{part.place}.zip"

    def write(self, path: Path, examples: Iterator[Example]) -> None:
        """A ZIP of some of the files."""
        with zipfile.ZipFile(path, "w") as archive:
            for example in examples:
                name, raw = self._file(example.row, example.image)
                # Not now: the same contents make the same bytes.
                archive.writestr(zipfile.ZipInfo(name), raw)

    def _file(self, row: int, image: np.ndarray) -> tuple[str, bytes]:
        if image.dtype == np.uint8 and image.shape[-1] in (1, 3):
            return self._name(row, "img", "png"), encoded_png(image)
        stem = "img-mean-std-" if self._source.is_moments else "img"
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(image.transpose(2, 0, 1)))
        return self._name(row, stem, "npy"), buffer.getvalue()

    def _name(self, row: int, stem: str, suffix: str) -> str:
        return f"{row // 1000:05d}/{stem}{row:08d}.{suffix}"

    def finish(self, work: Path, out: Path, records: Records, made: Done) -> None:
        """One ZIP of all of them."""
        labels: list[list[Any]] = []
        whole = work / "whole.zip"
        with zipfile.ZipFile(whole, "w") as archive:
            for part, record in records:
                with zipfile.ZipFile(work / self.name(part)) as some:
                    names = zip(some.namelist(), record["labels"], strict=True)
                    for name, (_, label) in names:
                        archive.writestr(zipfile.ZipInfo(name), some.read(name))
                        labels.append([name, label])
            described = {"labels": labels if self._source.num_classes else None}
            described |= {"contents": made.contents}
            text = json.dumps(described)
            archive.writestr(zipfile.ZipInfo("dataset.json"), text)
        os.replace(whole, out)
        shutil.rmtree(work)


def encoded_png(image: np.ndarray) -> bytes:
    """A PNG of an image (H, W, 1 or 3) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(
        buffer, "PNG"
    )
    return buffer.getvalue()
