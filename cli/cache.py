"""`vfz cache`: the group of commands about caches that are there. One file each."""

from __future__ import annotations

from vfz.cli.lazy import Commands, LazyGroup

COMMANDS: Commands = {
    "ls": ("vfz.cli.cache_info", "ls_command", "One line for every cache in a folder."),
    "info": ("vfz.cli.cache_info", "info_command", "What a cache is, what it holds, and how to open it."),
    "verify": ("vfz.cli.cache_verify", "verify_command", "Compare every byte of a cache with what was written."),
    "convert": ("vfz.cli.cache_convert", "convert_command", "Another precision or store, without encoder or videos."),
    "repair": (
        "vfz.cli.cache_repair",
        "repair_command",
        "Remove what is damaged or left over; extract makes it again.",
    ),
}
EXAMPLES = ("vfz cache ls", "vfz cache info", "vfz cache verify caches/k400-vit_small-0123456789ab")

cache_group = LazyGroup(
    "cache",
    commands=COMMANDS,
    help="List, describe, verify, convert and repair caches.",
    epilog="\b\nExample:\n" + "\n".join(f"  {line}" for line in EXAMPLES),
)
