"""Damage: bits, ranges, fields, and JSON that says something else; checksums that are mended afterwards."""

import hashlib
import io
import json
import re
import struct
import zipfile
import zlib
from contextlib import suppress

from lowrank_ldu.adapters.format import sealed

INTEGERS = [-(2**31), -2, -1, 0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
VALUES = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 1e308, -1e-320, float("nan"), float("inf"), "", "a",
    "a" * 5000, "\ud800", "\x1b[31m", "(a+)+b", "../../etc/passwd", "/dev/zero", [], {}, [[]], [0], {"a": 1},
    [[1, 2], 3],
]  # fmt: skip


# What text of JSON may hold and Python's writer does not write.
NUMBERS = [b"NaN", b"-Infinity", b"1e999", b"-0", b"0" * 20, b"1" * 5000, b"1.5e-400"]
NO_TEXT = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\\ud800", b"\\uDC00\\ud800", b"\\u0000", b"\0", b"\n"]
DEEP = [b"[" * 100_000, b"[" * 2000 + b"]" * 2000, b'{"a":' * 100_000, b'{"a":' * 2000 + b"1" + b"}" * 2000]


# What taking apart raises on what an earlier change has damaged.
_NOT_TAKEN_APART = (
    AttributeError,
    EOFError, LookupError, NotImplementedError, OSError, OverflowError, RecursionError, RuntimeError, TypeError,
    ValueError, struct.error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def flip(data, random):
    place = random.randrange(len(data))
    data[place] ^= 1 << random.randrange(8)


def overwrite(data, random):
    start = random.randrange(len(data))
    length = min(random.choice([1, 2, 4, 8, 64, 512]), len(data) - start)
    data[start : start + length] = random.choice([bytes(length), b"\xff" * length, random.randbytes(length)])


def delete(data, random):
    start = random.randrange(len(data))
    del data[start : start + random.choice([1, 2, 8, 64, 1024])]


def repeat(data, random):
    start = random.randrange(len(data))
    part = data[start : start + random.choice([1, 8, 64, 1024])]
    data[start:start] = part * random.choice([1, 1, 2, 50])


def cut(data, random):
    del data[random.randrange(len(data)) :]


def grow(data, random):
    data += random.choice([b"\0" * 100, b"{" * 100, random.randbytes(100)])


def number(data, random):
    """Write a number over four or eight bytes that may be a size or a count."""
    size = random.choice([4, 8])
    place = random.randrange(max(len(data) - size, 1))
    if random.random() < 0.7:  # sizes stand in headers and in the directories of archives
        place = random.choice([place % 256, max(len(data) - 256, 0) + place % 256]) % max(len(data) - size, 1)
    value = random.choice(INTEGERS) % 2 ** (8 * size)
    data[place : place + size] = value.to_bytes(size, random.choice(["little", "big"]))


BYTES = [flip, flip, overwrite, delete, repeat, cut, grow, number, number]


def change_value(value, random):
    """Return JSON with one thing in it changed."""
    places = list(_places(value))
    holder, key = random.choice(places) if places else (None, None)
    if holder is None:
        return random.choice(VALUES)
    what = random.random()
    if what < 0.15:
        del holder[key]
    elif what < 0.25 and isinstance(holder, dict):
        holder[random.choice(["", "a", "\ud800", "x" * 300, "__class__", "metadata"])] = holder[key]
    elif what < 0.3:
        deep = 1
        for _ in range(random.choice([10, 500, 3000])):
            deep = [deep]
        holder[key] = deep
    else:
        holder[key] = random.choice([*VALUES, holder[key]])
    return value


def _places(value):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


def dumped(value):
    """JSON as bytes, lone surrogates and numbers that are none included; None where it is too deep."""
    with suppress(RecursionError, ValueError):
        return json.dumps(value).encode("utf-8", "surrogatepass")
    return None


def change_json(data, random):
    value = json.loads(data)
    for _ in range(random.choice([1, 1, 2, 4])):
        value = change_value(value, random)
    return dumped(value) or data


def break_json(data, random):
    """Write into JSON's text what no value is written as: equal keys, other encodings, numbers that are none, depth."""
    texts, numbers = list(re.finditer(rb'"[^"\\]*"', data)), list(re.finditer(rb"(?<=[:,\[])[ ]?-?[0-9.]+", data))
    ways = ["mark", "wide"] + ["text"] * 4 * bool(texts) + ["number"] * 2 * bool(numbers) + ["deep"] * bool(numbers)
    members = [text for text in texts if data[text.end() : text.end() + 1] == b":"]
    way = random.choice(ways + ["twice"] * 4 * bool(members))
    if way == "mark":
        return b"\xef\xbb\xbf" + data
    if way == "wide":
        return data.decode("utf-8", "replace").encode(random.choice(["utf-16", "utf-16-le", "utf-32-be", "utf-8-sig"]))
    if way == "twice":
        member = random.choice(members)
        return data[: member.start()] + member[0] + b":" + dumped(random.choice(VALUES)) + b"," + data[member.start() :]
    found = random.choice(texts if way == "text" else numbers)
    if way == "text":
        place = random.randrange(found.start() + 1, found.end())
        return data[:place] + random.choice(NO_TEXT) + data[place:]
    return data[: found.start()] + random.choice(NUMBERS if way == "number" else DEEP) + data[found.end() :]


def change_text(data, random):
    """Change what JSON says, or how it says it."""
    return random.choice([change_json, change_json, break_json])(data, random)


def change_header(data, random):
    """Change the JSON that a safetensors file begins with, and its length."""
    (length,) = struct.unpack("<Q", data[:8])
    header = change_text(data[8 : 8 + length], random)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def hollow(data, random):
    """Take the values of some tensors away, of shapes with a side of none and others of any length."""
    (length,) = struct.unpack("<Q", data[:8])
    header, values, kept = json.loads(data[8 : 8 + length]), data[8 + length :], b""
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        part = values[first:last]
        if random.random() < 0.6:
            sides = len(entry["shape"]) or 1
            entry["shape"] = [random.choice([1, 8, 2**20, 2**31, 2**40]) for _ in range(sides)]
            entry["shape"][random.randrange(sides)] = 0
            part = b""
        entry["data_offsets"] = [len(kept), len(kept) + len(part)]
        kept += part
    text = dumped(header)
    return struct.pack("<Q", len(text)) + text + kept


def change_member(data, random):
    """Change a member of an archive, with a checksum that fits."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as whole, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        members = whole.infolist()
        changed = random.choice(members).filename
        for member in members:
            content = bytearray(whole.read(member))
            if member.filename == changed and content:
                random.choice(BYTES)(content, random)
            archive.writestr(zipfile.ZipInfo(member.filename), bytes(content))  # not at the time that it is
    return stream.getvalue()


def with_sum(text):
    """A record of a journal as a line, with its checksum."""
    return b'%s,"crc32":"%08x"}' % (text[:-1], zlib.crc32(text))


def change_lines(data, random):
    """Change a line of a journal, with a checksum that fits."""
    lines = data.splitlines()
    place = random.randrange(len(lines))
    record = json.loads(lines[place])
    record.pop("crc32", None)
    text = change_text(json.dumps(record, separators=(",", ":")).encode(), random)
    lines[place] = with_sum(text)
    if random.random() < 0.1:
        lines.insert(random.randrange(len(lines)), random.choice(lines))
    return b"\n".join(lines) + b"\n"


def seal(files):
    """Mend the checksums of an adapter, so that what was changed is looked at."""
    with suppress(AttributeError, ValueError, KeyError, TypeError, RecursionError):
        config = json.loads(files["adapter.json"])
        config.pop("config_sha256", None)
        config["weights_sha256"] = hashlib.sha256(files["adapter.safetensors"]).hexdigest()
        files["adapter.json"] = sealed(config)


def mutate(files, random):
    """Return the files of a format with damage to one or two of them, and what was done."""
    whole, files, done = files, dict(files), []
    for _ in range(random.choice([1, 1, 1, 2])):
        name = random.choice(sorted(files))
        data = files[name]
        ways = ["bytes"]
        ways += ["json"] * 3 if name.endswith(".json") else []
        ways += ["header", "header", "hollow"] if name.endswith(".safetensors") else []
        ways += ["member"] if data[:2] == b"PK" else []
        ways += ["lines"] * 2 if name == "journal" else []
        way = random.choice(ways)
        try:
            files[name] = _changed(way, data, random)
        except _NOT_TAKEN_APART:
            way = "bytes"  # an earlier change left nothing that could be taken apart
            files[name] = _changed(way, data, random)
        done.append(f"{way} of {name}")
    if random.random() < 0.1:
        other, _ = mutate(whole, random)
        name = random.choice(sorted(files))
        first, second = files[name], other[name]
        files[name] = first[: random.randrange(len(first) + 1)] + second[random.randrange(len(second) + 1) :]
        done.append(f"splice of {name}")
    if "adapter.json" in files and random.random() < 0.8:
        seal(files)
        done.append("sealed")
    return files, done


def _changed(way, data, random):
    structured = {
        "json": change_text, "header": change_header, "hollow": hollow, "member": change_member, "lines": change_lines,
    }  # fmt: skip
    if way in structured:
        return structured[way](data, random)
    changed = bytearray(data or b"\0")
    for _ in range(random.choice([1, 1, 2, 8])):
        if not changed:
            break
        random.choice(BYTES)(changed, random)
    return bytes(changed)
