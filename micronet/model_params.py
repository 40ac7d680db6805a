"""The parts of `params.yaml` that say which network is trained, and from which weights."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from micronet.errors import shown
from micronet.faults import said
from micronet.sections import Place, Section


class Model(Section):
    """An architecture by name, or by name and settings (`models.build` knows them)."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    name: str = Field(description="a file in models/, or one of the sizes named in it")

    def spec(self) -> dict[str, Any]:
        """The plain dict that `models.build` takes."""
        return self.model_dump(exclude_none=True)


class OwnModel(Section):
    """The user's own network: a class in a file in `networks/`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)
    file: Place = Field(description="such as my_net.py, in networks/")
    kind: str = Field(alias="class", description="the name of the class, derived from torch.nn.Module")
    settings: dict[str, Any] = Field(default_factory=dict, description="arguments of its constructor")

    def spec(self) -> dict[str, Any]:
        """The plain dict that `models.build` takes."""
        return self.model_dump()


def _form(model: Any) -> str:
    """Which of the two forms of a model is given."""
    own = "file" in model if isinstance(model, dict) else isinstance(model, OwnModel)
    return "of a file" if own else "of a name"


AnyModel = Annotated[Annotated[Model, Tag("of a name")] | Annotated[OwnModel, Tag("of a file")], Discriminator(_form)]


class Start(Section):
    """A checkpoint, or weights from elsewhere, to start training from."""

    file: Place = Field(
        description="path from the folder that the stages run in, such as release/NAME.safetensors; a checkpoint, or a "
        "plain state_dict: .safetensors, .pt, .pth"
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="of the file: if the params name different content, the stages run again"
    )

    @model_validator(mode="before")
    @classmethod
    def _sha256_with_the_way_to_it(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("file"), str):
            return given
        digest = given.get("sha256")
        if isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest):
            return given
        got = said(digest) if "sha256" in given else "nothing"
        command = f"sha256sum {shown(shlex.quote(given['file']), 60)}"
        raise ValueError(f"sha256: must be the 64 digits and letters that `{command}` prints (got {got})")
