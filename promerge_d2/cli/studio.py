"""Look at a label file in a browser and put it right; a new file is saved, the old one stays.

Exit code: 0 stopped by hand, 1 not finished, 3 refused.
"""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence

from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.utils.errors import EXIT_OK


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(prog="promerge studio", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("labels", help="COCO JSON with masks, by whomever it was written")
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="folder that the file names start from (default: the one that was labelled, else that "
        "of the label file)",
    )
    parser.add_argument(
        "--folder",
        metavar="DIR",
        help="for the log of edits, the new files and thumbnails (default: that of the label file)",
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="of the backbone, for the stage view (default: as known)"
    )
    parser.add_argument(
        "--port", type=int, default=8765, help="on 127.0.0.1; 0 for any that is free (8765)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C.

    Args:
        argv: the command line without the program's name; None for that of the process.

    Returns:
        An ``EXIT_*`` code.

    Raises:
        UserError: the label file or the port cannot be used.
    """
    args = make_parser().parse_args(argv)
    from promerge_d2.studio.server import Server, open_port  # an extra, see command.OPTIONAL
    from promerge_d2.studio.session import Session

    port = open_port(args.port)  # before a large file is read
    print(f"reading {args.labels} ...", flush=True)
    session = Session(args.labels, args.images, args.folder, args.weights)
    try:
        server = Server(session, port)
        found = session.overview()
        print(f"{found['photographs']} photographs, {found['masks']} masks", flush=True)
        if found["edits"]:
            print(f"{found['edits']} edits taken up from {session.log.path}", flush=True)
        print(f"open {server.url}  (Ctrl-C ends)", flush=True)
        if args.open:
            webbrowser.open(server.url)
        server.run()
    finally:
        session.close()
    print(f"the edits are in {session.log.path}")
    return EXIT_OK
