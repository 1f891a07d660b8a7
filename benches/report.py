#!/usr/bin/env python3
"""Writes the figures of the last `make bench` to benches/results/<date>.md."""

import datetime
import json
import os
import pathlib
import platform
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))
COUNTS = HERE.parent / "target" / "instructions" / "counts.json"
UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns"))


def main():
    times, counts = criterion(), json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    today = datetime.date.today().isoformat()
    names = list(dict.fromkeys([*counts, *(name for name in times if "-threads" not in name)]))
    rows = [f"| {name} | {' | '.join(row(name, times, counts))} |" for name in names]
    text = f"""# {today}

{machine()}. Commit {output("git", "describe", "--always", "--dirty")}, {output("rustc", "--version")}.
Times are medians. What is counted is explained in [README.md](../README.md).

| operation | time | 8 threads | instructions |
|---|---:|---:|---:|
""" + "\n".join(rows)
    file = HERE / "results" / f"{today}.md"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text + "\n")
    print(f"{file.relative_to(HERE.parent)} is written")


def criterion():
    """Nanoseconds by name, of the last run."""
    found = {}
    for file in (TARGET / "criterion").glob("**/new/benchmark.json"):
        name = json.loads(file.read_text())["full_id"]
        estimates = json.loads(file.with_name("estimates.json").read_text())
        found[name] = estimates["median"]["point_estimate"]
    return found


def row(name, times, counts):
    threads = next((ns for other, ns in times.items() if other.startswith(f"{name}/")), None)
    count = counts.get(name)
    return [time(times.get(name)), time(threads), f"{count:,}" if count else ""]


def time(ns):
    if ns is None:
        return ""
    size, unit = next((size, unit) for size, unit in UNITS if ns >= size or size == 1)
    return f"{ns / size:.3g} {unit}"


def machine():
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [text.split(":")[1].strip() for text in lines if text.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def output(*command):
    done = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
