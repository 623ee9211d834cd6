"""Lossy compression: codecs, approvals, and DICOM objects made under an approval."""
