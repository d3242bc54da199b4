"""The systems of configs/mulan_tiny.py at equal networks, steps and data: one table, one report.

    python benchmarks/systems.py --folder=runs/systems                 # digits
    python benchmarks/systems.py --folder=runs/systems --npz=FILE      # 32x32 images, of an .npz
    python benchmarks/systems.py --folder=runs/systems --only=report   # what is there already
    python benchmarks/systems.py --folder=runs/systems --config.training.num_steps=1000  # flags of main.py

Every system is trained and evaluated by main.py, in a separate workdir; what was done already is not done
again. Printed and written as `systems.txt`: bits/dim by variational bound and ODE. The report of the first
system compares it with the others.
"""

import os
import pathlib
import runpy
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import script

from jvdm.core.tables import table
from jvdm.reporting.record_tables import row
from jvdm.reporting.report import write_report
from jvdm.reporting.runs import read_run

SYSTEMS = runpy.run_path(str(ROOT / "configs" / "mulan_tiny.py"))["SYSTEMS"]


def run(mode: str, argument: str, workdir: pathlib.Path, *flags: str) -> None:
    """One call of main.py; its output is added to `log.txt`."""
    command = [sys.executable, str(ROOT / "main.py"), f"--mode={mode}", f"--workdir={workdir}"]
    command += [f"--config={ROOT / 'configs' / 'mulan_tiny.py'}:{argument}", *flags]
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "log.txt").open("a") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True)


def main() -> None:
    parser = script.Parser(__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--npz", default="")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--only", choices=("all", "report"), default="all")
    args, flags = parser.parse_known_args()
    folder = args.folder.absolute() / (pathlib.Path(args.npz).stem if args.npz else "digits")
    ode = ["--config.eval.estimators=ode", "--config.eval.ode.solver.tolerance=1e-4"]
    if args.npz:
        ode += ["--config.eval.num_images=16", "--config.eval.ode.check_images=2"]
    else:
        ode += ["--config.eval.num_images=99"]
    rows, workdirs = [], []
    for system in args.systems.split(","):
        workdir = folder / system
        argument = f"{system},{os.path.abspath(args.npz)}" if args.npz else system
        if args.only == "all":
            run("train", argument, workdir, *flags)
            if not list(workdir.glob("eval/vlb*.json")):
                run("eval", argument, workdir, "--config.eval.estimators=vlb", *flags)
            if not list(workdir.glob("eval/ode*.json")):
                run("eval", argument, workdir, *ode, *flags)
            print(f"done    {workdir}", flush=True)
        for record in read_run(workdir).records.values():
            shown = {name: "-" if cell is None else cell for name, cell in row(record).items()}
            rows.append({"system": system, "estimator": record["estimator"], **shown})
        workdirs.append(workdir)
    text = table(rows)
    print(text)
    (folder / "systems.txt").write_text(text + "\n")
    print(f"report  {write_report(workdirs[0], workdirs[1:]).path}")


if __name__ == "__main__":
    script.run(main)
