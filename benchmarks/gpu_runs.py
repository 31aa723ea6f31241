"""How `gpu.py` runs its parts: each in a process of its own, within the call's time, its traces in one folder."""

import argparse
import json
import os
import platform
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whitebench.errors import UserError
from whitebench.files import write_json

ROOT = Path(__file__).parents[1]
GRACE_S = 20.0
"""Left to a part to save itself when the call's time ends."""
ATTEMPTS = 3


@dataclass(frozen=True)
class Part:
    name: str
    command: list[str]
    """Prints a JSON object in its last line, or is judged by its exit code."""
    seconds: float
    """Least time that is worth starting it."""
    resumes: bool = False
    """Whether a call that ends it loses nothing."""
    json: bool = True


def run_all(parts: list[Part], options: argparse.Namespace, out: Path) -> int:
    """As many parts as the time allows; 0 when all are done, 1 when some failed or are left."""
    end = time.monotonic() + 60 * options.minutes
    state_file = out / "gpu.json"
    state = json.loads(state_file.read_text()) if state_file.is_file() else {"parts": {}}
    settings = {"device": options.device, "tiny": options.tiny}
    if state.get("settings", settings) != settings:
        raise UserError(f"{out}: holds a run with {state['settings']}; choose another --out")
    state |= {"settings": settings, "machine": machine(options.device)}
    (out / "logs").mkdir(parents=True, exist_ok=True)
    for part in parts:
        past = state["parts"].get(part.name, {})
        if past.get("status") == "done" or (past.get("status") == "failed" and not options.retry):
            continue
        left = end - time.monotonic() - GRACE_S
        if left < (1 if options.tiny else part.seconds):
            break
        print(f"{part.name} ...", flush=True)
        state["parts"][part.name] = run_one(part, past, left, out)
        write_json(state_file, state)
        (out / "summary.md").write_text(summary(state, parts))
        print(f"    {line(state['parts'][part.name])}", flush=True)
    write_json(state_file, state)
    (out / "summary.md").write_text(summary(state, parts))
    counts = {status: sum(status_of(state, part) == status for part in parts) for status in ("done", "failed", "left")}
    print(f"{out}: {', '.join(f'{count} {status}' for status, count in counts.items() if count)}"
          f"{'; the same command goes on' if counts['left'] else ''}")  # fmt: skip
    return 0 if counts["done"] == len(parts) else 1


def run_one(part: Part, past: dict[str, Any], left: float, out: Path) -> dict[str, Any]:
    """Its status, seconds and result; stopped after `left` seconds."""
    log = out / "logs" / f"{part.name.replace(' ', '-').replace(',', '')}.log"
    environment = {
        **os.environ, "WHITEBENCH_RUNS": str(out / "runs"), "WHITEBENCH_DATA": str(out / "data"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    began = time.monotonic()
    with log.open("ab") as file:
        process = subprocess.Popen(
            part.command, cwd=out, env=environment, stdout=subprocess.PIPE, stderr=file, start_new_session=True
        )
        stopped = False
        try:
            output, _ = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            stopped, output = True, end_process(process)
        file.write(output)
    seconds = past.get("seconds", 0.0) + time.monotonic() - began
    result = {"seconds": round(seconds, 1), "attempts": past.get("attempts", 0) + 1, "log": str(log.relative_to(out))}
    return {**result, **verdict(part, process.returncode, output.decode(errors="replace"), stopped, result["attempts"])}


def end_process(process: "subprocess.Popen[bytes]") -> bytes:
    """Asks it to save itself and end; kills its whole group where it does not."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.communicate(timeout=GRACE_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0]


def verdict(part: Part, code: int, output: str, stopped: bool, attempts: int) -> dict[str, Any]:
    if stopped or (part.resumes and code == 130):
        again = part.resumes or attempts < ATTEMPTS
        return {"status": "left" if again else "failed", "error": "the call's time ended"}
    if code:
        return {"status": "failed", "error": f"exit code {code}"}
    lines = [text for text in output.strip().splitlines() if text]
    if not part.json:
        return {"status": "done", "result": {"passed": True, "output": lines[-8:]}}
    try:
        result = json.loads(lines[-1])
    except (IndexError, ValueError):
        return {"status": "failed", "error": "no result in its last line"}
    return {"status": "done" if result.get("passed") else "failed", "result": result}


# --- what it leaves ---------------------------------------------------------------------------------------------------


def machine(device: str) -> dict[str, Any]:
    import torch

    description: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--device cuda, but torch sees no CUDA device here; --device cpu --tiny is a rehearsal")
        properties = torch.cuda.get_device_properties(0)
        description |= {"gpu": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}
    return description


def status_of(state: dict[str, Any], part: Part) -> str:
    return str(state["parts"].get(part.name, {}).get("status", "left"))


def line(row: dict[str, Any]) -> str:
    """One part in words."""
    result = row.get("result", {})
    chosen = {
        key: result[key]
        for key in ("skipped", "failed", "largest", "images_per_s", "share_of_peak", "data_wait", "per_step", "top1",
                    "nondeterministic")
        if result.get(key) not in (None, [])
    }  # fmt: skip
    texts = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in chosen.items())
    words = ", ".join(texts)
    return f"{row['status']} in {row['seconds']:.0f} s{f': {words}' if words else ''}{_error(row)}"


def _error(row: dict[str, Any]) -> str:
    return f" ({row['error']}; {row['log']})" if row.get("error") else ""


def summary(state: dict[str, Any], parts: list[Part]) -> str:
    heads = [f"{key}: {value}" for key, value in {**state["settings"], **state["machine"]}.items()]
    texts = {part.name: line(state["parts"][part.name]) if part.name in state["parts"] else "left" for part in parts}
    rows = [f"| {name} | {text} |" for name, text in texts.items()]
    note = ["", "A rehearsal in small sizes: no measurement."] if state["settings"]["tiny"] else []
    return "\n".join(["# " + ", ".join(heads), *note, "", "| part | result |", "|---|---|", *rows, ""])
