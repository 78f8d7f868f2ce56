"""Builders of the binary documents that the tests read: small PDF and docx files, made by the libraries themselves."""

from collections.abc import Sequence
from pathlib import Path

import docx
from docx.oxml import parse_xml
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject


def write_pdf(path: Path, pages: Sequence[str], *, title: str | None = None, user_password: str | None = None) -> Path:
    """A PDF with one line of Helvetica for each line of each page; a page without text stays blank. A user password
    (an empty one too) encrypts it with RC4, which needs no further library."""
    writer = PdfWriter()
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    for text in pages:
        page = writer.add_blank_page(595, 842)
        if not text:
            continue
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
        )
        lines = " ".join(f"({line}) Tj T*" for line in text.split("\n"))
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 14 TL 72 770 Td {lines} ET".encode("latin-1"))
        page[NameObject("/Contents")] = writer._add_object(stream)
    if title is not None:
        writer.add_metadata({"/Title": title})
    if user_password is not None:
        writer.encrypt(user_password, owner_password="owner", algorithm="RC4-128")
    with path.open("wb") as file:
        writer.write(file)
    return path


def write_docx(path: Path, *, title: str = "") -> Path:
    """A handbook of two chapters with a list, a table and a deleted word under review."""
    document = docx.Document()
    document.core_properties.title = title
    document.add_heading("Handbook", 0)
    document.add_paragraph("Read it on the crossing.")
    document.add_heading("Boats", 1)
    document.add_paragraph("rope", style="List Bullet")
    document.add_paragraph("boat hook", style="List Bullet")
    table = document.add_table(rows=0, cols=2)
    for cells in (("part", "limit"), ("wire", "500 kg")):
        for cell, text in zip(table.add_row().cells, cells, strict=True):
            cell.text = text
    document.add_heading("Landing", 2)
    reviewed = document.add_paragraph("Walk on the chain side")
    namespace = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    for xml in (
        f"<w:del {namespace}><w:r><w:t> of the lower steps</w:t></w:r></w:del>",
        f"<w:ins {namespace}><w:r><w:t>, always.</w:t></w:r></w:ins>",
    ):
        reviewed._p.append(parse_xml(xml))
    document.save(str(path))
    return path
