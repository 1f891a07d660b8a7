#!/usr/bin/env python3
"""Counts instructions with callgrind, and compares them with the kept figures.

    benches/instructions.py [--keep] [--check] [--out DIR] [FILTER]

Unlike times, the counts hardly depend on how busy the machine is. callgrind's files are left
in DIR, for callgrind_annotate, and the counts as counts.json.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
KEPT = HERE / "instructions.json"
CHANGE = 0.05
# What a whole gateway does beside its requests depends a little on the time they take.
CHANGE_OF_GATEWAY = 0.10

VALGRIND = ["valgrind", "--tool=callgrind", "--fair-sched=yes"]


def main():
    args = arguments()
    # What an earlier run has left is not this one's.
    (args.out / "counts.json").unlink(missing_ok=True)
    if shutil.which("valgrind") is None:
        print("valgrind is missing: no instructions are counted.")
        print("install it (apt-get install valgrind, dnf install valgrind) and run this again.")
        return 0
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    operations, gateway = build("instructions"), build("gateway")
    counted = {}
    args.out.mkdir(parents=True, exist_ok=True)
    for binary, count in ((operations, operation), (gateway, whole)):
        for name, unit, *runs in listed(binary):
            if args.filter in name:
                counted[name] = count(binary, name, args.out, *map(int, runs))
                print(line(name, unit, counted[name], kept.get(name)), flush=True)
    write(args.out / "counts.json", counted)
    if args.keep:
        write(KEPT, {**kept, **counted})
    slower = any(verdict(name, n, kept.get(name)) == "SLOWER" for name, n in counted.items())
    return int(args.check and slower)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("filter", nargs="?", default="", help="part of a name")
    parser.add_argument("--keep", action="store_true", help="compare with these from now on")
    parser.add_argument("--check", action="store_true", help="fail if a figure has risen")
    out = HERE.parent / "target" / "instructions"
    parser.add_argument("--out", metavar="DIR", type=pathlib.Path, default=out)
    return parser.parse_args()


def build(bench):
    """The benchmark's binary, and the gateway's beside it."""
    cargo = os.environ.get("CARGO", "cargo").split()
    command = [*cargo, "bench", "--no-run", "--bench", bench, "--message-format=json"]
    built = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(text) for text in built.stdout.splitlines() if text.startswith("{")]
    return next(
        message["executable"]
        for message in messages
        if message.get("executable") and message["target"]["name"] == bench
    )


def listed(binary):
    lines = subprocess.run([binary], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [text.split() for text in lines.splitlines()]


def operation(binary, name, out):
    """Instructions of one unit, of the thread that a request runs on."""
    file = out / f"{name.replace('/', '.')}.callgrind"
    command = [*VALGRIND, "--toggle-collect=instructions::counted*", f"--callgrind-out-file={file}"]
    done = run([*command, binary, name])
    units = int(done.stdout.split("units ")[1])
    return round(total(file) / units)


def whole(binary, name, out, few, many):
    """Instructions of one request, of all threads: what starting and ending costs cancels out."""
    totals = []
    for requests in (few, many):
        file = out / f"{name.replace('/', '.')}.{requests}.callgrind"
        command = [*VALGRIND, f"--callgrind-out-file={file}"]
        run([binary, name, str(requests), *command])
        totals.append(total(file))
    return round((totals[1] - totals[0]) / (many - few))


def write(file, counts):
    file.write_text(json.dumps(counts, indent=2) + "\n")


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done


def total(file):
    lines = file.read_text().splitlines()
    return sum(int(text.split()[1]) for text in lines if text.startswith("totals:"))


def line(name, unit, count, before):
    change = "" if before is None else f"{(count - before) / before:+8.1%}"
    return f"{name:32} {count:>14,} /{unit:8} {change} {verdict(name, count, before)}".rstrip()


def verdict(name, count, before):
    bound = CHANGE_OF_GATEWAY if name.startswith("gateway/") else CHANGE
    if before is None:
        return "new"
    if abs(count - before) <= bound * before:
        return ""
    return "SLOWER" if count > before else "faster"


if __name__ == "__main__":
    sys.exit(main())
