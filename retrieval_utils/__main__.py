"""The command line: python -m retrieval_utils reproduce | report | evaluate | search | data | profiles."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Instance-level image retrieval: run the notebooks, gather the evidence, look after the data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="List, get and verify the data sets.", no_args_is_help=True)
app.add_typer(data, name="data")

ProfileNames = Annotated[
    list[str],
    typer.Option("--profile", "--profiles", help="One or more of those that `profiles` shows; default: smoke."),
]
RunDir = Annotated[Path, typer.Option(help="Folder of networks, records and executed notebooks.")]
DataRoot = Annotated[str, typer.Option(help="Folder of the data sets; default: $RETRIEVAL_DATA, else data/.")]


@contextmanager
def one_sentence() -> Iterator[None]:
    """What a user can mend ends in its own sentence and exit code 1 (Ctrl-C: 130), never in a traceback."""
    try:
        yield
    except KeyboardInterrupt as stop:
        _stop(str(stop) or "Stopped.", 130)
    except (ValueError, OSError) as error:
        _stop(str(error), 1)


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    raise typer.Exit(code)


@app.command()
def reproduce(
    profiles: ProfileNames = [],  # noqa: B006
    only: Annotated[list[str], typer.Option(help="Notebook by number or name; --only 02 03 names two.")] = [],  # noqa: B006
    more: Annotated[list[str], typer.Argument(hidden=True)] = [],  # noqa: B006
    settings: Annotated[list[str], typer.Option("--set", help="A notebook parameter, as in --set seed=1.")] = [],  # noqa: B006
    seeds: Annotated[str, typer.Option(help="One run a seed: 0, or 0-2, or 0,3.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Skip the notebooks that are done and unchanged.")] = False,
    run_dir: RunDir = Path("runs"),
    workers: Annotated[int | None, typer.Option(help="Runs at once on this machine, by Dask.")] = None,
    scheduler: Annotated[str, typer.Option(help="Address of a running Dask scheduler whose workers run them.")] = "",
) -> None:
    """Run the notebooks in order, then print the ladder and where everything is.

    Several profiles or seeds run one after the other, which on few cores is the fastest for each, unless --workers or
    --scheduler is named; those that fail are named at the end, and the others go on.
    """
    if more and not (only or profiles):
        raise typer.BadParameter(f"unexpected '{more[0]}'; name notebooks with --only {' '.join(more)}")
    # `--only 02 03 --profiles smoke laptop` leaves 03 and laptop; only notebooks begin with a digit.
    names = [word for word in more if profiles and not (only and word[:1].isdigit())]
    only = words([*only, *(word for word in more if word not in names)])
    profiles = words([*profiles, *names]) or ["smoke"]
    with one_sentence():
        from rich.console import Console

        from retrieval_utils.profiles import get_profile

        console = Console()
        given, chosen = pairs(settings), seed_list(seeds) if seeds else None
        for profile in profiles:
            get_profile(profile)
        if workers is None and not scheduler:
            from retrieval_utils.execution import NotebookFailed
            from retrieval_utils.reproduce import reproduce as run

            failures = []
            for profile in profiles:
                try:
                    run(profile, only, given, resume, run_dir, seeds=chosen, console=console)
                except NotebookFailed as failure:
                    failures.append(f"{profile}: {failure}" if len(profiles) > 1 else str(failure))
                show_ladder(profile, run_dir, console)
            if failures:
                _stop("\n".join(failures), 1)
            return
        from retrieval_utils.cluster import reproduce_many, summary

        how = {"only": only, "settings": given, "resume": resume, "run_dir": run_dir}
        rows = reproduce_many(profiles, chosen, scheduler, workers, console, **how)
        for profile in profiles:
            show_ladder(profile, run_dir, console)
        console.print(summary(rows), f"rows: {run_dir / 'runs.csv'}", highlight=False)
        failed = [f"{row['profile']} (seed {row['seed']}): {row['error']}" for row in rows if row["status"] != "done"]
        if failed:
            _stop("\n".join([f"{len(failed)} of {len(rows)} runs failed:", *failed]), 1)


def words(texts: list[str]) -> list[str]:
    """["02", "03"] from ["02,03"] or ["02 03"]."""
    return [word for text in texts for word in text.replace(",", " ").split()]


def pairs(settings: list[str]) -> dict[str, str]:
    """{"seed": "1"} from ["seed=1"]; ValueError for text without a name and an equals sign."""
    for text in settings:
        if not text.partition("=")[0].strip() or "=" not in text:
            raise ValueError(f"--set takes name=value, as in --set seed=1; '{text}' is not that.")
    return {text.partition("=")[0].strip(): text.partition("=")[2].strip() for text in settings}


def seed_list(text: str) -> list[int]:
    """[0, 1, 2, 5] from "0-2,5"; ValueError for anything else."""
    seeds = []
    for part in text.replace(",", " ").split():
        if not re.fullmatch(r"\d+(-\d+)?", part):
            raise ValueError(f"--seeds takes whole numbers and ranges, as in 0-2 or 0,3; '{text}' is not that.")
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return sorted(set(seeds))


def show_ladder(profile: str, run_dir: Path, console) -> None:
    """Print the ladder of what is recorded, and the paths of notebooks, records and page."""
    from rich.table import Table

    from retrieval_utils.page import write_page
    from retrieval_utils.report import LEGEND, collect, ladder

    try:
        frame, cards, _ = collect(profile, run_dir)
    except FileNotFoundError:  # the notebooks that ran score nothing
        console.print(f"executed notebooks: {run_dir / profile}/seed-*/notebooks", highlight=False)
        return
    rows, lines = ladder(frame, cards)
    table = Table(title=f"The ladder on {', '.join(frame['benchmark'].unique())}")
    for name in rows.columns:
        table.add_column(name, overflow="fold")  # a narrow terminal breaks a number, it does not hide it
    for row in rows.to_numpy():
        table.add_row(*row)
    console.print(table)
    page = write_page(profile, run_dir)
    places = {"executed notebooks": "seed-*/notebooks", "record": "seed-*/run.json", "page": page.name}
    for text in (LEGEND, *lines, *(f"{what}: {page.parent / where}" for what, where in places.items())):
        console.print(text, highlight=False, markup=False, soft_wrap=True)


@app.command()
def report(
    profile: Annotated[str, typer.Option(help="Only this profile; default: all with a run.")] = "",
    check: Annotated[bool, typer.Option("--check", help="Write nothing; name what disagrees with results/.")] = False,
    outputs: Annotated[
        bool, typer.Option("--outputs", help="Also copy the outputs of the smoke run to notebooks/.")
    ] = False,
    run_dir: RunDir = Path("runs"),
) -> None:
    """Write results/ from runs/, then the tables of README.md and the notebooks' cost cards from results/."""
    with one_sentence():
        from retrieval_utils.masters import refresh_outputs
        from retrieval_utils.profiles import PROFILES
        from retrieval_utils.report import disagreements, update, write_results
        from retrieval_utils.side_tables import write_side_tables

        if check:
            found = disagreements()
            if found:
                _stop("\n".join(found), 1)
            print("README.md, the notebooks and results/ agree.")
            return
        names = [profile] if profile else [name for name in PROFILES if any(run_dir.glob(f"{name}/*/steps/*.json"))]
        for name in names:
            frame = write_results(name, run_dir)
            print(f"results/{name}.csv: {frame['step'].nunique()} steps, seeds {sorted(set(frame['seed'].tolist()))}")
        for file in write_side_tables(names, run_dir):
            print(f"results/{file}: written")
        copied = refresh_outputs(run_dir / "smoke/seed-0/notebooks") if outputs else []
        for file in dict.fromkeys([*copied, *update()]):
            print(f"{file}: brought up to date")


@app.command()
def evaluate(
    benchmark: Annotated[str, typer.Option(help="The data set to score on, such as toy-landmarks or roxford5k.")] = "",
    network: Annotated[str, typer.Option(help="The network by name, such as resnet50.")] = "",
    weights: Annotated[str, typer.Option(help="imagenet, none (random), another set by name, or a file.")] = "imagenet",
    pooling: Annotated[str, typer.Option(help="How a feature map becomes a descriptor, such as gem.")] = "gem",
    image_size: Annotated[int, typer.Option(help="Pixels of the longer side.")] = 1024,
    scales: Annotated[str, typer.Option(help="Sizes to average over, as in 1,0.7071,0.5.")] = "1",
    whitening: Annotated[str, typer.Option(help="none, pca, or learned (from pairs of one instance).")] = "none",
    whitening_dim: Annotated[int | None, typer.Option(help="Dimensions that it keeps; default: all.")] = None,
    whiten_on: Annotated[
        str, typer.Option(help="Training set it is fitted on; default: the benchmark's own, else retrieval-sfm-120k.")
    ] = "",
    query_expansion: Annotated[str, typer.Option(help="none, average or alpha.")] = "none",
    database_augmentation: Annotated[
        str, typer.Option(help="The same for the images: none, average or alpha.")
    ] = "none",
    neighbours: Annotated[int | None, typer.Option(help="How many they take; default: 10.")] = None,
    rerank: Annotated[bool, typer.Option("--rerank", help="Compare the best 400 again, as SuperGlobal does.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    cache: Annotated[
        Path | None, typer.Option(help="Keep every descriptor in this folder, so that a killed run goes on.")
    ] = None,
    data_root: DataRoot = "",
    output: Annotated[Path | None, typer.Option(help="Write the result, query by query, to this JSON file.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Evaluate nothing; compare two result files query by query.")
    ] = None,
) -> None:
    """Score a network on a benchmark, with its protocol card; or compare two results."""
    with one_sentence():
        if compare:
            from retrieval_utils.result_files import compare_results

            print(compare_results(*compare))
            return
        if not benchmark or not network:
            raise ValueError("Name a --benchmark and a --network, or two result files to --compare.")
        sizes = scale_list(scales)
        from retrieval_utils.neighbours import Neighbours
        from retrieval_utils.scoring import run_evaluation

        report = run_evaluation(
            benchmark,
            network,
            weights,
            pooling,
            image_size,
            sizes,
            whitening,
            whitening_dim,
            whiten_on,
            Neighbours(query_expansion, database_augmentation, neighbours, rerank),
            data_root or None,
            output,
            device=device,
            cache=cache,
            progress=sys.stderr.isatty(),
        )
        print(report)
        if output:
            print(f"written to {output}")


def scale_list(text: str) -> tuple[float, ...]:
    """(1.0, 0.5) from "1,0.5"; ValueError for anything but positive numbers."""
    if not re.fullmatch(r"\s*\d*\.?\d+(\s*,\s*\d*\.?\d+)*\s*", text) or not all(map(float, text.split(","))):
        raise ValueError(f"--scales takes positive numbers, as in 1,0.7071,0.5; '{text}' is not that.")
    return tuple(map(float, text.split(",")))


@app.command()
def search(
    images: Annotated[Path, typer.Option(help="Folder of photos; those in its subfolders count too.")],
    query: Annotated[Path, typer.Option(help="The photo to search with.")],
    box: Annotated[str, typer.Option(help="Only this part of it: x1,y1,x2,y2 in pixels of the upright photo.")] = "",
    network: Annotated[str, typer.Option(help="resnet18-thin, resnet18, resnet34, resnet50, ...")] = "resnet50",
    weights: Annotated[str, typer.Option(help="imagenet, none (random), or the path of a checkpoint.")] = "imagenet",
    k: Annotated[int, typer.Option("--k", help="How many photos to show.")] = 20,
    image_size: Annotated[int, typer.Option(min=16, help="Longer side in pixels to describe photos at.")] = 512,
    index_dir: Annotated[str, typer.Option(help="Where the index is kept; default: below runs/search.")] = "",
) -> None:
    """Find the photos of a folder that look like QUERY, and write a page that shows them."""
    with one_sentence():
        from retrieval_utils import search as own
        from retrieval_utils.networks import load_network
        from retrieval_utils.search_page import write_page

        corners = corners_of(box) if box else None
        own.find_photos(images)
        own.check_query(query, corners, k)
        net = load_network(network, weights)
        place = Path(index_dir or own.default_index_dir(images, net, image_size))
        photos = own.index_photos(images, net, place, image_size, progress=True)
        hits = own.search_photos(photos, net, query, corners, k, image_size)
        counts = f"{len(photos.names):,} photos, {photos.described:,} of them described now"
        about = [f"Described by {photos.index.network}; scores are cosines.", f"Index of {counts}: {place}"]
        page = write_page(place / f"{query.stem}.html", images, query, corners, hits, about, photos.unreadable)
        print(f"{counts}; index: {place}")
        if photos.unreadable:
            print(f"left out, not readable: {len(photos.unreadable):,} ({', '.join(photos.unreadable)})")
        print(f"page: {page}")


def corners_of(box: str) -> tuple[float, float, float, float]:
    """(1, 2, 30, 40) from "1,2,30,40"; ValueError for anything but four numbers."""
    try:
        x1, y1, x2, y2 = (float(value) for value in box.split(","))
    except ValueError:
        raise ValueError(f"--box takes x1,y1,x2,y2, as in --box 10,20,200,180; '{box}' is not that.") from None
    return x1, y1, x2, y2


@app.command()
def profiles() -> None:
    """Show every profile with all its values."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from retrieval_utils.profiles import PROFILES

    columns = {name: flat(asdict(profile)) for name, profile in PROFILES.items()}
    table = Table("", *columns)
    for key in next(iter(columns.values())):
        if key != "name":
            table.add_row(key, *(str(values[key]) for values in columns.values()))
    Console().print(table)


def flat(values: dict, prefix: str = "") -> dict:
    """Nested settings as one level: {"pretraining.epochs": 8}."""
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@data.command("list")
def list_data(data_root: DataRoot = "") -> None:
    """Show the data sets, their licences and sizes, and whether they are there."""
    with one_sentence():
        from retrieval_utils.datasets.download import list_datasets

        for row in list_datasets(data_root or None):
            print(f"{row['name']}: {row['what']}\n  licence {row['licence']}; {row['size']}; {row['variant']}")
            print(f"  {row['where']}")


@data.command()
def get(name: str, data_root: DataRoot = "") -> None:
    """Download or draw data set NAME, and verify it."""
    with one_sentence():
        from retrieval_utils.datasets.download import get_dataset

        print(get_dataset(name, data_root or None))


@data.command()
def verify(name: str, data_root: DataRoot = "") -> None:
    """Read every file of data set NAME and compare it with what it should be."""
    with one_sentence():
        from retrieval_utils.datasets.download import verify_dataset

        print(verify_dataset(name, data_root or None))


if __name__ == "__main__":
    app()
