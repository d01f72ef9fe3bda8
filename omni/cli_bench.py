"""``omni bench``: what is measured, beside what."""

from pathlib import Path
from typing import Any

from omni.cli_tools import Arguments, Command, Parser, UsageError, say, whole

SUBJECTS = {
    "language": "beside transformers",
    "understanding": "media, beside transformers",
    "generation": "beside diffusers",
    "decoding": "drafts and blocks, beside plain decoding of --model (default: tiny-text)",
    "architectures": "a study: sparse and dense layers, attention and hybrids, trained alike",
    "lowbits": "--model beside itself in fewer bits",
}


def _bench_arguments(parser: Parser) -> None:
    parser.add_argument("subject", choices=list(SUBJECTS), help="; ".join(f"{k}: {v}" for k, v in SUBJECTS.items()))
    parser.add_argument("--quick", action="store_true", help="fewer turns and shorter prompts, or runs")
    parser.add_argument("--threads", type=whole(1, 1024), default=2, help="of both sides (default: 2)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="architectures: folder of its runs, which can go on")
    parser.add_argument("--sizes", help="generation: ours alone at published sizes, such as nano, on --device")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="decoding: a picture of speeds and scores")


def _bench(args: Arguments) -> Any:
    for name, subject in (("sizes", "generation"), ("plot", "decoding"), ("out", "architectures")):
        if getattr(args, name) is not None and args.subject != subject:
            raise UsageError(f"--{name} belongs to {subject}, not to {args.subject}")
    if args.subject in ("architectures", "lowbits"):
        return {"architectures": _bench_architectures, "lowbits": _bench_lowbits}[args.subject](args)
    from omni import bench, bench_decoding, bench_generation, bench_understanding

    measures = {
        "language": (bench.bench_language, {}),
        "understanding": (bench_understanding.bench_understanding, {}),
        "generation": (bench_generation.bench_generation, {"device": args.device, "sizes": args.sizes}),
        "decoding": (bench_decoding.bench_decoding, {"model": args.model or "tiny-text", "plot": args.plot}),
    }
    measure, own = measures[args.subject]
    report = measure(quick=args.quick, seed=args.seed, threads=args.threads, **own)
    say(args, bench.table(report))
    return report.as_dict()


def _bench_architectures(args: Arguments) -> Any:
    """Always on one thread: runs are compared by the processor's time, and the machine's other cores stay free."""
    from omni.studies.architectures import planned, study
    from omni.studies.report import markdown

    plan = planned(quick=args.quick, seed=args.seed)
    report = study(args.out or Path("runs/architectures-quick" if args.quick else "runs/architectures"), plan)
    say(args, markdown(report))
    return report


def _bench_lowbits(args: Arguments) -> Any:
    from omni import bench_lowbits

    name = args.model or "tiny"
    report = bench_lowbits.bench_lowbits(name, quick=args.quick, seed=args.seed, threads=args.threads)
    say(args, bench_lowbits.table(report))
    return report.as_dict()


BENCH = Command("measure speed beside the reference implementation", _bench_arguments, _bench, None)
