"""The real `tollbar` in front of the real scripted provider, and clients for both.

The clients are the official SDKs with nothing changed but `base_url` and `api_key`. What they
should see comes from the provider (told by `provider.script`), what the provider saw is read back
from it (`provider.calls`).
"""

import base64
import hashlib
import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

# The tests' clients are built from arguments alone, and reach 127.0.0.1 without a proxy.
for name in list(os.environ):
    if name.startswith(("OPENAI_", "ANTHROPIC_")):
        del os.environ[name]
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"

import anthropic
import openai
import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "debug"

KEY = "tb-sdk-test-key"
LIMITED_KEY = "tb-sdk-limited-key"  # only `gpt*` and `claude*`
EXPIRED_KEY = "tb-sdk-expired-key"
POOR_KEY = "tb-sdk-poor-key"  # a budget that pays for nothing
# One request per minute each, so that one test does not use up the other's.
SLOW_KEYS = {"openai": "tb-sdk-slow-key-1", "anthropic": "tb-sdk-slow-key-2"}
PROVIDER_KEY = "sk-the-providers-own-key"

# Each has one target, `sim-` and its own name, so that a test can script it alone.
OPENAI_MODELS = ["gpt", "embed", "image", "audio", "secret", "flaky", "limited", "waiting"]
ANTHROPIC_MODELS = [
    "claude", "claude-secret", "claude-flaky", "claude-limited", "claude-waiting",
]
# Providers with one model each, because a bad credential closes the whole provider.
REFUSING = [("openai", "badkey-401"), ("openai", "badkey-403"),
            ("anthropic", "claude-badkey-401"), ("anthropic", "claude-badkey-403")]


def sha256(text):
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def configuration(base):
    price = "price: { input: 1, output: 2 }"
    models = [
        f"  {name}: {{ targets: [ {{ provider: {provider}, model: sim-{name}, {price} }} ] }}"
        for provider, names in [("openai", OPENAI_MODELS), ("anthropic", ANTHROPIC_MODELS)]
        for name in names
    ]
    models += [
        # Two targets: enough candidates for all of attempts.max.
        f"  twice: {{ targets: [ {{ provider: openai, model: sim-one, {price} }},"
        f" {{ provider: openai, model: sim-two, {price} }} ] }}",
        f"  claude-twice: {{ targets: [ {{ provider: anthropic, model: sim-claude-one, {price} }},"
        f" {{ provider: anthropic, model: sim-claude-two, {price} }} ] }}",
        f"  with-fallback: {{ targets: [ {{ provider: openai, model: sim-first, {price} }} ], fallbacks: [gpt] }}",
        *(
            f"  {name}: {{ targets: [ {{ provider: {name}, model: sim-{name}, {price} }} ] }}"
            for _, name in REFUSING
        ),
    ]
    # A budget has to know what a request can cost: here the window bounds the output.
    models = [line.replace("flaky: {", "flaky: { context_window: 1000000,") for line in models]
    at = {"openai": f'dialect: openai, base_url: "{base}/v1"', "anthropic": f'dialect: anthropic, base_url: "{base}"'}
    providers = [("openai", "openai"), ("anthropic", "anthropic"), *REFUSING]
    lines = [
        "listeners: [ { address: 127.0.0.1:0 } ]",
        "admin: { address: 127.0.0.1:0 }",
        "server: { threads: 2, drain: 5s }",
        "attempts: { max: 3, same_target: 1 }",
        # One test's failures must not close a target for the next test.
        "breaker: { failures: 1000, window: 1s, cooldown: 60s }",
        "providers:",
        *(f"  {name}: {{ {at[dialect]}, api_key: {PROVIDER_KEY} }}" for dialect, name in providers),
        "models:",
        *models,
        "keys:",
        f'  - {{ id: sdk, hash: "{sha256(KEY)}", models: ["*"], unlimited: true }}',
        f'  - {{ id: some, hash: "{sha256(LIMITED_KEY)}", models: ["gpt*", "claude"], unlimited: true }}',
        f'  - {{ id: old, hash: "{sha256(EXPIRED_KEY)}", models: ["*"], unlimited: true, expires: 2020-01-01T00:00:00Z }}',
        f'  - {{ id: poor, hash: "{sha256(POOR_KEY)}", models: ["*"], budgets: [ {{ usd: 0.000000001, per: total }} ] }}',
        *(
            f'  - {{ id: slow-{sdk}, hash: "{sha256(key)}", models: ["*"], unlimited: true, limits: {{ rpm: 1 }} }}'
            for sdk, key in SLOW_KEYS.items()
        ),
    ]
    return "\n".join(lines) + "\n"


class Process:
    """A child process whose output is read all the time, so that it never blocks on a full pipe."""

    def __init__(self, *command):
        self.name = Path(command[0]).name
        if not Path(command[0]).exists():
            pytest.exit(f"{command[0]} is missing: run `make sdk`, or `cargo build --workspace --bins`", 2)
        self.child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        self.stdout, self.stderr = [], []
        self.readers = [
            self._collect(self.child.stdout, self.stdout),
            self._collect(self.child.stderr, self.stderr),
        ]

    @staticmethod
    def _collect(pipe, lines):
        def read():
            for line in pipe:
                lines.append(line.rstrip("\n"))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

    def wait_for(self, find, within=30):
        """The first thing that `find` finds in the output."""
        until = time.monotonic() + within
        while (found := find()) is None:
            ended = self.child.poll()
            if ended is not None or time.monotonic() > until:
                self.child.kill()
                raise RuntimeError(f"{self.name} did not start ({ended}):\n" + "\n".join(self.stderr))
            time.sleep(0.01)
        return found

    def stop(self, within=20):
        """Ends it in good order; returns its exit code."""
        self.child.send_signal(signal.SIGTERM)
        try:
            code = self.child.wait(within)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            code = "killed: it did not stop"
        for reader in self.readers:
            reader.join(5)
        return code


class Call:
    """One request as the provider saw it."""

    def __init__(self, row):
        self.path, self.method, self.status = row["path"], row["method"], row["status"]
        self.headers = {name.lower(): value for name, value in row["headers"]}
        self.raw = base64.b64decode(row["body_base64"])

    @property
    def json(self):
        return json.loads(self.raw)


class Provider:
    """The scripted provider, as the tests steer it."""

    def __init__(self, base):
        self.base = base
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def _ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, method=method)
        with self._opener.open(request, timeout=10) as answer:
            return json.load(answer)

    def script(self, model, *scripts):
        """One script for each of the next requests for this (the provider's) model."""
        self._ask("POST", "/__control", {"model": model, "scripts": list(scripts)})

    def always(self, model, **script):
        """This script for every request for this model."""
        self._ask("POST", "/__control", {"model": model, "default": script})

    def reset(self):
        self._ask("POST", "/__control", {"reset": True})
        self._ask("DELETE", "/__requests")

    @property
    def calls(self):
        """Every request since the test began."""
        return [Call(row) for row in self._ask("GET", "/__requests")]

    @property
    def call(self):
        """The one request that there was."""
        calls = self.calls
        assert len(calls) == 1, f"{len(calls)} calls instead of one"
        return calls[0]


class Gateway:
    """The running `tollbar`."""

    def __init__(self, process, url):
        self.process = process
        self.url = url

    def panics(self):
        return [line for line in self.process.stderr if "panicked" in line]


@pytest.fixture(scope="session")
def provider_process():
    process = Process(os.environ.get("PROVIDER_BIN") or BIN / "scripted-provider")
    process.base = process.wait_for(lambda: next(iter(process.stdout), None))
    yield process
    process.stop()


@pytest.fixture(scope="session")
def gateway_process(provider_process, tmp_path_factory):
    file = tmp_path_factory.mktemp("tollbar") / "tollbar.yaml"
    file.write_text(configuration(provider_process.base))
    process = Process(os.environ.get("TOLLBAR_BIN") or BIN / "tollbar", "run", "-c", file)

    def listening():
        if not any("admin on http://" in line for line in process.stderr):
            return None
        lines = (line.partition("listening on ")[2] for line in process.stderr)
        return next((url.strip() for url in lines if url), None)

    gateway = Gateway(process, process.wait_for(listening))
    yield gateway
    code = process.stop()
    assert not gateway.panics(), "\n".join(process.stderr)
    assert code == 0, f"tollbar ended with {code}:\n" + "\n".join(process.stderr)


@pytest.fixture
def provider(provider_process):
    provider = Provider(provider_process.base)
    provider.reset()
    return provider


@pytest.fixture
def gateway(gateway_process):
    before = len(gateway_process.panics())
    yield gateway_process
    assert gateway_process.panics()[before:] == []


@pytest.fixture
def oai(gateway, provider):
    """OpenAI's client, for apps."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client:
        yield client


@pytest.fixture
def ant(gateway, provider):
    """Anthropic's client, for apps."""
    with anthropic.Anthropic(base_url=gateway.url, api_key=KEY) as client:
        yield client


def tries(error):
    """How often the SDK sent the request that ended in this error."""
    return int(error.request.headers["x-stainless-retry-count"]) + 1
