"""How busy and how full an NVIDIA card was, as nvidia-smi samples it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile

QUERY = "utilization.gpu,memory.used"
EVERY_MS = 500


class CardUse:
    """Samples the first card while the block runs; `record` is empty on a machine without nvidia-smi.

    record: "card_mean_use", the mean share in [0, 1] of the time in which a kernel was running, and
    "card_peak_memory_mb" in MB, of all that is on the card.
    """

    def __init__(self) -> None:
        self.record: dict[str, float] = {}
        self._lines, self._process = None, None

    def __enter__(self) -> CardUse:
        if command := shutil.which("nvidia-smi"):
            wanted = ["-i", "0", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits", "-lms", str(EVERY_MS)]
            self._lines = tempfile.TemporaryFile("w+")  # a pipe that nobody reads is full after an hour
            self._process = subprocess.Popen([command, *wanted], stdout=self._lines, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        self._process.wait()
        with self._lines as lines:
            lines.seek(0)
            # The last line may be cut; a card that cannot tell one of the two says [N/A].
            samples = [line.split(",") for line in lines.read().split("\n")[:-1]]
        numbers = [[float(v) for v in sample] for sample in samples if all(v.strip().isdecimal() for v in sample)]
        if numbers:
            use, memory = zip(*numbers, strict=True)
            self.record = {
                "card_mean_use": round(sum(use) / len(use) / 100, 3),
                "card_peak_memory_mb": max(memory) * 2**20 / 1e6,  # nvidia-smi counts in MiB
            }


def driver() -> str:
    """Version of the NVIDIA driver; "" where there is no nvidia-smi or no card."""
    if not (command := shutil.which("nvidia-smi")):
        return ""
    asked = [command, "-i", "0", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
