"""A page for one person on this machine to look at a label file and to put it right.

    catalog.py      a label file in columns: what is kept, what is looked for
    edits.py        what the person decided: a log that survives any stop, undo and redo
    outlines.py     masks as outlines of a small picture
    pictures.py     thumbnails, made when they are seen
    stage_view.py   a photograph's features once, then stages for any thresholds
    session.py      all of these together, without HTTP
    saving.py       decisions and file -> a new COCO JSON
    guard.py        who may ask, and for how much
    app.py          routes
    server.py       the port
    static/         the page: HTML, CSS, ES modules, no build step

**Why FastAPI and a page of our own.** Gradio and NiceGUI keep the page's state on the server and
bring several hundred files of JavaScript; a grid of 10,000 photographs that loads only what is
seen, outlines that follow a slider without asking the server, and keys for all that is done, have
to be written by hand in either. So the server answers a dozen plain questions in JSON, checked by
FastAPI from their types, and the page is some hundred lines that a browser runs as they are.

**What the client may name.** Places of photographs and numbers of masks, never a path. A
photograph's place is its rank by id in the label file, from 0; a mask's number its place among its
photograph's annotations, and those that are made here count on from there.
"""
