r"""COCO JSON files: nothing outside this room reads or writes them.

A file comes in through ``JsonStream`` (``json_stream.py``), a piece at a time, so a million
annotations need no more memory than a thousand. ``fields.py`` says what a record is and is the only
place that does. ``read.py`` stands on it: ``CocoSource`` opens a file (or parsed content),
``iter_images`` and ``iter_objects`` check its records. Everything else stands on these three:

    read_ground_truth, read_predictions    tables for evaluation    ground_truth.py, predictions.py
    CocoIndex                              a file of any size, image by image              index.py
    validate_labels                        a report of all that is wrong                   check.py
    coco_writer                            the one way to write a file, atomically         write.py

Types of records are in ``records.py``, tables of a million of them in ``table.py``, masks in
``rle.py``. Frame everywhere: pixels of the upright original image, boxes XYWH.

What a record may look like (our own choice, the same in every tool):

* Numbers may be text where nothing is lost: ``"640"``, ``"0.5"``; integers may be floats (``1.0``).
  Polygons and run lengths may not.
* An id is an integer of any size or a text; ``1`` and ``"1"`` are two ids.
* ``iscrowd`` is 0, 1, a boolean, or missing. ``score`` missing or null is 1.0. ``area`` missing or
  null is that of the mask, without one that of the box.
* ``bbox`` missing, null or empty, or of no area beside a mask that has pixels, is the mask's box.
* ``segmentation`` is polygons, one flat polygon, or an RLE, compressed or not. Parts of a polygon
  of fewer than three points are left out, and counted.
* ``file_name`` has ``/`` or ``\`` between folders. Names are equal if their Unicode normal forms
  (NFC) are; a file on disk may have any of the forms.
* The file is UTF-8, with a byte-order mark or without.

A record that is anything else is **refused**: a ``RecordError`` names the file, the record and the
value. ``import_labels`` alone can leave such records out (and names them), for it is the tool that
puts files right; ``validate_labels`` reports them all.

A record that is right but of no use is **left out** and counted by reason in a ``Tally``, which is
logged: an object without a mask in a file that has masks, or one without a single pixel (see
``why_useless``). Evaluation alone keeps empty objects, since ``COCOeval`` counts them as missed;
for boxes it keeps objects without a mask.
"""
