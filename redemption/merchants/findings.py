"""What can be missing or wrong in an application: stable codes, words in Chinese and English."""

from enum import StrEnum

import msgspec


class Code(StrEnum):
    """Stable codes of findings. A code is never used for something else."""

    FILE_UNREADABLE = "FILE_UNREADABLE"
    FIELD_UNKNOWN = "FIELD_UNKNOWN"
    FIELD_TWICE = "FIELD_TWICE"
    FIELD_MISSING = "FIELD_MISSING"
    FIELD_WRONG = "FIELD_WRONG"
    MERCHANT_ID_TAKEN = "MERCHANT_ID_TAKEN"
    CATEGORY_UNKNOWN = "CATEGORY_UNKNOWN"
    CREDIT_CODE_FORM = "CREDIT_CODE_FORM"
    CREDIT_CODE_CHECK_DIGIT = "CREDIT_CODE_CHECK_DIGIT"
    CREDIT_CODE_TAKEN = "CREDIT_CODE_TAKEN"
    NOT_IN_REGISTER = "NOT_IN_REGISTER"
    NAME_DIFFERS = "NAME_DIFFERS"
    BUSINESS_NOT_ACTIVE = "BUSINESS_NOT_ACTIVE"
    BUSINESS_EXPIRED = "BUSINESS_EXPIRED"
    ON_PUBLIC_LIST = "ON_PUBLIC_LIST"
    PAYEE_DIFFERS = "PAYEE_DIFFERS"
    PAPER_MISSING = "PAPER_MISSING"
    PAPER_KIND_UNKNOWN = "PAPER_KIND_UNKNOWN"
    PAPER_NUMBER_DIFFERS = "PAPER_NUMBER_DIFFERS"
    PAPER_HOLDER_DIFFERS = "PAPER_HOLDER_DIFFERS"
    PAPER_NOT_YET_VALID = "PAPER_NOT_YET_VALID"
    PAPER_EXPIRED = "PAPER_EXPIRED"
    PAPER_NUMBER_TWICE = "PAPER_NUMBER_TWICE"
    PAPER_FILE_TWICE = "PAPER_FILE_TWICE"
    PAPER_NUMBER_TAKEN = "PAPER_NUMBER_TAKEN"
    PAPER_FILE_TAKEN = "PAPER_FILE_TAKEN"
    STORE_MISSING = "STORE_MISSING"
    STORE_TWICE = "STORE_TWICE"
    TERMINAL_MISSING = "TERMINAL_MISSING"
    TERMINAL_TWICE = "TERMINAL_TWICE"


class Finding(msgspec.Struct, frozen=True):
    """One thing that is missing or wrong. `where` is the field, such as `papers[1].valid_until`."""

    code: Code
    where: str
    zh: str
    en: str


def finding(code: Code, where: str, **facts: object) -> Finding:
    """A finding in words. `facts` are what the words of this code name."""
    zh, en = WORDS[code]
    return Finding(code, where, zh.format(**facts), en.format(**facts))


WORDS = {
    Code.FILE_UNREADABLE: ("无法读取：{why}", "cannot be read: {why}"),
    Code.FIELD_UNKNOWN: ("没有这一项，请检查拼写", "there is no such field; check the spelling"),
    Code.FIELD_TWICE: ("此项填写了两次", "the field is there twice"),
    Code.FIELD_MISSING: ("未填写", "is missing"),
    Code.FIELD_WRONG: ("格式不正确，应为：{form_zh}", "must be {form}"),
    Code.MERCHANT_ID_TAKEN: ("商户号已被使用", "this merchant id is another's"),
    Code.CATEGORY_UNKNOWN: ("没有活动使用此行业；现有：{known}", "no campaign has this category; there are: {known}"),
    Code.CREDIT_CODE_FORM: (
        "统一社会信用代码应为 18 位，不含字母 I、O、S、V、Z，第 3 至 8 位为数字",
        "a unified social credit code has 18 characters, no I, O, S, V or Z, digits in places 3 to 8",
    ),
    Code.CREDIT_CODE_CHECK_DIGIT: (
        "统一社会信用代码校验码不符，请核对每一位",
        "the check digit does not fit; compare every character with the licence",
    ),
    Code.CREDIT_CODE_TAKEN: (
        "该统一社会信用代码已由商户 {other} 使用",
        "the business applied already, as merchant {other}",
    ),
    Code.NOT_IN_REGISTER: ("登记库中没有此统一社会信用代码", "the register has no business with this code"),
    Code.NAME_DIFFERS: ("与登记名称“{registered}”不一致", "the register says {registered}"),
    Code.BUSINESS_NOT_ACTIVE: ("登记状态为 {status}，不是存续", "the register says {status}, not ACTIVE"),
    Code.BUSINESS_EXPIRED: ("营业期限已于 {until} 届满", "by the register its term ended on {until}"),
    Code.ON_PUBLIC_LIST: (
        "在公示名单中，至 {until} 为止：{reason}",
        "is on the public list until {until}: {reason}",
    ),
    Code.PAYEE_DIFFERS: (
        "收款户名必须是企业本身，不接受个人或他人账户",
        "the account must be the business's own, not a person's or another's",
    ),
    Code.PAPER_MISSING: ("缺少{paper_zh}（{kind}）", "{paper} is missing ({kind})"),
    Code.PAPER_KIND_UNKNOWN: ("没有这种证照；可选：{known}", "there is no such kind of paper; there are: {known}"),
    Code.PAPER_NUMBER_DIFFERS: ("与统一社会信用代码不一致", "must be the business's credit code"),
    Code.PAPER_HOLDER_DIFFERS: ("持有人与商户名称不一致", "the holder is not the business that applies"),
    Code.PAPER_NOT_YET_VALID: ("自 {since} 起才有效", "is valid from {since} on only"),
    Code.PAPER_EXPIRED: ("已于 {until} 到期", "ran out on {until}"),
    Code.PAPER_NUMBER_TWICE: ("同一证号在本申请中出现两次（见 {other}）", "the same number as {other}"),
    Code.PAPER_FILE_TWICE: ("同一文件在本申请中出现两次（见 {other}）", "the same file as {other}"),
    Code.PAPER_NUMBER_TAKEN: ("该证号已由商户 {other} 提交", "merchant {other} showed a paper of this number"),
    Code.PAPER_FILE_TAKEN: ("该文件已由商户 {other} 提交", "merchant {other} showed this very file"),
    Code.STORE_MISSING: ("至少需要一家门店", "at least one store is needed"),
    Code.STORE_TWICE: ("门店号重复", "another store has this id"),
    Code.TERMINAL_MISSING: ("门店至少需要一台终端", "a store needs at least one terminal"),
    Code.TERMINAL_TWICE: ("终端号在商户内重复", "another terminal of the merchant has this id"),
}
