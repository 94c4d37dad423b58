"""Options that several commands share, with their help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelName = Annotated[
    str, typer.Argument(help="smollm2, a Hub id, a local folder or a .gguf file.", show_default=True)
]
WorkloadName = Annotated[
    str,
    typer.Option(
        "--workload",
        "-w",
        help="prose, code, chat, math, txt:PATH, jsonl:PATH#field or hf:dataset#split#field.",
    ),
]
Tokens = Annotated[int, typer.Option("--tokens", help="Tokens to trace per workload.")]
Exits = Annotated[str, typer.Option("--exits", help="Layers to measure: all, or 10,20,30.")]
ContextLength = Annotated[
    int | None,
    typer.Option(
        "--context",
        help="Tokens of one sequence at most. By default 512, or what the model takes.",
        show_default=False,
    ),
]
DocumentTokens = Annotated[
    int | None,
    typer.Option(
        "--document-tokens",
        help="Traced tokens per document at most. By default a 64th of --tokens, more if documents are few.",
        show_default=False,
    ),
]
Precision = Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what another command left in the folder.")
]
Repair = Annotated[bool, typer.Option("--repair", help="Trace damaged parts of a finished trace again.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
TraceFolder = Annotated[Path, typer.Argument(help="A folder that offramp trace or offramp run wrote.")]
