"""The `intvit` command: thin verbs over the library. Only this file prints.

Exit status: 0 done, 1 a check failed, 2 bad input (one clear line, nothing half-written), 70 a bug of intvit's own,
74 standard output cannot be written, 130 interrupted, 141 the reader of a pipe went away, 143 terminated (129: the
terminal went away).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from intvit.errors import IntvitError, reason
from intvit.files import whole_file
from intvit.files.records import plain

if TYPE_CHECKING:
    from intvit.floats.images import ImageSource
    from intvit.floats.model import FloatModel
    from intvit.floats.preprocessing import Preprocessing
    from intvit.graph.ir import FloatGraph
    from intvit.lowering.recipe import Recipe

app = typer.Typer(
    name="intvit",
    help="Bit-exact, integer-only reference simulator for Vision Transformers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
golden = typer.Typer(help="Golden vectors: stimulus, integer parameters and expected output of single operators.",
                     no_args_is_help=True)  # fmt: skip
app.add_typer(golden, name="golden")

out = Console(width=None if sys.stdout is not None and sys.stdout.isatty() else 132)
err = Console(stderr=True)

UsageError: Any
ClickException: Any
UsageError, ClickException = typer.BadParameter.__mro__[1:3]
"""Of the click that this typer stands on: a package of its own in older versions, a part of typer in newer ones."""
COMPLETION = ("--show-completion", "--install-completion")
LONGEST_LINE = 1200
"""Characters of an error."""
USAGE, BUG, CANNOT_PRINT, INTERRUPTED, CLOSED_PIPE = 2, 70, 74, 130, 141

ModelArg = Annotated[Path, typer.Argument(help="Float model, ONNX.")]
GraphArg = Annotated[Path, typer.Argument(help="Integer graph, HDF5, from `intvit lower`.")]
ImagesArg = Annotated[
    str,
    typer.Argument(
        help="HDF5 (`file.h5` or `file.h5:group`), .npy, .npz, a folder of image files, "
        "or `fashion-mnist:test` / `fashion-mnist:calibration`."
    ),
]
OutputOpt = Annotated[Path, typer.Option("--output", "-o", help="File or folder to write.")]
LimitOpt = Annotated[int | None, typer.Option(min=1, help="Use only the first images.")]
BatchOpt = Annotated[int, typer.Option(min=1, help="Images per batch; never changes a bit.")]
ThreadsOpt = Annotated[int | None, typer.Option(min=1, help="Threads; default all cores. Never changes a bit.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
MeanOpt = Annotated[
    list[float] | None,
    typer.Option(help="Channel mean, of float images too; repeat per channel. Default: the recording's, the model's."),
]
StdOpt = Annotated[list[float] | None, typer.Option(help="Channel deviation; repeat per channel.")]
PresetOpt = Annotated[
    str | None,
    typer.Option(help="accurate (default) or published: the quantizers of the official I-ViT graphs; docs/recipes.md."),
]
ResizeOpt = Annotated[int | None, typer.Option(min=1, help="Resize image files: length of the shorter side.")]
NumericsOpt = Annotated[
    str | None,
    typer.Option(
        help="Datapath: hawq (default), tosa_single, tosa_double, tflite_single, tflite_double, cmsis_nn, deeploy, "
        "ita, or a TOML file of one's own; docs/numerics.md."
    ),
]


EVALUATED = (
    ("float", "top-1, float", "%.2f %%", 100),
    ("integer", "top-1, integer", "%.2f %%", 100),
    ("agreement", "same class", "%.2f %%", 100),
    ("sqnr", "SQNR", "%.1f dB", 1),
    ("kl", "KL divergence", "%.4f nats", 1),
    ("cosine", "cosine", "%.5f", 1),
)
"""Key of a summary, what `eval` calls it, how it is written, times what."""
PROVE_IMAGES = 8
"""That `prove --images` runs unless it is told more."""


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; nothing when stderr is not a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def report(done: int, total: int) -> None:
            if _ended:  # Python met the signal in a callback, which no exception leaves
                raise _ended[0]
            bar.update(task, completed=done, total=total)

        yield report


def _images(source: str, shape: tuple[int, ...], metadata: Any, **options: Any) -> ImageSource:
    from intvit.floats.images import open_images

    options = {key: value or None for key, value in options.items()}
    return open_images(source, size=shape[1:], channels=shape[0], metadata=metadata, **options)


def _applied(preprocessing: Preprocessing) -> None:
    """Say what was done to the images, beside the result: input that is refused gets one line, of its own."""
    err.print(f"images: {preprocessing}", soft_wrap=True, highlight=False, markup=False)


def _recipe(graph: FloatGraph, path: Path | None, mapping: Path | None, method: str | None, preset: str | None,
            bits: int | None, observer: str | None, numerics: str | None = None) -> Recipe:  # fmt: skip
    """What files and options ask for; where they name no preset, `accurate`, or what the weights were trained with."""
    from intvit.lowering.calibrate import at_trained_widths
    from intvit.lowering.recipe import build_recipe, read_numerics, read_recipe

    if mapping and method:
        raise IntvitError("--mapping and --method: only one of them must be given")
    values: dict[str, Any] = {"preset": "published" if graph.metadata.get("trained") else "accurate"}
    if mapping:
        mapped = read_recipe(mapping)
        values |= {"preset": mapped.preset, **({"sites": mapped.model_dump()["sites"]} if path else _asked(mapped))}
    if path:
        values |= {**_asked(read_recipe(path)), **({"sites": values["sites"]} if mapping else {})}
    values |= {key: value for key, value in {"preset": preset, "bits": bits}.items() if value is not None}
    if observer is not None:
        values["observer"] = {**values.get("observer", {}), "kind": observer}
    if numerics is not None:
        values["numerics"] = read_numerics(numerics)
    recipe = at_trained_widths(graph, build_recipe(values, "--preset/--bits/--observer"))
    return recipe.with_method(method) if method else recipe


def _observed(
    graph: FloatGraph, model: Path | FloatModel, activations: Any, recipe: Recipe, limit: int | None, report: Any,
    judged: int | None = None, methods: Sequence[str] = (),
) -> Recipe:  # fmt: skip
    """The recipe with an observer for each quantizer, where it asks for `auto`."""
    if recipe.observer.kind != "auto":
        return recipe
    from intvit.analysis.observers import resolved
    from intvit.floats.model import FloatModel

    model = FloatModel(model) if isinstance(model, Path) else model
    found = resolved(graph, model, activations, recipe, limit=limit, judged=judged, methods=methods, progress=report)
    _notice(found.note)
    return found.recipe


def _none_of(given: dict[str, Any], rule: str) -> None:
    """IntvitError for the first of some options that is given."""
    for option in [name for name, value in given.items() if value]:
        raise IntvitError(f"{option}: {rule}")


def _asked(recipe: Recipe) -> dict[str, Any]:
    """What was asked for, not what is the default."""
    return recipe.model_dump(exclude_none=True, exclude_unset=True)


def _table(title: str, headers: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _import_help() -> str:
    from intvit.floats.importers.kinds import KINDS

    return (
        "Weights or a foreign graph to the float ONNX form that the other commands read.\n\n"
        + "Kinds, recognised by what the file is:\n\n"
        + "\n\n".join(f"- {kind.text}" for kind in KINDS)
        + "\n\nA graph with parts that have no integer form is cut with --until and --from."
        + "\n\nExample: intvit import vit_fashion.safetensors -o vit.onnx"
        + "\n\nExample: intvit import depth.onnx --until /encoder/layernorm/Add_1_output_0 -o encoder.onnx"
    )


@app.command("import", help=_import_help())
def import_command(
    weights: Annotated[Path, typer.Argument(help="File or folder to import.")],
    output: OutputOpt,
    num_heads: Annotated[str | None, typer.Option(help="Attention heads; per stage `3,6,12` for Swin.")] = None,
    img_size: Annotated[
        str | None, typer.Option(help="Image side, or `height,width`, where the file leaves it free.")
    ] = None,
    layer_norm_eps: Annotated[float | None, typer.Option(help="LayerNorm epsilon.")] = None,
    until: Annotated[str | None, typer.Option(help="ONNX: node or tensor that becomes the output.")] = None,
    start: Annotated[str | None, typer.Option("--from", help="ONNX: node or tensor that becomes the input.")] = None,
    mean: Annotated[
        list[float] | None, typer.Option(help="Channel mean that the network was trained with; repeat per channel.")
    ] = None,
    std: Annotated[list[float] | None, typer.Option(help="Channel deviation; repeat per channel.")] = None,
) -> None:
    import onnx

    from intvit.floats.importers.kinds import import_model
    from intvit.floats.importers.onnx import model_metadata

    heads = None if num_heads is None else _int_list("--num-heads", num_heads)
    size = None if img_size is None else _int_list("--img-size", img_size)
    values = {"num_heads": heads, "img_size": size, "layer_norm_eps": layer_norm_eps, "mean": mean, "std": std}
    model = import_model(weights, until=until, start=start, **values)
    _write_whole(output, lambda path: onnx.save(model, str(path)))
    for line in model_metadata(model).get("assumed", []):
        print(line, file=sys.stderr)
    _notice(f"wrote {output}")


@app.command()
def doctor(
    model: Annotated[
        Path | None,
        typer.Argument(help="Float model, ONNX, with --images; or an I-ViT checkpoint: .safetensors, .npz, PyTorch."),
    ] = None,
    images: Annotated[str | None, typer.Option(help="Images to calibrate and to judge on: why does it lose?")] = None,
    method: Annotated[str | None, typer.Option(help="As for `lower`: one method everywhere. [default: ivit]")] = None,
    mapping: Annotated[Path | None, typer.Option(help="As for `lower`: methods per site.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="As for `lower`: recipe, TOML.")] = None,
    preset: PresetOpt = None,
    bits: Annotated[
        int | None,
        typer.Option(help="With --images as for `lower` [default: 8]; of a checkpoint the width that it must have."),
    ] = None,
    observer: Annotated[str | None, typer.Option(help="As for `lower`.")] = None,
    numerics: NumericsOpt = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Images to calibrate and to judge on. [default: 32]")] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Of these, images on which parts are switched. [default: 2 to 32]")
    ] = None,
    attempts: Annotated[bool, typer.Option("--try/--no-try", help="Try lines of recipes.")] = True,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="BITS", help="Give the quantizers of every kind these widths, as 4,6,8,12, one kind a time."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Longest table; --json has everything.")] = 12,
    threads: ThreadsOpt = None,
    mean: MeanOpt = None,
    std: StdOpt = None,
    resize: ResizeOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Say what this machine runs on, why an integer model loses what it loses, or audit an I-ViT checkpoint.

    With a float model and --images: what the integer model that `lower` makes with the same options loses per rounding
    and per operator (SQNR of the outputs, dB), which sites break a rule (outlier channels, saturation, methods outside
    their range), and which lines of a recipe mend it, each tried. Minutes for a network of 12 blocks.

    Alone: versions, the path of the integer products and why not a faster one, where compiled kernels are kept. With a
    checkpoint: scales at eps, missing or stale weight_integer, ranges lost on reload; exit 1 if anything is found.

    Example: intvit doctor

    Example: intvit doctor vit.onnx --images photographs/ --method ivit --bits 6

    Example: intvit doctor vit.onnx --images photographs/ --no-try --sweep 4,5,6,7,8

    Example: intvit doctor checkpoint.pth.tar
    """
    if images is None:
        given = {"--method": method, "--mapping": mapping, "--recipe": recipe, "--preset": preset,
                 "--observer": observer, "--numerics": numerics, "--limit": limit, "--sample": sample,
                 "--sweep": sweep, "--mean": mean, "--std": std, "--resize": resize}  # fmt: skip
        _none_of(given, "must come with a float model and --images")
        if model is not None:
            _audit(model, bits, as_json)
        elif bits is not None:
            raise IntvitError("--bits: must come with a checkpoint, or with a float model and --images")
        else:
            _show_environment(as_json)
        return
    if model is None:
        raise IntvitError("--images: must come with a float model")
    from intvit.analysis.diagnosis import N_IMAGES, diagnose
    from intvit.analysis.report import diagnosis_tables, widths_line
    from intvit.floats.importers.onnx import float_graph, load_model
    from intvit.floats.live import LiveActivations
    from intvit.floats.model import FloatModel

    widths = [int(word) for word in (sweep or "").split(",") if word.strip().isdecimal()]
    if sweep is not None and (len(widths) != len(sweep.split(",")) or not all(4 <= bits <= 16 for bits in widths)):
        raise IntvitError(f"--sweep: must be widths of 4 to 16, separated by commas, not {sweep!r}")
    graph = float_graph(load_model(model))
    chosen = _recipe(graph, recipe, mapping, method, preset, bits, observer, numerics)
    source = _images(images, _input_shape(graph), graph.metadata, mean=mean, std=std, resize=resize)
    live = LiveActivations(FloatModel(model, threads=threads), source, limit or N_IMAGES)
    with progress("observers") as report:
        chosen = _observed(graph, live.model, live, chosen, None, report)
    found = diagnose(graph, live, chosen, sample=sample, attempts=attempts, sweep=widths, threads=threads,
                     progress=progress)  # fmt: skip
    _applied(source.preprocessing)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
        return
    out.print(widths_line(chosen.model_dump()), highlight=False, markup=False)
    out.print(f"Numerics: {chosen.numerics.rule()}", highlight=False, markup=False)
    if found.sqnr is None:
        out.print("The model cannot be made as asked: below, ivit stands in where a method is not defined")
    else:
        out.print(f"SQNR of the outputs: {found.sqnr:.1f} dB, on the {found.n_images} images that it was calibrated on",
                  highlight=False)  # fmt: skip
    for table in diagnosis_tables(found, rows):
        out.print(table)


def _audit(checkpoint: Path, bits: int | None, as_json: bool) -> None:
    from intvit.floats.importers.ivit import audit
    from intvit.floats.importers.weights import load_weights

    if checkpoint.suffix == ".onnx":
        raise IntvitError(f"{checkpoint}: a float model must come with --images")
    tensors, _ = load_weights(checkpoint)
    findings = audit(checkpoint, tensors, bits)
    if as_json:
        print(json.dumps([vars(finding) for finding in findings], indent=1))
    elif findings:
        rows = [[finding.site, finding.rule, finding.found] for finding in findings]
        out.print(_table(f"{checkpoint.name}: {len(findings)} findings", ["site", "rule", "found"], rows))
    else:
        out.print(f"{checkpoint.name}: nothing found in {len(tensors)} tensors")
    if findings:
        raise typer.Exit(1)


def _show_environment(as_json: bool) -> None:
    from intvit.engine.environment import facts

    found = facts()
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        out.print(_table("environment", ["what", "found"], [[name, value] for name, value in found.items()]))


def _int_list(option: str, text: str) -> int | list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise IntvitError(f"{option}: must be integers separated by commas, not {text!r}") from None
    return values[0] if len(values) == 1 else values


def _notice(text: str) -> None:
    err.print(text, soft_wrap=True, highlight=False, markup=False)


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    with whole_file(path) as partial:
        write(partial)


@app.command()
def record(
    model: ModelArg,
    images: ImagesArg,
    output: OutputOpt,
    limit: LimitOpt = None,
    batch: BatchOpt = 16,
    threads: ThreadsOpt = None,
    mean: MeanOpt = None,
    std: StdOpt = None,
    resize: ResizeOpt = None,
) -> None:
    """Run the float model; write the activation of every site to HDF5. An interrupted run resumes.

    Example: intvit record vit.onnx fashion-mnist:calibration -o recording.h5 --limit 64
    """
    from intvit.floats.model import FloatModel
    from intvit.floats.recording import record as run

    float_model = FloatModel(model, threads=threads)
    source = _images(images, float_model.input_shape, float_model.metadata, mean=mean, std=std,
                     resize=resize)  # fmt: skip
    with progress("record") as report:
        run(float_model, source, output, limit=limit, batch=batch, progress=report, notice=_notice)
    _applied(source.preprocessing)
    _notice(f"wrote {output}")


@app.command()
def lower(
    model: ModelArg,
    output: OutputOpt,
    recording: Annotated[
        Path | None,
        typer.Option(help="Recording of this model, from `intvit record`; not needed where ranges came with it."),
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Instead of a recording: images to calibrate on, nothing stored.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="One method everywhere: see `intvit methods`. [default: ivit]")
    ] = None,
    mapping: Annotated[Path | None, typer.Option(help="Methods per site, from `intvit map`.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Recipe, TOML: docs/recipes.md.")] = None,
    preset: PresetOpt = None,
    bits: Annotated[int | None, typer.Option(help="Width of weights and activations, 4 to 8. [default: 8]")] = None,
    observer: Annotated[
        str | None,
        typer.Option(
            help="minmax (default), percentile, mse, kl, or auto: the best range for each, judged on images behind "
            "--limit if there are any."
        ),
    ] = None,
    numerics: NumericsOpt = None,
    limit: LimitOpt = None,
    mean: MeanOpt = None,
    std: StdOpt = None,
    resize: ResizeOpt = None,
) -> None:
    """Float model + recording + recipe to an integer graph: the last place where a float decides anything.

    Example: intvit lower vit.onnx --recording recording.h5 --method ibert --bits 8 -o vit_ibert.h5

    Example: intvit lower vit.onnx --images images.h5 --limit 1000 -o vit_ivit.h5
    """
    from intvit.floats.importers.onnx import float_graph, load_model
    from intvit.floats.live import LiveActivations
    from intvit.floats.model import FloatModel
    from intvit.floats.preprocessing import resolve
    from intvit.floats.recording import Recording
    from intvit.graph.store import save
    from intvit.lowering.calibrate import calibrate, trained
    from intvit.lowering.context import lower as run

    graph, applied = float_graph(load_model(model)), None
    chosen = _recipe(graph, recipe, mapping, method, preset, bits, observer, numerics)
    options = {"mean": mean or None, "std": std or None, "resize": resize}
    if recording is not None:
        if images is not None:
            raise IntvitError("--recording and --images: only one of them must be given")
        with Recording(recording) as recorded, progress("calibrate") as report:
            resolve(options, recorded=recorded.preprocessing)
            chosen = _observed(graph, model, recorded, chosen, limit, report)
            calibration = calibrate(graph, recorded, chosen, limit=limit, progress=report)
            applied = recorded.preprocessing
    elif images is not None:
        from intvit.analysis.observers import enough

        source = _images(images, _input_shape(graph), graph.metadata, **options)
        with progress("calibrate") as report:
            live, applied = LiveActivations(FloatModel(model), source, enough(chosen, limit)), source.preprocessing
            chosen = _observed(graph, live.model, live, chosen, limit, report)
            calibration = calibrate(graph, live, chosen, limit=limit, progress=report)
    else:
        if any(options.values()):
            raise IntvitError("--mean, --std, --resize: must go with --images or --recording")
        calibration = trained(graph)
    integer = run(graph, calibration, chosen)
    save(integer, output)
    if applied is not None:
        _applied(applied)
    _notice(f"wrote {output}  {integer.content_hash[:16]}")


@app.command("run")
def run_command(
    graph: GraphArg,
    images: ImagesArg,
    output: OutputOpt,
    trace: Annotated[Path | None, typer.Option(help="Write every integer tensor to this HDF5 file.")] = None,
    backend: Annotated[str, typer.Option(help="kernel, or the slow scalar spec.")] = "kernel",
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse any float behind the input's quantizer, and values beyond their types."),
    ] = False,
    limit: LimitOpt = None,
    batch: BatchOpt = 8,
    threads: ThreadsOpt = None,
    mean: MeanOpt = None,
    std: StdOpt = None,
    resize: ResizeOpt = None,
) -> None:
    """Execute an integer graph; logits at one common scale and raw accumulators go to .npz.

    Example: intvit run vit_ibert.h5 fashion-mnist:test -o logits.npz --limit 8 --trace trace.h5
    """
    import numpy as np

    from intvit.engine import Engine
    from intvit.engine import trace as tracing
    from intvit.engine.batches import batch_of, batches
    from intvit.graph.store import load

    integer = load(graph)
    source = _images(images, _input_shape(integer), integer.metadata, calibrated=True, mean=mean, std=std,
                     resize=resize)  # fmt: skip
    n_images = min(limit or len(source), len(source))
    engine = Engine(integer, backend, strict)
    parts: dict[str, list[Any]] = {name: [] for name in integer.outputs}
    names = list(integer.tensors) if trace else list(integer.outputs)
    batch, n_threads = batch_of(integer, batch), threads or os.cpu_count() or 1
    if trace:
        batch, n_threads = tracing.in_flight(integer, batch, n_threads)
    tracer = tracing.writer(trace, integer, names, n_images) if trace else nullcontext()
    with whole_file(output) as partial, tracer as write:
        with progress("run") as report:
            sink = _collect(parts, n_images, report, write)
            engine.stream(batches(source, n_images, batch), names, sink, threads=n_threads)
        arrays: dict[str, Any] = {name: np.concatenate(part) for name, part in parts.items()}
        arrays |= {f"{name}_scale": integer.tensors[name].scale for name in parts}
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
    _applied(source.preprocessing)
    _notice(f"wrote {output}" + (f" and {trace}" if trace else ""))


def _input_shape(graph: Any) -> tuple[int, ...]:
    return tuple(graph.tensors[graph.inputs[0]].shape)


def _collect(parts: dict[str, list[Any]], total: int, report: Any, write: Any = None) -> Any:
    def sink(start: int, tensors: dict[str, Any]) -> None:
        if write is not None:
            write(start, tensors)
        for name in parts:
            parts[name].append(tensors[name])
        report(start + len(next(iter(tensors.values()))), total)

    return sink


@app.command("eval")
def eval_command(
    graph: GraphArg,
    images: ImagesArg,
    model: Annotated[Path | None, typer.Option("--float", help="Float ONNX model to compare with.")] = None,
    limit: LimitOpt = None,
    batch: BatchOpt = 8,
    threads: ThreadsOpt = None,
    mean: MeanOpt = None,
    std: StdOpt = None,
    resize: ResizeOpt = None,
    csv: Annotated[Path | None, typer.Option(help="Write one line per image to this CSV file.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """Accuracy of an integer graph on labelled images, and how far its outputs are from the float model's.

    With labels: top-1. With --float: SQNR of the outputs (dB), their cosine, and of classes how often the largest is
    the same (agreement) and KL divergence (nats). One of the two is needed.

    Example: intvit eval vit_ibert.h5 fashion-mnist:test --float vit.onnx

    Example: intvit eval encoder_int8.h5 photographs/ --float encoder.onnx --csv per_image.csv
    """
    from intvit.analysis.outputs import outcomes, summary, write_csv
    from intvit.analysis.report import widths_line
    from intvit.floats.model import FloatModel
    from intvit.graph.store import load

    integer = load(graph)
    source = _images(images, _input_shape(integer), integer.metadata, calibrated=True, mean=mean, std=std,
                     resize=resize)  # fmt: skip
    float_model = None if model is None else FloatModel(model, threads=threads)
    with progress("eval") as report:
        found = outcomes(integer, source, float_model, limit=limit, batch=batch, threads=threads, progress=report)
    result = summary(found)
    if csv is not None:
        _write_whole(csv, lambda path: write_csv(path, found))
    _applied(source.preprocessing)
    if as_json:
        print(json.dumps(plain(result)))
        return
    out.print(widths_line(integer.metadata.get("recipe")), highlight=False, markup=False)
    rows = [[title, text % (result[key] * factor)] for key, title, text, factor in EVALUATED if key in result]
    out.print(_table(f"{graph.name}, {result['images']} images", ["outputs", ""], rows))


@app.command("map")
def map_command(
    model: ModelArg,
    images: Annotated[str, typer.Option(help="Images to analyse; with --recording, the ones that were recorded.")],
    output: OutputOpt,
    recording: Annotated[
        Path | None,
        typer.Option(help="Recording of this model; without it the float model runs along."),
    ] = None,
    rule: Annotated[str, typer.Option(help="sqnr_diff, sqnr_diff_signed or sqnr_output.")] = "sqnr_diff",
    basis: Annotated[
        str,
        typer.Option(help="Score methods in their uniform models, `isolated` on float inputs, or behind the `prefix`."),
    ] = "uniform",
    fix: Annotated[
        list[str] | None, typer.Option(help="SITE=METHOD: no choice there; repeat. SITE alone: as the recipe says.")
    ] = None,
    search: Annotated[
        str | None, typer.Option(help="Measure whole models instead: greedy, pairwise, exact or tpe.")
    ] = None,
    objective: Annotated[str, typer.Option(help="Of a search: sqnr of the outputs, kl or top1.")] = "sqnr",
    at_most: Annotated[int | None, typer.Option(min=1, help="Methods that a kind of operator may have.")] = None,
    costs: Annotated[
        Path | None, typer.Option(help="TOML, a table per operator: cost of a site by method, as `ibert = 3.0`.")
    ] = None,
    most_cost: Annotated[float | None, typer.Option(help="That all sites together may have.")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Mappings that a search may measure.")] = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.9999, help="That a search's choice is better on other images; 0: no matter. [default: 0.95]"
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="SQLite file that keeps what a search measured. [default: OUTPUT.search until it is done]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of intervals, and of searches that draw.")] = 0,
    rows: Annotated[Path | None, typer.Option(help="Write the scores to this CSV file, a line per image.")] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Uniform candidates, separated by commas. [default: those of ibert,fqvit,ivit that there are]"
        ),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="Recipe, TOML: docs/recipes.md.")] = None,
    preset: PresetOpt = None,
    bits: Annotated[int | None, typer.Option(help="Width of weights and activations, 4 to 8. [default: 8]")] = None,
    observer: Annotated[
        str | None,
        typer.Option(
            help="minmax (default), percentile, mse, kl, or auto: the best range for each, judged on those of --limit."
        ),
    ] = None,
    numerics: NumericsOpt = None,
    limit: LimitOpt = None,
    calibrate_limit: Annotated[int | None, typer.Option(min=1, help="Calibrate on the first images only.")] = None,
    batch: BatchOpt = 32,
    threads: ThreadsOpt = None,
    mean: MeanOpt = None,
    std: StdOpt = None,
    resize: ResizeOpt = None,
    fallback: Annotated[
        bool, typer.Option(help="Hand out the best uniform model where the rule's is worse on these images.")
    ] = True,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Run the models in so many processes of one thread (Dask).")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run them on the workers of this Dask scheduler.")
    ] = None,
    part: Annotated[int | None, typer.Option(min=1, help="Images that a worker is sent at once. [default: 64]")] = None,
    as_json: JsonOpt = False,
) -> None:
    """Run the uniform models against the float model; choose the least-error method per site.

    The chosen model is measured on the same images, and never handed out without a word where a uniform one is better.
    With --search whole models are measured, from the best uniform one on, and the best is handed out; a search that
    was ended goes on where it was.

    Example: intvit map vit.onnx --recording recording.h5 --images fashion-mnist:calibration -o mapping.json

    Example: intvit map vit.onnx --images images.h5 --limit 1000 -o mapping.json

    Example: intvit map vit.onnx --images images.h5 --limit 64 --search pairwise --at-most 2 -o mapping.json

    Example: intvit map vit.onnx --images images.h5 --scheduler tcp://10.0.0.5:8786 -o mapping.json
    """
    from intvit.analysis.report import mapping_table
    from intvit.floats.importers.onnx import float_graph, load_model
    from intvit.floats.live import LiveActivations
    from intvit.floats.model import FloatModel
    from intvit.floats.recording import Recording
    from intvit.lowering.calibrate import calibrate
    from intvit.mapping.candidates import default_candidates
    from intvit.mapping.mapping import Search, map_methods
    from intvit.mapping.quadratic import read_constraints
    from intvit.mapping.rules import CONFIDENCE
    from intvit.mapping.store import Store
    from intvit.mapping.workers import PART, Shards, cluster

    spread = workers is not None or scheduler is not None
    if not spread:
        _none_of({"--part": part}, "must go with --workers or --scheduler")
    if threads is not None and spread:
        raise IntvitError("--threads: must not go with --workers or --scheduler, whose workers have one each")
    given = {"--objective": objective != "sqnr", "--at-most": at_most, "--costs": costs, "--most-cost": most_cost,
             "--budget": budget, "--confidence": confidence is not None, "--store": store}  # fmt: skip
    if search is None:
        _none_of(given, "must go with --search")
    graph = float_graph(load_model(model))
    chosen = _recipe(graph, recipe, None, None, preset, bits, observer, numerics)
    constraints = read_constraints(at_most, costs, most_cost)
    options = {"mean": mean, "std": std, "resize": resize}
    with ExitStack() as stack:
        recorded = stack.enter_context(Recording(recording)) if recording is not None else None
        source = _images(images, _input_shape(graph), graph.metadata, **options,
                         recorded=recorded and recorded.preprocessing)  # fmt: skip
        float_model = FloatModel(model)
        activations: Any = recorded or LiveActivations(float_model, source, limit)
        report = stack.enter_context(progress("map"))
        seen = calibrate_limit or limit
        candidates = default_candidates(graph) if methods is None else tuple(methods.split(","))
        chosen = _observed(
            graph,
            float_model,
            activations,
            chosen,
            seen,
            report,
            judged=limit or activations.n_images,
            methods=candidates,
        )
        calibration = calibrate(graph, activations, chosen, limit=seen)
        shards = None
        if spread:
            shards = Shards(stack.enter_context(cluster(scheduler, workers)), float_model, part or PART)
        wanted, kept = None, store or output.with_name(f"{output.name}.search")
        if search is not None:
            opened, searching = stack.enter_context(Store(kept)), stack.enter_context(progress(f"search {search}"))
            labels = source.labels if objective == "top1" else None
            sure = CONFIDENCE if confidence is None else confidence
            wanted = Search(search, objective, constraints, budget, sure, labels, opened, searching)
        mapping = map_methods(
            graph,
            activations,
            source,
            calibration,
            chosen,
            candidates,
            rule=rule,
            basis=basis,
            fixed=_fixed(graph, chosen, fix or []),
            seed=seed,
            search=wanted,
            shards=shards,
            limit=limit,
            batch=batch,
            threads=threads,
            fallback=fallback,
            progress=report,
        )
    if rows is not None:
        _write_whole(rows, mapping.table.write_csv)
    _write_whole(output, mapping.write)
    if search is not None and store is None:
        kept.unlink(missing_ok=True)
    _applied(source.preprocessing)
    for note in [*mapping.skipped, *mapping.notes]:
        _notice(f"note: {note}")
    if as_json:
        print(json.dumps(mapping.as_json(), sort_keys=True))
        return
    out.print(mapping_table(mapping))
    _notice(f"wrote {output}")


def _fixed(graph: FloatGraph, recipe: Recipe, texts: list[str]) -> dict[str, Any]:
    """Sites that no choice is made for, from SITE=METHOD or SITE."""
    from intvit.lowering.recipe import Choice

    fixed: dict[str, Any] = {}
    for text in texts:
        site, _, method = text.partition("=")
        fixed[site] = Choice(method=method) if method else recipe.choice(graph.node(site).op, site)
    return fixed


@app.command("report")
def report_command(
    words: Annotated[
        list[str], typer.Argument(metavar="MODEL | diff A B", help="Float model, ONNX; or two reports to compare.")
    ],
    mapping: Annotated[Path | None, typer.Option(help="From `intvit map`, of this model.")] = None,
    calibrate: Annotated[str | None, typer.Option(help="Images to calibrate on, as for `map`.")] = None,
    recording: Annotated[Path | None, typer.Option(help="Instead: recording of this model.")] = None,
    images: Annotated[str | None, typer.Option(help="Images to judge on, labelled ones if there are.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.")] = None,
    calibrate_limit: Annotated[int | None, typer.Option(min=1, help="Calibrate on the first images only.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge on the first images only.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Uniform models, separated by commas. [default: the mapping's candidates]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of intervals.")] = 0,
    threads: ThreadsOpt = None,
    mean: MeanOpt = None,
    std: StdOpt = None,
    resize: ResizeOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """One HTML page about a mapping, beside the float model and the uniform ones; or what differs between two reports.

    The folder holds report.html, which needs no network, report.json and tables for other tools: outputs.csv,
    sites.csv, rows.csv. The widths are those of the mapping file.

    Example: intvit report vit.onnx --mapping mapping.json --calibrate images.h5 --images test.h5 -o report

    Example: intvit report diff report_a report_b
    """
    given = {"--mapping": mapping, "--calibrate": calibrate, "--recording": recording, "--images": images,
             "--output": output, "--calibrate-limit": calibrate_limit, "--limit": limit, "--methods": methods,
             "--seed": seed, "--threads": threads, "--mean": mean, "--std": std, "--resize": resize}  # fmt: skip
    if words[0] == "diff":
        _none_of(given, "must go with a model, not with diff")
        _report_diff(words[1:], as_json)
        return
    if len(words) > 1:
        raise IntvitError(f"report: must be given one model, or diff and two reports, not {' '.join(words)}")
    if as_json:
        raise IntvitError("--json: must go with diff; a report has its report.json")
    if mapping is None or images is None or output is None:
        raise IntvitError("--mapping, --images, --output: must be given with a model")
    if (calibrate is None) == (recording is None):
        raise IntvitError("--calibrate and --recording: one of them must be given, and only one")
    from intvit.files import whole_folder
    from intvit.floats.importers.onnx import float_graph, load_model
    from intvit.floats.live import LiveActivations
    from intvit.floats.model import FloatModel
    from intvit.floats.recording import Recording
    from intvit.report.collect import Inputs, collect, make
    from intvit.report.data import read_mapping
    from intvit.report.folder import write
    from intvit.report.page import headline

    model, mapped = Path(words[0]), read_mapping(mapping)
    graph = float_graph(load_model(model))
    recipe = _recipe(graph, None, mapping, None, None, None, None)
    options = {"mean": mean, "std": std, "resize": resize}
    with ExitStack() as stack:
        float_model, shape = FloatModel(model, threads=threads), _input_shape(graph)
        activations: Any
        if recording is not None:
            activations = stack.enter_context(Recording(recording))
        else:
            source = _images(cast(str, calibrate), shape, graph.metadata, **options)
            activations = LiveActivations(float_model, source, calibrate_limit)
        test = _images(images, shape, graph.metadata, **options, recorded=activations.preprocessing)
        inputs = Inputs(
            graph, float_model, mapped, recipe, activations, test, (model, mapping, calibrate or str(recording)),
            mapped.methods if methods is None else tuple(methods.split(",")), calibrate_limit, limit, threads, seed,
            _again(words[0], given),
        )  # fmt: skip
        made = make(inputs, progress)
        folder = stack.enter_context(whole_folder(output))
        report, table = collect(inputs, made, progress)
        write(folder, report, table)
    _applied(test.preprocessing)
    for warning in report.warnings:
        _notice(f"note: {warning}")
    out.print(headline(report), highlight=False, markup=False, soft_wrap=True)
    _notice(f"wrote {output / 'report.html'}")


def _again(model: str, given: dict[str, Any]) -> str:
    """The command line that makes a report once more."""
    import shlex

    words = ["intvit", "report", model]
    for option, value in given.items():
        for each in value if isinstance(value, list) else [value] if value else []:
            words += [option, str(each)]
    return shlex.join(words)


def _report_diff(words: list[str], as_json: bool) -> None:
    from intvit.report.data import read_report
    from intvit.report.diff import differing

    if len(words) != 2:
        raise IntvitError(f"report diff: must be given two reports, not {len(words)}")
    found = differing(*(read_report(Path(word)) for word in words))
    if as_json:
        print(json.dumps([vars(each) for each in found], indent=1))
    elif not found:
        out.print("nothing differs")
    else:
        from rich.text import Text

        table = Table()
        for header in ("what", "a", "b", "b - a"):
            table.add_column(header, overflow="fold")
        details = sum(each.detail for each in found)
        for each in (each for each in found if not each.detail):
            gain = "" if each.gain is None else f"{each.gain:+.4g}"
            table.add_row(*(Text(text) for text in (each.what, _value(each.a), _value(each.b), gain)))
        out.print(table)
        if details:
            out.print(f"and {details} intervals and details of scores: --json", highlight=False)


def _value(value: Any) -> str:
    """Of a report, in a cell."""
    text = "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."


@app.command()
def prove(
    graph: GraphArg,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write: prove.json, prove.csv, intvit_widths_pkg.sv."),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Write every claim that tools/check_certificate.py derives again."),
    ] = None,
    images: Annotated[str | None, typer.Option(help="Images whose values are to be shown beside the proofs.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="A line for every signal of every site.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="With --images: the first images only. [default: 8]")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="With --images: threads; default all cores.")] = None,
    mean: MeanOpt = None,
    std: StdOpt = None,
    resize: ResizeOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Prove how wide every intermediate of an integer graph gets, which roundings can tie, which clamps can act.

    Intervals of sums, products and the other named signals of every operator, for all inputs that fit the types, from
    the actual weights and constants; least widths, and what the declared types leave. Of a requantization the least
    operand that ties and matters, or that there is none: then half_even, half_up and half_away give the same codes.
    docs/prove.md derives the rules and says what is not proven.

    Example: intvit prove vit_int8.h5

    Example: intvit prove vit_int8.h5 --all --images fashion-mnist:test --limit 4

    Example: intvit prove vit_int8.h5 -o proof --certificate proof.json && python tools/check_certificate.py proof.json
    """
    given = {"--limit": limit, "--threads": threads, "--mean": mean, "--std": std, "--resize": resize}
    if images is None:
        _none_of(given, "must go with --images")
    if certificate is not None and certificate.suffix != ".json":
        raise IntvitError(f"--certificate: must end in .json, beside which its .npz stands, not {certificate.name!r}")
    from intvit.engine.batches import batches
    from intvit.files import whole_folder
    from intvit.graph.store import load
    from intvit.proofs import certificate as certificates
    from intvit.proofs import render
    from intvit.proofs.observe import observe
    from intvit.proofs.walk import prove as run

    integer = load(graph)
    source = None
    if images is not None:
        source = _images(images, _input_shape(integer), integer.metadata, calibrated=True, mean=mean, std=std,
                         resize=resize)  # fmt: skip
    with ExitStack() as stack:
        folder = None if output is None else stack.enter_context(whole_folder(output))
        with progress("prove") as report:
            found = run(integer, progress=report)
        if source is not None:
            count = min(limit or PROVE_IMAGES, len(source))
            with progress("observe") as report:
                found = observe(found, integer, batches(source, count, 1), count, threads=threads, progress=report)
        if folder is not None:
            render.write_folder(folder, found)
        if certificate is not None:
            side = certificates.side_file(certificate)
            names = [stack.enter_context(whole_file(path)) for path in (side, certificate)]
            with progress("certificate") as report:
                certified = certificates.certified(integer, report)
            data = certificates.constants(integer)
            names[0].write_bytes(data)
            names[1].write_text(certificates.format_certificate(integer, certified, side.name, data), encoding="ascii")
    if source is not None:
        _applied(source.preprocessing)
    if as_json:
        print(json.dumps(render.as_json(found)))
    else:
        _show_proof(graph.name, found, everything)
    for path in [path for path in (output, certificate) if path is not None]:
        _notice(f"wrote {path}")


def _show_proof(name: str, found: Any, everything: bool) -> None:
    from intvit.proofs import render

    headers = ["operator", "signal", "site", "low", "high", "how", "bits", "declared", "slack", "seen"]
    if all(claim.observed is None for claim in found.claims):
        headers.pop()
    what = "every signal" if everything else "sums, products and outputs, the widest of all sites"
    table = Table(title=f"{name}: {what}", title_justify="left")
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i < 3 else "right", overflow="fold")
    for row in render.claim_rows(found, everything):
        table.add_row(*row[: len(headers)])
    out.print(table)
    for title, lines in (
        ("", render.tie_lines(found, everything)),
        ("Clamps, saturations and wraps, by site:", render.clamp_lines(found, everything)),
        ("Beyond words of 32 bits:", render.note_lines(found, everything)),
        ("Not proven, taken as declared:", [f"  {site}: {why}" for site, why in found.unproven.items()]),
    ):
        for line in [title, *lines] if title and lines else lines:
            out.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command("costs")
def costs_command(
    graphs: Annotated[list[Path], typer.Argument(help="Integer graphs, from `intvit lower`: one for each method.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="TOML to write: cost of a site by method, for `map --costs`.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="KIND=NUMBER,...", help="What an operation costs; the others as usual: multiplications=1, "
                     "additions=0.1, shifts=0.1, comparisons=0.1, divisions=10, roots=10."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every site, not sums by method.")] = False,
    as_json: JsonOpt = False,
) -> None:  # fmt: skip
    """Count what every operator does for one image: multiplications, additions, shifts, divisions, bytes, table bits.

    Of methods they are counted in their own specification. Of several graphs the methods are put side by side.

    Example: intvit costs ivit.h5 ibert.h5 fqvit.h5 --weights divisions=20 -o costs.toml

    Example: intvit map vit.onnx --images images.h5 --search greedy --costs costs.toml --most-cost 1e6 -o mapping.json
    """
    from intvit.analysis.costs import KINDS, all_methods, by_method, costs, format_toml, read_weights, records, summed
    from intvit.graph.store import load

    weighed = read_weights(weights)
    found = all_methods([costs(load(path)) for path in graphs])
    shown = records(found if every or as_json else summed(found), weighed)
    if output is not None:
        text = format_toml(by_method(found, weighed))

        def write(path: Path) -> None:
            path.write_text(text)

        _write_whole(output, write)
        _notice(f"wrote {output}")
    if as_json:
        print(json.dumps(shown, indent=1))
        return
    columns = [*KINDS, "weighed", "bytes_moved", "bytes_constant", "table_bits"]
    rows = [
        [" ".join(filter(None, (each["site"], each["operator"], each["method"]))),
         *("" if each[key] is None else f"{each[key]:,.0f}" for key in columns)]
        for each in shown
    ]  # fmt: skip
    out.print(_table("Operations for one image", ["", *(key.replace("_", " ") for key in columns)], rows))


@app.command()
def methods(
    check: Annotated[
        str | None, typer.Option(help="Try the methods of this name (`mine` or `mine.v2`); exit 1 if one fails.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """List the integer methods of each non-linear operator, or try one: spec against kernel, bounds, golden vectors.

    Example: intvit methods

    Example: intvit methods --check my_softmax
    """
    from intvit.kernels import registry

    if check is not None:
        _check_methods(check, as_json)
        return
    found = [
        {"id": m.id, "source": m.source, "summary": m.summary, "informative": m.informative} for m in registry.methods()
    ]
    if as_json:
        print(json.dumps(found))
        return
    table = Table("method", "summary", "source")
    for m in found:
        table.add_row(str(m["id"]), str(m["summary"]), str(m["source"]))
    out.print(table)


def _check_methods(name: str, as_json: bool) -> None:
    from intvit.analysis.battery import findings
    from intvit.kernels import registry

    tried = [m for m in registry.methods() if name in (m.name, f"{m.name}.v{m.version}")]
    if not tried:
        raise IntvitError(
            f"--check: must be one of {', '.join(sorted({m.name for m in registry.methods()}))}, not {name!r}"
        )
    found = {m.id: findings(m) for m in tried}
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        for key, lines in found.items():
            out.print(f"{key}: {'; '.join(lines) or 'nothing found'}", highlight=False, markup=False, soft_wrap=True)
    if any(found.values()):
        raise typer.Exit(1)


@golden.command("export")
def golden_export(
    graph: GraphArg,
    images: Annotated[str | None, typer.Argument(help="As of `run`. Not with --directed.")] = None,
    *,
    output: OutputOpt,
    site: Annotated[list[str] | None, typer.Option(help="Site, operator or operator.method; * and ? allowed.")] = None,
    part: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SITE,...", help="These sites as one case, by patterns as --site.")
    ] = None,
    span: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SITE..SITE", help="From one site to another as one case.")
    ] = None,
    first: Annotated[int, typer.Option(min=0, help="Index of the first image.")] = 0,
    count: Annotated[int, typer.Option("--count", "--limit", min=1, help="Number of images.")] = 1,
    hex_files: Annotated[bool, typer.Option("--hex/--no-hex", help="Write $readmemh files.")] = True,
    taps: Annotated[bool, typer.Option("--taps", help="Named intermediates of every operator too.")] = False,
    layout: Annotated[
        Path | None, typer.Option(metavar="TOML", help="Layouts of the memory files (docs/layouts.md). [default: hex]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an export with --resume was ended.")] = False,
    directed: Annotated[
        int | None, typer.Option(min=1, max=2, metavar="LEVEL", help="Directed stimuli in place of images: 1 or 2.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="With --directed.")] = 0,
    mean: MeanOpt = None,
    std: StdOpt = None,
    resize: ResizeOpt = None,
) -> None:
    """Write golden vectors: a folder per site (or part of the graph) and image, npz and $readmemh hex, with manifests.

    A name that ends in .zip gets one file.

    Example: intvit golden export vit.h5 fashion-mnist:test -o vectors --site 'blocks.0.*' --site softmax

    Example: intvit golden export vit.h5 images.h5 -o block.zip --part 'block0=blocks.0.*' --taps

    Example: intvit golden export vit.h5 -o corners --directed 1 --site 'blocks.0.*'

    Example: intvit golden export vit.h5 images.h5 -o mlp --span mlp=blocks.0.norm2..blocks.0.add2
    """
    from intvit.graph.store import load
    from intvit.vectors.export import directed_stimuli, export, export_stimuli, select_parts
    from intvit.vectors.layouts.layout import read_values

    integer = load(graph)
    parts = {name: text.split(",") for name, text in _named("--part", part, "NAME=SITE,...").items()}
    spans = {name: _span(text) for name, text in _named("--span", span, "NAME=SITE..SITE").items()}
    chosen = select_parts(integer, site or ([] if parts or spans else ["*"]), parts, spans)
    layouts = None if layout is None else read_values(layout)
    common: dict[str, Any] = {"hex_files": hex_files, "taps": taps, "resume": resume, "layouts": layouts}
    if directed is not None:
        _none_of({"IMAGES": images, "--first": first, "--count": count > 1, "--mean": mean, "--std": std,
                  "--resize": resize}, "must not go with --directed")  # fmt: skip
        with progress("directed") as report:
            stimuli = {}
            for i, each in enumerate(chosen):
                stimuli[each.name] = directed_stimuli(each.graph, seed, directed)
                report(i + 1, len(chosen))
        with progress("export") as report:
            index = export_stimuli(integer, stimuli, output, parts=chosen, **common, progress=report)
        for name, each_site in stimuli.items():
            if missed := each_site.coverage["counts"]["missed"]:
                _notice(f"note: {name}: {missed} classes are missed; coverage.json names them")
        _notice(f"wrote {index.n_cases} cases to {output}, digest {index.digest}")
        return
    if images is None:
        raise IntvitError("IMAGES: must be given, or --directed")
    _none_of({"--seed": seed}, "must go with --directed")
    source = _images(images, _input_shape(integer), integer.metadata, calibrated=True, mean=mean, std=std,
                     resize=resize)  # fmt: skip
    if first + count > len(source):
        raise IntvitError(f"--first/--count: must lie within {len(source)} images, not {first}..{first + count - 1}")
    with progress("export") as report:
        index = export(integer, source.read(first, first + count), output, parts=chosen, first_image=first,
                       progress=report, **common)  # fmt: skip
    _applied(source.preprocessing)
    _notice(f"wrote {index.n_cases} cases to {output}, digest {index.digest}")


def _named(option: str, texts: list[str] | None, form: str) -> dict[str, str]:
    """NAME=TEXT, each name once."""
    found: dict[str, str] = {}
    for text in texts or []:
        name, _, rest = text.partition("=")
        if not name or not rest:
            raise IntvitError(f"{option}: must be {form}, not {text!r}")
        if name in found:
            raise IntvitError(f"{option}: {name} must be given once")
        found[name] = rest
    return found


def _span(text: str) -> tuple[str, str]:
    start, _, end = text.partition("..")
    if not start or not end:
        raise IntvitError(f"--span: must be NAME=SITE..SITE, not {text!r}")
    return start, end


@golden.command("check")
def golden_check(
    folder: Annotated[Path, typer.Argument(help="Folder or zip of golden vectors.")],
    backend: Annotated[list[str] | None, typer.Option(help="spec, kernel; default both.")] = None,
    digest: Annotated[str | None, typer.Option(help="The bundle's digest, as `golden export` printed it.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes. [default: one a core, of 100 parts on]")] = None,
    full: Annotated[bool, typer.Option("--full", help="All rows of large sites by the specification too.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Recompute every case with both backends; exit 1 with the first differing element if any bit changed.

    --digest ties the whole folder, names and scales too, to what was exported.

    Example: intvit golden check vectors
    """
    from intvit.vectors.check import BACKENDS, check

    with progress("check") as report:
        found = check(folder, backends=backend or BACKENDS, digest=digest, full=full, jobs=jobs, progress=report)
    mismatches = [str(mismatch) for mismatch in found.mismatches]
    if as_json:
        print(json.dumps({"cases": found.n_cases, "digest": found.digest, "mismatches": mismatches,
                          "spec_rows": list(found.rows)}))  # fmt: skip
    else:
        for line in mismatches[:20]:
            out.print(line, soft_wrap=True, highlight=False, markup=False)
        verdict = "every bit equal" if not mismatches else f"{len(mismatches)} comparisons differ"
        out.print(f"{found.n_cases} cases: {verdict}", highlight=False)
        if found.rows[1]:
            some, rows = found.rows
            out.print(f"of large sites the specification computed {some} of {rows} rows (--full: all)")
        out.print(f"digest {found.digest}", highlight=False)
    if mismatches:
        raise typer.Exit(1)


@golden.command("schema")
def golden_schema() -> None:
    """Print the JSON Schema of the manifests of a bundle: index.json, part.json, case.json.

    Example: intvit golden schema > golden.schema.json
    """
    from intvit.vectors.manifest import schema

    print(json.dumps(schema(), indent=1, sort_keys=True))


def _whatif_help() -> str:
    from intvit.analysis.injections import SYNTAX, USAGE

    text = (
        "Put deviations of hardware into an integer graph; say how far they spread on images, and what they cost.\n\n"
        f"--inject {SYNTAX}: SITE is a shell pattern over site, operator and operator.method, as `intvit sites` lists "
        "them; it may name more sites than the kind fits. Kinds:\n\n"
        + "\n\n".join(f"- {usage}" for usage in USAGE.values())
        + "\n\nA width with a minus is so many bits fewer. Of every site behind a change: share of elements changed, "
        "largest difference, SQNR against the golden integers; at the outputs also the class, with 95 % intervals. "
        "docs/whatif.md explains each kind."
        + "\n\nExample: intvit whatif vit_int8.h5 fashion-mnist:test --inject 'blocks.0.*:rounding=floor'"
        + "\n\nExample: intvit whatif vit_int8.h5 fashion-mnist:test --limit 200 --isolated "
        "--inject 'softmax:bit=3,stuck0' --inject 'linear:accumulator_bits=20,wrap'"
    )
    return text.replace("[", r"\[")


@app.command("whatif", help=_whatif_help())
def whatif_command(
    graph: GraphArg,
    images: ImagesArg,
    injected: Annotated[
        list[str], typer.Option("--inject", metavar="SITE:KIND=VALUE", help="A deviation; repeat.", show_default=False)
    ],
    isolated: Annotated[
        bool, typer.Option("--isolated", help="Every site that is changed also alone, all others golden.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the changed graph, HDF5, for `run`, `eval`, `golden`.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a line per site to this file.")] = None,
    limit: LimitOpt = None,
    batch: BatchOpt = 8,
    threads: ThreadsOpt = None,
    mean: MeanOpt = None,
    std: StdOpt = None,
    resize: ResizeOpt = None,
    as_json: JsonOpt = False,
) -> None:
    from intvit.analysis import whatif
    from intvit.analysis.injections import parse
    from intvit.files.records import write_csv
    from intvit.graph.store import load, save

    injections = [parse(text) for text in injected]
    integer = load(graph)
    source = _images(images, _input_shape(integer), integer.metadata, calibrated=True, mean=mean, std=std,
                     resize=resize)  # fmt: skip
    with progress("whatif") as report:
        found, changed = whatif.whatif(integer, source, injections, isolated=isolated, limit=limit, batch=batch,
                                       threads=threads, progress=report)  # fmt: skip
    if csv is not None:
        _write_whole(csv, lambda path: write_csv(path, whatif.records(found)))
    if output is not None:
        save(changed, output)
    _applied(source.preprocessing)
    if as_json:
        print(json.dumps(whatif.as_json(found)))
    else:
        _show_whatif(graph.name, found)
    for path in [path for path in (csv, output) if path is not None]:
        _notice(f"wrote {path}")


def _show_whatif(name: str, found: Any) -> None:
    from intvit.analysis import whatif

    table = _table(f"{name}, {found.images} images: every site behind a change", list(whatif.HEADERS), [])
    for column in table.columns[1:3]:
        column.justify = "left"
    for row in whatif.rows(found):
        table.add_row(*row)
    out.print(table)
    if found.alone:
        out.print(_table("Each changed site alone, all others golden", list(whatif.ALONE_HEADERS),
                         list(whatif.alone_rows(found))))  # fmt: skip
    for line in whatif.lines(found):
        out.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command("sites")
def sites_command(
    graph: GraphArg,
    site: Annotated[list[str] | None, typer.Option(help="Site, operator or operator.method; * and ? allowed.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Layout too: how elements come to their sites.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """List the sites of an integer graph in execution order: operator, types and shapes of inputs and output.

    Constants are counted with the numbers of a method and of a requantization; --json names each with its shape.

    These are the names that `golden export --site` and `whatif --inject` take.

    Example: intvit sites vit_int8.h5

    Example: intvit sites vit_int8.h5 --site 'blocks.0.attn.*' --all
    """
    from intvit.analysis import sites
    from intvit.graph.store import load

    found = sites.sites(load(graph), site or ["*"], layout=everything)
    if as_json:
        print(json.dumps(found))
        return
    table = _table(f"{graph.name}, {len(found)} sites", ["site", "operator", "inputs", "output", "constants"], [])
    for column in table.columns[1:4]:
        column.justify = "left"
    for row in sites.rows(found):
        table.add_row(*row)
    out.print(table)


@golden.command("bench")
def golden_bench(
    folder: Annotated[Path, typer.Argument(help="Folder of golden vectors.")],
    top: Annotated[Path, typer.Option(help="SystemVerilog file of the top module, which has the file's name.")],
    case: Annotated[list[str] | None, typer.Option(help="Case by name; * and ? allowed. Default all.")] = None,
    bench: Annotated[list[str] | None, typer.Option(help="sv, cocotb; default both.")] = None,
    simulator: Annotated[str, typer.Option(help="verilator or icarus.")] = "verilator",
    seed: Annotated[int, typer.Option(help="Of the stalls and of the flipped bits.")] = 1,
    stall: Annotated[int, typer.Option(help="Cycles in 100 in which a stream pauses, 0 to 95.")] = 25,
    word: Annotated[int | None, typer.Option(help="Bits of every word, sign-extended; default as each type needs.")]
    = None,
    timeout: Annotated[int, typer.Option(help="Cycles without a word after which a case has failed.")] = 1_000_000,
    selftest: Annotated[bool, typer.Option(help="Flip one bit of each expected file: the bench must fail.")] = False,
    keep: Annotated[Path | None, typer.Option(help="New folder for benches, memories, logs.")] = None,
    as_json: JsonOpt = False,
) -> None:  # fmt: skip
    """Replay cases against RTL in a SystemVerilog and a cocotb bench with seeded stalls; exit 1 if a bit differs.

    The ports and parameters of a top module: docs/rtl.md. Needs the extra `rtl`, and g++, make and perl, or Icarus.

    Example: intvit golden bench vectors --top softmax_ivit.sv --case 'blocks.*.softmax' --selftest
    """
    from intvit.vectors.bench import Job, read_top
    from intvit.vectors.bench import bench as replay
    from intvit.vectors.bench.simulate import BENCHES
    from intvit.vectors.cases import read_cases

    module = read_top(top)
    jobs = [Job(each, module, word) for each in read_cases(folder, case or ())]
    with err.status("bench") if err.is_terminal else nullcontext() as status:
        report = replay(jobs, simulator=simulator, benches=bench or BENCHES, seed=seed, stall=stall, timeout=timeout,
                        selftest=selftest, keep=keep,
                        progress=lambda text: status.update(text) if status else None)  # fmt: skip
    if as_json:
        print(json.dumps(report.summary))
    else:
        for line in report.lines():
            out.print(line, soft_wrap=True, highlight=False, markup=False)
    if not report.passed:
        raise typer.Exit(1)


@golden.command("compare")
def golden_compare(
    cases: Annotated[Path, typer.Argument(help="Folder or zip of golden vectors.")],
    dump: Annotated[Path, typer.Argument(help="What the device gave: an npz archive, or a folder named as the cases.")],
    graph: Annotated[Path | None, typer.Option(help="Integer graph of the cases: how layout moves elements between "
                                               "them.")] = None,
    layout: Annotated[
        Path | None, typer.Option(metavar="TOML", help="Layouts of the dump. [default: those of the cases]")
    ] = None,
    image: Annotated[list[int] | None, typer.Option(help="Only this image; repeat for more.")] = None,
    isolated: Annotated[bool, typer.Option("--isolated", help="The bench gave every case its golden stimuli.")] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Elements may be missing; x and z are taken for missing.")
    ] = False,
    causes: Annotated[bool, typer.Option("--causes/--no-causes", help="Look for what explains each root.")] = True,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML to write: a testcase for each site and image.")] = None,
    as_json: JsonOpt = False,
) -> None:  # fmt: skip
    """Compare a device's dump with golden vectors: where it went wrong first, and which single fault explains it.

    Exit 1 if an element differs, 2 for a dump that cannot be read as these cases. docs/compare.md.

    Example: intvit golden compare vectors dump.npz --junit report.xml

    Example: intvit golden compare vectors dump --layout device.toml
    """
    from intvit.graph.store import load
    from intvit.vectors.cases import read_cases
    from intvit.vectors.diagnosis import report as reports
    from intvit.vectors.diagnosis.compare import compare
    from intvit.vectors.diagnosis.dump import open_dump
    from intvit.vectors.layouts.layout import read_layouts

    known = read_cases(cases)
    layouts = known[0].layouts if layout is None else read_layouts(layout)
    with progress("compare") as advance:
        found = compare(known, open_dump(dump, layouts), graph=None if graph is None else load(graph), images=image,
                        causes=causes, isolated=isolated, partial=partial, progress=advance)  # fmt: skip
    if junit is not None:
        with whole_file(junit) as path:
            path.write_bytes(reports.junit(found))
    if as_json:
        print(json.dumps(reports.document(found)))
    else:
        for line in reports.lines(found):
            out.print(line, soft_wrap=True, highlight=False, markup=False)
        if found.differs:
            headers = ["site", "status", "images", "elements", "different", "missing"]
            out.print(_table("sites that are not equal", headers, reports.rows(found)))
    if found.differs:
        raise typer.Exit(1)


@app.command()
def demo(
    output: OutputOpt = Path("intvit-demo"),
    images: Annotated[int, typer.Option(min=16, max=1000, help="Test images to evaluate.")] = 1000,
    calibration: Annotated[int, typer.Option(min=8, max=512, help="Calibration images to record.")] = 64,
    threads: ThreadsOpt = None,
) -> None:
    """The whole pipeline on the embedded model and data; ends with accuracy, mapping and verified vectors.

    Example: intvit demo -o demo-output
    """
    from intvit.analysis.demo import run_demo

    run_demo(output, n_test=images, n_calibration=calibration, threads=threads, out=out, progress=progress)


@app.callback(invoke_without_command=True)
def _callback(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from intvit import __version__

        print(__version__)
        raise typer.Exit


class _Terminated(BaseException):
    """SIGTERM or SIGHUP: what an interrupt cleans up, they do."""


class _CannotPrint(Exception):
    """Standard output does not take what is printed."""


class _Stdout:
    """Standard output, whose errors differ from those of every other file."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except (OSError, ValueError) as error:
            raise _CannotPrint from error

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            raise _CannotPrint from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    warnings.formatwarning = lambda message, *rest, **options: f"intvit: warning: {message}\n"
    try:
        with redirect_stdout(cast(Any, _Stdout(sys.stdout or open(os.devnull, "w")))):
            status = app(arguments, standalone_mode=False)
            sys.stdout.flush()
        if status == INTERRUPTED:  # newer versions of typer return what older ones raise
            raise KeyboardInterrupt
        words = sys.argv[1:] if arguments is None else arguments
        if status == 1 and any(word.startswith(COMPLETION) for word in words):  # typer's, of a shell it does not know
            return USAGE
        return status if isinstance(status, int) else 0
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return USAGE
        command = error.ctx.command_path if error.ctx else "intvit"
        return _say(f"{error.format_message()} ({command} -h)", USAGE)
    except IntvitError as error:
        return _say(str(error), USAGE)
    except ClickException as error:
        return _say(error.format_message(), USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", INTERRUPTED)
    except _Terminated as error:
        return _say("terminated", 128 + int(error.args[0]))
    except MemoryError:
        return _say("not enough memory; use a smaller --batch", USAGE)
    except _CannotPrint as error:
        return _close_stdout(cast(Exception, error.__cause__))
    except Exception as error:
        import traceback

        with suppress(OSError):
            traceback.print_exception(error)
        return _say(f"internal error, a bug of intvit; please report it: {type(error).__name__}: {reason(error)}", BUG)


def _say(text: str, status: int) -> int:
    """One line of bearable length, whatever a file may be called and hold."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} [...] {line[-LONGEST_LINE // 2 :]}"
    with suppress(OSError):
        print(f"intvit: {line}", file=sys.stderr)
    return status


def _close_stdout(error: Exception) -> int:
    """Nothing more is tried on standard output, not even at exit."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    if isinstance(error, BrokenPipeError):
        return CLOSED_PIPE
    return _say(f"standard output: cannot be written: {reason(error)}", CANNOT_PRINT)


_ended: list[BaseException] = []
"""What a signal asked for, once it came."""


def _terminate(number: int, frame: Any) -> None:
    _ended.append(KeyboardInterrupt() if number == signal.SIGINT else _Terminated(number))
    raise _ended[0]


def entry() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _terminate)
    sys.exit(main())


if __name__ == "__main__":
    entry()
