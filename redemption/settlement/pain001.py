"""The order to the bank as ISO 20022 CustomerCreditTransferInitiation, pain.001.001.09.

Element order and lengths follow the message definition report of the 2019 version (ISO 20022,
Payments Initiation). The account is given under Othr/Id because China has no IBAN; banks are given
by name. What the message says is read back and compared before it is handed out.
"""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from datetime import datetime

from kernel.clock import business_day, rfc3339
from kernel.errors import Broken
from redemption.settlement.batch import Batch, Line
from redemption.settlement.order_csv import end_to_end_id, purpose, yuan

NAMESPACE = "urn:iso:std:iso:20022:tech:xsd:pain.001.001.09"
NAME_LENGTH_MAX = 140
CURRENCY = "CNY"

_IN = {"p": NAMESPACE}


def write_pain001(batch: Batch, lines: Sequence[Line], payer: Sequence[str], approved_at: datetime) -> bytes:
    """The payable lines of a batch (at least one) as UTF-8 XML; dated by the approval, so always the same bytes.

    Raises Broken if the message read back does not say what the lines say.
    """
    document = ET.Element("Document", xmlns=NAMESPACE)
    initiation = ET.SubElement(document, "CstmrCdtTrfInitn")
    _header(ET.SubElement(initiation, "GrpHdr"), batch, payer[0], approved_at)
    payment = ET.SubElement(initiation, "PmtInf")
    _debtor(payment, batch, payer, approved_at)
    for line in lines:
        _transfer(ET.SubElement(payment, "CdtTrfTxInf"), line)
    ET.indent(document, " ")
    data: bytes = ET.tostring(document, encoding="utf-8", xml_declaration=True) + b"\n"
    _check(data, lines)
    return data


def _header(header: ET.Element, batch: Batch, payer_name: str, approved_at: datetime) -> None:
    _text(header, "MsgId", batch.batch_id)
    _text(header, "CreDtTm", rfc3339(approved_at))
    _control_sums(header, batch)
    _name(ET.SubElement(header, "InitgPty"), payer_name)


def _debtor(payment: ET.Element, batch: Batch, payer: Sequence[str], approved_at: datetime) -> None:
    name, account, bank = payer
    _text(payment, "PmtInfId", batch.batch_id)
    _text(payment, "PmtMtd", "TRF")
    _text(payment, "BtchBookg", "false")
    _control_sums(payment, batch)
    _text(ET.SubElement(payment, "ReqdExctnDt"), "Dt", business_day(approved_at).isoformat())
    _name(ET.SubElement(payment, "Dbtr"), name)
    _account(ET.SubElement(payment, "DbtrAcct"), account, CURRENCY)
    _bank(ET.SubElement(payment, "DbtrAgt"), bank)


def _transfer(transfer: ET.Element, line: Line) -> None:
    identity = ET.SubElement(transfer, "PmtId")
    _text(identity, "InstrId", str(line.line_no))
    _text(identity, "EndToEndId", end_to_end_id(line))
    _text(ET.SubElement(transfer, "Amt"), "InstdAmt", yuan(line.amount_fen)).set("Ccy", CURRENCY)
    _bank(ET.SubElement(transfer, "CdtrAgt"), line.payee_bank)
    _name(ET.SubElement(transfer, "Cdtr"), line.payee_name)
    _account(ET.SubElement(transfer, "CdtrAcct"), line.payee_account)
    _text(ET.SubElement(transfer, "RmtInf"), "Ustrd", purpose(line))


def _control_sums(parent: ET.Element, batch: Batch) -> None:
    _text(parent, "NbOfTxs", str(batch.line_count))
    _text(parent, "CtrlSum", yuan(batch.amount_fen))


def _account(account: ET.Element, number: str, currency: str | None = None) -> None:
    _text(ET.SubElement(ET.SubElement(account, "Id"), "Othr"), "Id", number)
    if currency:
        _text(account, "Ccy", currency)


def _bank(agent: ET.Element, name: str) -> None:
    _name(ET.SubElement(agent, "FinInstnId"), name)


def _name(party: ET.Element, name: str) -> None:
    # Control characters have no place in XML, not even escaped.
    printable = "".join(character if character.isprintable() else " " for character in name)
    _text(party, "Nm", printable[:NAME_LENGTH_MAX])


def _text(parent: ET.Element, tag: str, text: str) -> ET.Element:
    element = ET.SubElement(parent, tag)
    element.text = text
    return element


def _check(data: bytes, lines: Sequence[Line]) -> None:
    """Reads the message as the bank will, and compares payments, count and sum with the lines."""
    root = ET.fromstring(data)
    said = [
        (
            transfer.findtext("p:PmtId/p:EndToEndId", namespaces=_IN),
            transfer.findtext("p:CdtrAcct/p:Id/p:Othr/p:Id", namespaces=_IN),
            transfer.findtext("p:Amt/p:InstdAmt", namespaces=_IN),
        )
        for transfer in root.iterfind(".//p:CdtTrfTxInf", _IN)
    ]
    meant = [(end_to_end_id(line), line.payee_account, yuan(line.amount_fen)) for line in lines]
    counts = {element.text for element in root.iterfind(".//p:NbOfTxs", _IN)}
    sums = {element.text for element in root.iterfind(".//p:CtrlSum", _IN)}
    if said != meant or counts != {str(len(lines))} or sums != {yuan(sum(line.amount_fen for line in lines))}:
        raise Broken("the payment message does not say what the batch says")
