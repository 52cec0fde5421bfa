"""Run the demo: `python -m demo [--mails FOLDER] [--report FILE]`; what `make demo` does."""

import argparse
from pathlib import Path

from demo.run import run_demo
from local_stack.supervisor import StackError, run


def main() -> None:
    """Run the demo, and end with exit code 1 unless every claim holds."""
    parser = argparse.ArgumentParser(
        prog="demo",
        description="Start everything, send messages through both flows, tell the story, and check it against"
        " Microsoft's ledger.",
    )
    parser.add_argument(
        "--mails", type=Path, metavar="FOLDER", help="a folder with .eml files, at any depth (the demo's own messages)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what became of each message here, as JSON")
    options = parser.parse_args()
    holds = False

    async def program() -> None:
        nonlocal holds
        if options.mails and not options.mails.is_dir():
            raise StackError(f"There is no folder {options.mails}.")
        holds = await run_demo(options.mails, options.report)

    run(program())
    if not holds:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
