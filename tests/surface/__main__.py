"""`python -m tests.surface write FILE` writes the surface; `… compare BEFORE AFTER` prints how two of them differ."""

import argparse
from pathlib import Path

from .comparison import agreed, compare


def main() -> int:
    parser = argparse.ArgumentParser(description="What users of FlowKit rely on.")
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write", help="write the surface of the FlowKit that this Python imports")
    writing.add_argument("file", type=Path)
    comparing = commands.add_parser("compare", help="exit 1 when two differ in what is not in agreed.toml")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--wording", action="store_true", help="other wording alone is no difference")
    options = parser.parse_args()
    if options.command == "write":
        from .reading import surface

        options.file.write_text("".join(f"{line}\n" for line in surface()), encoding="utf-8")
        return 0
    before, after = (file.read_text(encoding="utf-8").splitlines() for file in (options.before, options.after))
    found = compare(before, after, agreed())
    if options.wording:
        print(found.of(wording=True), end="")
        found = found.of(wording=False)
    print(found, end="")
    return 1 if found.gone or found.new else 0


if __name__ == "__main__":
    raise SystemExit(main())
