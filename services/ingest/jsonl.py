"""One line of our own feed format (demo/README.md) -> a draft. Pure."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import unquote

from services.ingest.draft import (
    Attachment,
    Draft,
    Retraction,
    identifier,
    language,
    parse_object,
    permalink,
    string,
    time,
)
from shared.errors import InvalidMessage

# Where it was posted, as the big platforms and forums write it: .../hashtag/Solfest/..., .../r/LumioOne/...
_TAG = re.compile(r"/(?:hashtags?|tags?|explore/tags)/([^/?#]+)", re.IGNORECASE)
_COMMUNITY = re.compile(r"/(?:r|c|groups|community)/([^/?#]+)", re.IGNORECASE)


def parse(line: bytes) -> Draft | Retraction:
    """Raises InvalidMessage when it is no post, or cannot be told from others or placed in time."""
    post = parse_object(line)
    platform = identifier(post.get("platform"), "platform").lower()
    id = identifier(post.get("id"), "id")
    deleted = post.get("deleted")
    if not isinstance(deleted, bool | None):
        raise InvalidMessage("deleted is neither true nor false")
    if deleted:
        return Retraction(platform, id)
    edited_at = post.get("edited_at")
    media = post.get("media")
    if media is not None and not isinstance(media, list):
        raise InvalidMessage("media is not a list")
    url = permalink(post.get("url"))
    author = post.get("author")
    return Draft(
        platform=platform,
        id=id,
        created_at=time(post.get("created_at"), "created_at"),
        author=identifier(author, "author") if author not in (None, "") else "",
        text=string(post.get("text"), "text"),
        language=language(post.get("lang")),
        url=url,
        attachments=tuple(_attachment(item) for item in media or ()),
        about=posted_in(url),
        edited_at=None if edited_at is None else time(edited_at, "edited_at"),
    )


def posted_in(url: str) -> str:
    """The hashtag page or community a permalink names, as words: "#Solfest", "LumioOne"; "" for none."""
    return " ".join(
        [f"#{unquote(tag)}" for tag in _TAG.findall(url)]
        + [unquote(community) for community in _COMMUNITY.findall(url)]
    )


def _attachment(item: object) -> Attachment:
    path = string(item, "an item of media")
    if address := permalink(path):
        return Attachment(source_url=address)
    if not path or PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive:
        raise InvalidMessage(f"media path is not below the media folder: {path[:80]!a}")
    if ".." in PurePosixPath(path.replace("\\", "/")).parts:
        raise InvalidMessage(f"media path leads out of the media folder: {path[:80]!a}")
    return Attachment(path=path)
