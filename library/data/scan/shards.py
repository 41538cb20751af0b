"""Scans tar shards, as WebDataset's tools write them: images and captions, from a shard's index where that holds."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from library.cli.errors import UserError, UserErrors, listed, plural, raise_together
from library.cli.jobs.processes import rank_and_count
from library.cli.launcher import local_rank_and_count
from library.data.captions import caption_from_text, has_more_lines
from library.data.config.config import SubsetConfig
from library.data.images.image_files import IMAGE_ENDINGS, NoImages, UnreadableImage
from library.data.real_paths import RealPaths
from library.data.records import ImageRecord, Shard, ShardMember, Size
from library.data.scan.metadata_file import joined_caption
from library.data.scan.scan_pool import map_in_chunks
from library.data.scan.shard_index import index_path, read_shard_index, write_shard_index
from library.data.scan.shard_members import ShardContents, ShardImage, image_size, member_path, read_shard
from library.data.scan.shard_paths import find_shards
from library.data.storage import MissingShard, UnreadableShard, file_state, is_url, opened_shard, read_member

logger = logging.getLogger(__name__)

_MAX_NAMES_IN_WARNING = 5
_MAX_NAMES_IN_ERROR = 200
_POOL_FROM = 4  # shards: one has thousands of images
# a shard that was modified in the last moments can change again without a new mtime
_SETTLED_NS = 2 * 10**9

Scanned = tuple[Shard, ShardContents]


def scan_shards(subset: SubsetConfig, subset_index: int, *, skip_unreadable: bool = False) -> list[ImageRecord]:
    """The images of the subset's shards, in the order of shards and of the files in them.

    Only headers of tar files and of images, and captions, are read, and of a shard with an index only that.
    `skip_unreadable`: unreadable images are skipped, with a warning. Raises `UserError` with all errors, `NoImages` if
    there are none.
    """
    paths = find_shards(subset.shards, named_shards(subset))
    num_urls = sum(map(is_url, paths))
    if num_urls and subset.shard_cache_dir is None:
        logger.warning(
            "%s: %s behind URLs without shard_cache_dir: read whole at each start; --shard_cache_dir keeps an index",
            named_shards(subset), plural(num_urls, "shard"),
        )  # fmt: skip
    scan = functools.partial(_scan_chunk, subset.caption_extension, subset.shard_cache_dir)
    order = own_share_first(paths)
    by_path = dict(zip(order, map_in_chunks(scan, order, _POOL_FROM), strict=True))
    found = [by_path[path] for path in paths]
    raise_together(_problems([each for each in found if isinstance(each, UserError)], named_shards(subset)))
    scanned = [each for each in found if not isinstance(each, UserError)]
    del found, by_path
    _check_unreadable(subset, scanned, skip_unreadable)
    images = [(shard, image) for shard, contents in scanned for image in contents.images if image.size is not None]
    _warn_without_image(subset, scanned)
    if not images:
        raise _no_images(subset, scanned)
    _report_captions(subset, images)
    return _make_records(subset, subset_index, images)


def own_share_first(paths: Sequence[str]) -> list[str]:
    """The order in which this process of a run reads its shards, so that each is indexed by one of them.

    First its share, then from their ends those of the others, of the same machine first. These have their index by
    then, or are made one: nobody waits for a process that is slow, has failed, or writes its indexes elsewhere.
    """
    rank, count = rank_and_count()
    local_rank, num_local = local_rank_and_count()
    order = list(paths[rank::count])
    for step in range(num_local):
        order += reversed(paths[(local_rank + step) % num_local :: num_local])
    return list(dict.fromkeys(order))


def named_shards(subset: SubsetConfig) -> str:
    """How the user gave the shards."""
    return "--shards" if subset.key_path.startswith("--") else f"{subset.key_path}.shards"


def _scan_chunk(caption_extension: str, cache_dir: str | None, paths: Sequence[str]) -> list[Scanned | UserError]:
    found: list[Scanned | UserError] = []
    for path in paths:
        # a server that does not answer may take long for each
        is_out_of_reach = bool(found) and isinstance(found[-1], UnreadableShard)
        found.append(found[-1] if is_out_of_reach else _scan_shard(path, caption_extension, cache_dir))
    return found


def _problems(errors: Sequence[UserError], named: str) -> Iterator[UserError]:
    """The errors of shards: missing ones as one, and one of those that cannot be reached."""
    missing = [each.url for each in errors if isinstance(each, MissingShard)]
    if len(missing) > 1:
        names = listed(missing, _MAX_NAMES_IN_WARNING)
        yield UserError(f"{named}: {plural(len(missing), 'shard')} do not exist: {names}", hint="correct the URL")
    out_of_reach = [each for each in errors if isinstance(each, UnreadableShard)]
    yield from out_of_reach[:1]
    for each in errors:
        if not isinstance(each, UnreadableShard) and not (isinstance(each, MissingShard) and len(missing) > 1):
            yield each


def _scan_shard(path: str, caption_extension: str, cache_dir: str | None) -> Scanned | UserError:
    started = time.time_ns()
    try:
        num_bytes, state = file_state(path)
        mtime_ns = 0 if is_url(path) else os.stat(path).st_mtime_ns
    except OSError as error:
        return UserError(f"shard {path} cannot be read: {error.strerror}", hint="make it readable")
    except UserError as error:
        return error
    base = _cache_base(path, cache_dir)
    shard = Shard(path, num_bytes, mtime_ns, "", base)
    facts = {"num_bytes": num_bytes, "state": state, "caption_extension": caption_extension}
    contents = None if base is None else read_shard_index(index_path(base), facts)
    if contents is None:
        read = read_shard(shard, caption_extension)
        if isinstance(read, UserError):
            return read
        contents = read
        try:
            _try_a_range(shard, contents)
        except UserError as error:
            return error
        is_complete = all(isinstance(each, UnreadableImage) for each in contents.unreadable.values())
        if base is not None and is_complete and mtime_ns < started - _SETTLED_NS:
            _write_index(index_path(base), facts, contents)
    else:
        _examine_again(shard, contents)
    return replace(shard, identity=contents.identity), contents


def _try_a_range(shard: Shard, contents: ShardContents) -> None:
    """Raises `UserError` where a web server sends a whole shard when it is asked for an image."""
    if is_url(shard.path) and contents.images:
        read_member(ShardMember(shard, contents.images[0].offset, min(1, contents.images[0].num_bytes)))


def _cache_base(path: str, cache_dir: str | None) -> str | None:
    """Beside the shard, or in the folder of caches under a name that shards of the same name elsewhere do not have."""
    if cache_dir is None:
        return None if is_url(path) else path
    full = path if is_url(path) else RealPaths().file(path)
    digest = hashlib.blake2b(os.fsencode(full), digest_size=4).hexdigest()
    return os.path.join(cache_dir, f"{Path(path.partition('?')[0]).name}-{digest}")


def _write_index(path: Path, facts: dict, contents: ShardContents) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shard_index(path, facts, contents)
    except OSError as error:
        logger.warning(
            "the shard index %s cannot be written: %s; shard_cache_dir gives another folder", path, error.strerror
        )


def _examine_again(shard: Shard, contents: ShardContents) -> None:
    """The images that could not be read when the index was made: a reader may have been installed."""
    for number, image in enumerate(contents.images):
        if image.size is None:
            try:
                with opened_shard(shard.path) as file:
                    size, _ = image_size(shard, file, image.name, (image.offset, image.num_bytes))
                contents.images[number] = image._replace(size=size)
            except UserError as error:
                contents.unreadable[image.name] = error


def _check_unreadable(subset: SubsetConfig, scanned: Sequence[Scanned], skip_unreadable: bool) -> None:
    problems = [error for _, contents in scanned for error in contents.unreadable.values()]
    if not problems:
        return
    if not skip_unreadable or not all(isinstance(each, UnreadableImage) for each in problems):
        raise UserErrors([each for each in problems if not (skip_unreadable and isinstance(each, UnreadableImage))])
    names = [member_path(shard.path, name) for shard, contents in scanned for name in contents.unreadable]
    logger.warning(
        "%s: skipping %s: %s", named_shards(subset), plural(len(names), "unreadable image"),
        listed(names, _MAX_NAMES_IN_ERROR), extra={"details": [str(each) for each in problems]},
    )  # fmt: skip


def _warn_without_image(subset: SubsetConfig, scanned: Sequence[Scanned]) -> None:
    names = [member_path(shard.path, key) for shard, contents in scanned for key in contents.without_image]
    if names:
        logger.warning(
            "%s: %s without an image (%s): %s; what follows the first dot of a name is its ending",
            named_shards(subset), plural(len(names), "sample"), " ".join(IMAGE_ENDINGS),
            listed(names, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip


def _no_images(subset: SubsetConfig, scanned: Sequence[Scanned]) -> NoImages:
    names = listed([shard.path for shard, _ in scanned], _MAX_NAMES_IN_WARNING)
    return NoImages(
        f"{named_shards(subset)}: no images in {names}",
        hint=f"images are files named <sample>.<ending>, with one of {' '.join(IMAGE_ENDINGS)}",
    )


def _report_captions(subset: SubsetConfig, images: Sequence[tuple[Shard, ShardImage]]) -> None:
    """Where captions come from, and those that are missing, empty or longer than what is used."""
    missing, empty, longer = [], [], []
    endings: Counter[str] = Counter()
    for shard, image in images:
        if image.caption is None or image.caption_name is None:
            missing.append(member_path(shard.path, image.name))
            continue
        endings[image.caption_name[image.caption_name.rindex(".") :]] += 1
        if not any(map(str.strip, _texts(image))):
            empty.append(member_path(shard.path, image.caption_name))
        elif not subset.enable_wildcard and any(
            has_more_lines(text.encode("utf-8", "replace")) for text in _texts(image)
        ):
            longer.append(member_path(shard.path, image.caption_name))
    named = named_shards(subset)
    if endings:
        logger.info("%s: captions from %s", named, ", ".join(f"{count} {end}" for end, count in endings.most_common()))
    if missing and subset.class_tokens:
        logger.info("%s: the caption of %s is the class tokens %r", named, _count(missing, images), subset.class_tokens)
    elif missing:
        logger.warning(
            "%s: %s have neither a %s, .txt or .caption file nor caption or tags in a .json file, and no class tokens,"
            " their caption is empty: %s; write the captions into the shards, or set caption_extension", named,
            _count(missing, images), subset.caption_extension, listed(missing, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip
    if empty:
        logger.warning("%s: %s: %s", named, plural(len(empty), "empty caption"), listed(empty, _MAX_NAMES_IN_WARNING))
    if longer:
        logger.warning(
            "%s: only the first line of %s is used: %s; put captions on one line, or set enable_wildcard to draw one"
            " of the lines", named, plural(len(longer), "caption"), listed(longer, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip


def _count(names: Sequence[str], images: Sequence[tuple[Shard, ShardImage]]) -> str:
    return f"{len(names)} of {plural(len(images), 'image')}"


def _texts(image: ShardImage) -> list[str]:
    return [image.caption] if isinstance(image.caption, str) else [text for text in image.caption or () if text]


def _caption(image: ShardImage, subset: SubsetConfig) -> str:
    if isinstance(image.caption, str):
        return caption_from_text(image.caption, subset.enable_wildcard)
    caption = None
    if image.caption is not None:
        text, tags = image.caption
        caption = joined_caption(text, tags, subset)
    return (subset.class_tokens or "") if caption is None else caption


def _make_records(
    subset: SubsetConfig, subset_index: int, images: Sequence[tuple[Shard, ShardImage]]
) -> list[ImageRecord]:
    sizes: dict[Size, Size] = {}  # one object per size: there are few sizes and many images
    return [
        ImageRecord(
            image.name.removeprefix("./"),
            member_path(shard.path, image.name),
            sizes.setdefault(image.size, image.size),
            shard.mtime_ns,
            _caption(image, subset),
            subset.num_repeats,
            subset_index,
            subset.is_reg,
            num_bytes=image.num_bytes,
            member=ShardMember(shard, image.offset, image.num_bytes),
        )
        for shard, image in images
        if image.size is not None
    ]
