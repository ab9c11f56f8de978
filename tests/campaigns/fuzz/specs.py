"""What is written on a command line: numbers, positions, weights, sweeps, names and places."""

from __future__ import annotations

from pathlib import Path

from splinterp.harvest.mixture import open_texts, split_weight
from splinterp.harvest.selection import parse_positions
from splinterp.quantities import format_bytes, format_count, format_seconds, parse_bytes, parse_quantity
from splinterp.store.layout import check_name
from splinterp.store.places import place
from splinterp.train.axes import members, parse_axes
from splinterp.train.settings import TrainOptions

from .kit import Prepared, Target

QUANTITIES = ("20000", "10k", "1M", "2.5B", "1_000_000", "1,000", "0", "-1", "1e3", "١٢", "9" * 15 + "b", "0.5k", " 7 ")
SIZES = ("1GiB", "500MB", "20G", "1.5 TiB", "12", "0", "9" * 15 + "TiB")
POSITIONS = ("last", "5", "1:64", "64:", ":64", "last,5:10,12", ":", "9:5", "999999999")
SWEEPS = (
    "k=1,2,3",
    "k=4\nseed=0,1",
    "lr=1e-3,auto\nmethod=adam",
    "activation=topk,batchtopk",
    "l1=5,1e999",
    "decoder-steps=yes,no",
    "jitter=nan",
)
WEIGHTS = ("a.txt::0.3", "stdlib::2", "x::nan", "::1", "a::b::1e400", "hub/name:config::1")
NAMES = ("blocks.5.hook_resid_post", "..", "a/b", "C:x", ".lock", "zarr.json", "\ud800", "__x", "a" * 300)
PLACES = ("acts.zarr", "s3:/x", "file://a", "memory://bucket/a", "memory://", "x://y", "", "~", "local://a")


def quantities(folder: Path) -> Prepared:
    def one(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        for parse, tell in ((parse_bytes, format_bytes), (parse_quantity, format_count)):
            value = parse(text)
            assert isinstance(value, int)
            assert value >= 1
            tell(value)
            format_seconds(value)

    return Prepared([text.encode() for text in (*QUANTITIES, *SIZES)], one)


def names(folder: Path) -> Prepared:
    """The first byte chooses among positions, weights, names and places."""
    groups = (POSITIONS, WEIGHTS, NAMES, PLACES)

    def one(data: bytes) -> None:
        text = data[1:].decode("utf-8", "surrogateescape")
        match data[:1]:
            case b"0":
                positions = parse_positions(text, 128, bos_kept=False)
                assert parse_positions(str(positions), 128, bos_kept=True) == positions
            case b"1":
                name, weight = split_weight(text)
                assert 0 < weight < float("inf")
                if "/" not in name and "~" not in name and ":" not in name:
                    open_texts([text, text])
            case b"2":
                check_name(text, "site")
                assert (folder / text).resolve().parent == folder.resolve()
            case _:
                if "://" not in text or text.startswith("memory://"):
                    place(text)

    seeds = [f"{i}{text}".encode("utf-8", "surrogatepass") for i, group in enumerate(groups) for text in group]
    return Prepared(seeds, one)


def sweeps(folder: Path) -> Prepared:
    """A line an axis; the first may be options of the sweep's, as NAME=VALUE with spaces between them."""

    def one(data: bytes) -> None:
        axes = parse_axes(data.decode("utf-8", "surrogateescape").split("\n"))
        for member in members(TrainOptions(), axes, 8, 1000):
            check_name(member.name.replace("/", "\0"), "run")  # it becomes a directory's

    return Prepared([text.encode() for text in SWEEPS], one)


TARGETS = (
    Target("quantities", "numbers and sizes: 10k, 5M, 2GiB", quantities),
    Target("names", "positions, weights of a mixture, names of sites, places of stores", names),
    Target("sweeps", "a sweep's axes, and what it trains", sweeps),
)
