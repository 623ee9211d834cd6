"""DICOM files to an `Image`.

A file is parsed within limits (`stream`, `files`). Its frames are decoded (`encapsulated`,
`codecs`), turned into modality values (`pixels`) and put where they lie (`geometry`). They make an
image (`series`).
"""
