"""
Write the files that tell others what the events and the HTTP API are.

    make contracts                          write schemas/, FIELDS.md, asyncapi.json and openapi.json
    make contracts ARGS=--check             write nothing; fail when a file is not what the code says
    make contracts ARGS=--release           write, and promise: copy schemas/ to released/ unless that breaks a reader
"""

import argparse
import sys

from generator.generated_files import check, release, write


def main() -> int:
    """Do what the command line asks; return the exit status."""
    parser = argparse.ArgumentParser(prog="make contracts", description="Write what tells others about the contracts.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of date")
    action.add_argument("--release", action="store_true", help="also promise the schemas: copy them to released/")
    asked = parser.parse_args()
    if asked.check:
        return _report(check(), "Run: make contracts")
    write()
    if asked.release:
        return _report(release(), "Nothing was released. Make v2 beside this version: see contracts/README.md.")
    return 0


def _report(problems: list[str], remedy: str) -> int:
    if problems:
        sys.stderr.write("\n".join([*problems, remedy]) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
