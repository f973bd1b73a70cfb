"""A state to go on from: tensors and a JSON document in one file, with a checksum over both.

Numbers and document belong together whenever the process that writes them dies. What goes on from
such a file takes its numbers as they are, so that one changed bit would be a search or a training
that ends otherwise, without a word: the checksum tells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from amc.errors import AmcError, ArtifactError
from amc.utils.documents import TEXT, Kind, check_fields, fault, parse_json, shown
from amc.utils.files import fingerprint, read_tensors_and_metadata, write_tensors


@dataclass(frozen=True)
class Sealed:
    """A kind of such files.

    Attributes:
        name: Of the format.
        version: What this amc writes and reads.
        what: What a file is, for messages: "the state of a training".
        fields: Of the document.
        advice: What to do about a file that is damaged.
    """

    name: str
    version: int
    what: str
    fields: Mapping[str, Kind]
    advice: str

    def write(self, path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Write a file, atomically.

        Raises:
            StorageError: It cannot be written.
        """
        text = json.dumps(dict(document))
        seal = {"version": self.version, "checksum": _checksum(tensors, text), "document": text}
        # Under one name: safetensors writes several in an order that differs from time to time.
        write_tensors(path, tensors, {self.name: json.dumps(seal)})

    def read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and document of a file that `write` wrote.

        Raises:
            ArtifactError: It is damaged, or of another format or version.
        """
        try:
            tensors, metadata = read_tensors_and_metadata(path, self.what.capitalize())
        except ArtifactError as cause:
            raise ArtifactError(f"{cause} {self.advice}") from cause
        wrong = fault(str(path), ArtifactError, self.advice)
        if self.name not in metadata:
            raise wrong(f"is not {self.what} of this version of amc: it has no {self.name!r}")
        seal = parse_json(metadata[self.name], wrong)
        version = seal.get("version") if isinstance(seal, dict) else seal
        if type(version) is not int or version != self.version:
            raise wrong(f"has version {shown(version)}, this amc reads {self.version}")
        check_fields(seal, {"checksum": TEXT, "document": TEXT}, wrong)
        if seal["checksum"] != _checksum(tensors, seal["document"]):
            raise wrong("is damaged: its content does not have its checksum")
        document = parse_json(seal["document"], wrong)
        if not isinstance(document, dict):
            raise wrong(f"is damaged: expected an object, got {shown(document)}")
        check_fields(document, self.fields, wrong)
        return tensors, document

    def misfit(self, path: Path, said: str) -> AmcError:
        """The error of a file that is whole and still cannot be gone on from."""
        return fault(str(path), ArtifactError, self.advice)(said)


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    named = (part for name in sorted(tensors) for part in (name, tensors[name]))
    return fingerprint(*named, text)
