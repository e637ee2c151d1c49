"""Images in a conversation, as Anthropic's and OpenAI's newer dialect send them.

They are passed on as they came, not looked at: whether a model sees, its backend says. Next:
anthropic.py, responses.py, openai_messages.py for the way out.
"""

from typing import Annotated, Literal

from pydantic import Field, Tag

from moestro.api.chat import Image
from moestro.api.dialect import Part
from moestro.api.openai_bodies import by_type
from moestro.errors import ConfigError


class Base64Source(Part):
    """An image's bytes."""

    type: Literal["base64"]
    media_type: Annotated[str, Field(pattern=r"^[\w.+-]{1,60}/[\w.+-]{1,60}$")]
    data: str


class UrlSource(Part):
    """Where an image is."""

    type: Literal["url"]
    url: str


class FileSource(Part):
    """A file that was uploaded before: refused, nothing is kept here."""

    type: Literal["file"]


class ImageBlock(Part):
    """An image, in Anthropic's words."""

    type: Literal["image"]
    source: Annotated[
        Annotated[Base64Source, Tag("base64")]
        | Annotated[UrlSource, Tag("url")]
        | Annotated[FileSource, Tag("file")],
        by_type("base64", "url", "file"),
    ]


class InputImage(Part):
    """An image, in the words of OpenAI's responses: an address, or a data URL with its bytes."""

    type: Literal["input_image"]
    image_url: str | None = None
    detail: str | None = None


def read_block(block: ImageBlock) -> Image:
    """Return the image; ConfigError if it is not in the request."""
    source = block.source
    if isinstance(source, Base64Source):
        return Image(url=f"data:{source.media_type};base64,{source.data}")
    if isinstance(source, UrlSource):
        return Image(url=source.url)
    raise ConfigError(
        "an image's source is a file, but this server keeps none: send base64 or a url"
    )


def read_input(part: InputImage) -> Image:
    """Return the image; ConfigError if it is not in the request."""
    if part.image_url is None:
        raise ConfigError(
            "an input_image has no image_url, and this server keeps no files: send image_url",
            param="input",
        )
    return Image(url=part.image_url, detail=part.detail)
