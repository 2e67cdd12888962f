"""What "correct" means, statement by statement. The ids are stable: scripts and tickets name them.

The groups follow docs/architecture.md: A1 vouchers are issued, A2 people, A3 vouchers are redeemed,
A4 the ledger, A5 the fund, A6 settlement, A7 the records themselves.
"""

from typing import NamedTuple

from stack.audit import evidence, hashes
from stack.audit.room import Check, rows


class Statement(NamedTuple):
    """One thing that must be true of the rows."""

    id: str
    en: str
    zh: str
    check: Check


STATEMENTS = (
    Statement(
        "A1a",
        "Every win recorded in the claim store is a voucher, and every voucher was won there",
        "领券存储中的每次中签都有一张券，每张券都确由中签而来",
        evidence.wins_are_vouchers,
    ),
    Statement(
        "A1b",
        "No stock gave out more vouchers than it has",
        "任何券批次的发放数都不超过其总量",
        rows("a1b_within_quantity", "examined_stocks"),
    ),
    Statement(
        "A1c",
        "The drain has read every shard's log to its end",
        "落库程序已读完每个分片的日志",
        evidence.drained,
    ),
    Statement(
        "A1d",
        "Every voucher's stock exists and belongs to the round in the voucher's number",
        "每张券的批次都存在，且属于券号中的轮次",
        rows("a1d_stock_and_round", "examined_vouchers"),
    ),
    Statement(
        "A1e",
        "Every voucher lies in the bucket of its partition",
        "每张券都在其分区所属的桶中",
        rows("a1e_bucket", "examined_vouchers"),
    ),
    Statement(
        "A1f",
        "Money moved from BUDGET to ISSUED is exactly that of the vouchers, bucket by bucket",
        "从预算转入已发放的金额与笔数，逐桶等于券的金额与张数",
        rows("a1f_issue_transfers", "examined_issues"),
    ),
    Statement(
        "A1g",
        "Where at least as many asked as there were vouchers, all vouchers were given out",
        "需求不少于总量的批次，券已全部发完",
        evidence.demand_served,
    ),
    Statement(
        "A1h",
        "No round gave out more money than its budget",
        "任何轮次的发放金额都不超过其预算",
        rows("a1h_round_budget", "examined_rounds"),
    ),
    Statement(
        "A1i",
        "Every voucher was claimed while its round was open",
        "每张券都在其轮次开放期间领取",
        rows("a1i_round_open", "examined_vouchers"),
    ),
    Statement(
        "A1j",
        "Every voucher lies in its person's partition and is found under its claim's number",
        "每张券都在其领取人的分区中，并可由领取请求号查到",
        hashes.claims_hash_right,
    ),
    Statement(
        "A1k",
        "Every ISSUE transfer bears the hash of the very vouchers it stands for",
        "每笔发放转账的哈希，都是它所代表的那些券的哈希",
        rows("a1k_chunk_hashes", "examined_chunks"),
    ),
    Statement(
        "A1l",
        "What the drain counts of each stock is what there is",
        "落库程序所记各批次的发放数，等于实有券数",
        rows("a1l_stock_counted", "examined_stocks"),
    ),
    Statement(
        "A1m",
        "Every pack was given whole",
        "每个券包都整包发放",
        rows("a1m_packs_whole", "examined_packs"),
    ),
    Statement(
        "A1n",
        "Every stock's quantity is what its edits made of it, one after the other",
        "各批次的总量，均由逐次调整依次得来",
        rows("a1n_edits_make_the_quantity", "examined_edits"),
    ),
    Statement(
        "A1o",
        "Every stock was approved by another person than the one who submitted it",
        "每个批次的审批人都不是提交人",
        rows("a1o_two_people_approve", "examined_approvals"),
    ),
    Statement(
        "A1p",
        "Every rollover moved the money of the vouchers and returns it names",
        "每次结转的金额，都等于其所列券与退回款的金额",
        rows("a1p_rollovers_add_up", "examined_rollovers"),
    ),
    Statement(
        "A2a",
        "Nobody has claimed more of a partner in a round than the round allows",
        "任何人在任一轮次、任一平台的领取数都不超过限额",
        rows("a2a_person_limit", "examined_vouchers"),
    ),
    Statement(
        "A2b",
        "No claim number won twice in a round, unless for two people and the clash is on record",
        "同一轮次中没有领取请求号中签两次；若分属两人，则冲突已登记",
        rows("a2b_request_once", "examined_vouchers"),
    ),
    Statement(
        "A2c",
        "Nobody is over a limit of a round over all partners, of a group, or of a campaign's face value",
        "任何人都不超过轮次的跨平台限额、分组限额或活动的面值上限",
        rows("a2c_wider_limits", "examined_limited"),
    ),
    Statement(
        "A2d",
        "Nobody has redeemed more than the caps of a campaign allow",
        "任何人的核销额都不超过活动的核销上限",
        rows("a2d_redeem_caps", "examined_capped"),
    ),
    Statement(
        "A3a",
        "Every voucher has at most one live redemption, and its attempts are numbered without gaps",
        "每张券至多有一次有效核销，使用序号连续无缺",
        rows("a3a_one_live_use", "examined_redemptions"),
    ),
    Statement(
        "A3b",
        "Every redemption is of a voucher that was issued, and of its stock",
        "每次核销的券都确已发放，且批次相符",
        rows("a3b_voucher_known", "examined_redemptions"),
    ),
    Statement(
        "A3c",
        "Every redemption fell inside the voucher's validity",
        "每次核销都在券的有效期内",
        rows("a3c_inside_validity", "examined_redemptions"),
    ),
    Statement(
        "A3d",
        "Every redeemed bill reached the minimum",
        "每次核销的账单都达到最低消费",
        rows("a3d_minimum_spent", "examined_redemptions"),
    ),
    Statement(
        "A3e",
        "Every redemption pays the merchant what the stock says",
        "每次核销补贴商户的金额都与批次规定一致",
        rows("a3e_subsidy", "examined_redemptions"),
    ),
    Statement(
        "A3f",
        "Every redemption was at a merchant of the right category, at its own terminal",
        "每次核销都在类别相符的商户，且终端属于该商户",
        rows("a3f_merchant_fits", "examined_redemptions"),
    ),
    Statement(
        "A3g",
        "No payment was made with two city vouchers",
        "没有一笔付款用了两张城市券",
        rows("a3g_one_voucher_an_order", "examined_redemptions"),
    ),
    Statement(
        "A3h",
        "Every refund turns around the redemption it names, by the stock's policy",
        "每次退款都如数冲回其所指的核销，并符合批次的退款政策",
        rows("a3h_refund_mirrors", "examined_refunds"),
    ),
    Statement(
        "A3i",
        "No merchant's request number redeemed or refunded twice",
        "任何商户的请求号都没有核销或退款两次",
        rows("a3i_numbers_once", "examined_tills"),
    ),
    Statement(
        "A3j",
        "Every number a till gave is registered with what it was sent with",
        "收银端给出的每个号码都已登记，且与所发内容一致",
        hashes.numbers_registered,
    ),
    Statement(
        "A3k",
        "Every hold ended at most once, in time, and those confirmed are redemptions of the same money",
        "每次锁券至多结束一次且未逾时，已确认的即为同额核销",
        rows("a3k_holds_end_once", "examined_till_holds"),
    ),
    Statement(
        "A4a",
        "Every row of money leaves one account and enters another: debits equal credits",
        "每笔资金都从一个账户转入另一个账户：借贷相等",
        rows("a4a_rows_in_books", "examined_postings"),
    ),
    Statement(
        "A4b",
        "Every balance is the sum of all postings",
        "每个余额都等于全部分录之和",
        rows("a4b_balances", "examined_postings"),
    ),
    Statement(
        "A4c",
        "Every account's checkpoint is the sum of its transfers and closed days",
        "每个账户的检查点都等于其转账与已结日的合计",
        rows("a4c_checkpoint", "examined_accounts"),
    ),
    Statement(
        "A4d",
        "ISSUED is the funded money of the live vouchers, bucket by bucket",
        "已发放余额逐桶等于有效券的资助金额",
        rows("a4d_issued_is_live", "examined_vouchers"),
    ),
    Statement(
        "A4e",
        "Every expiry moved exactly the vouchers that were not used",
        "每次过期转账恰好是未使用的那些券",
        rows("a4e_expired_unused", "examined_expiries"),
    ),
    Statement(
        "A4f",
        "Every closed day of a merchant is the sum of its rows; nothing was booked after the close",
        "商户每个已结日都等于其明细之和，结账后没有再入账",
        rows("a4f_merchant_days", "examined_merchant_days"),
    ),
    Statement(
        "A4g",
        "Every redemption and refund is booked on its day, or on the first day open after it",
        "每次核销与退款都记在当日，当日已结则记在其后首个未结日",
        rows("a4g_booked_day", "examined_tills"),
    ),
    Statement(
        "A5a",
        "CITY_FUND = BUDGET + ISSUED + PAYABLE + SETTLING + PAID + RETURNED + SUSPENSE",
        "城市资金 = 预算 + 已发放 + 应付 + 结算中 + 已付 + 退回 + 待查",
        rows("a5a_fund_identity", "examined_campaigns"),
    ),
    Statement(
        "A5b",
        "No account is below zero, and no merchant owes the city more than agreed",
        "没有账户为负，没有商户欠城市的钱超过约定",
        rows("a5b_not_below_zero", "examined_accounts"),
    ),
    Statement(
        "A5c",
        "No campaign was funded with more than the city decided",
        "任何活动注入的资金都不超过城市的决定",
        rows("a5c_fund_as_decided", "examined_campaigns"),
    ),
    Statement(
        "A6a",
        "Every settlement line is what its merchant's rows left owing, and the sum of its shares",
        "每条结算明细都等于商户明细所余应付，也等于其各份之和",
        rows("a6a_lines_are_owed", "examined_lines"),
    ),
    Statement(
        "A6b",
        "Money entered settlement for approved lines that nothing holds back, and for no other",
        "进入结算的资金恰为已批准且未被扣留的明细",
        rows("a6b_holds_are_approved", "examined_holds"),
    ),
    Statement(
        "A6c",
        "Every approved batch was proposed and approved by two different people",
        "每个已批准的批次都由两个不同的人提出和批准",
        rows("a6c_two_people", "examined_decisions"),
    ),
    Statement(
        "A6d",
        "Money was posted or sent back as the bank answered, once a line",
        "资金按银行答复过账或退回，每条明细只一次",
        rows("a6d_answers_are_booked", "examined_settled"),
    ),
    Statement(
        "A6e",
        "Every answer is what an imported file of the bank says about a line we sent it",
        "每个答复都出自已导入的银行文件，且对应我们发出的明细",
        rows("a6e_answers_are_the_banks", "examined_answers"),
    ),
    Statement(
        "A6f",
        "No merchant on hold was paid, and every line kept out names the merchant's own hold",
        "没有向被扣留的商户付款；每条被扣留的明细都指明该商户自己的扣留",
        rows("a6f_holds_respected", "examined_lines"),
    ),
    Statement(
        "A6g",
        "Unused money left RETURNED only as somebody ordered, once an order",
        "未用资金只按指令从退回账户转出，每个指令一次",
        rows("a6g_returns_are_ordered", "examined_returns"),
    ),
    Statement(
        "A6h",
        "Every file of a partner or the bank has the rows and the money its trailer says",
        "平台与银行的每个文件，行数与金额都与其尾行所记一致",
        rows("a6h_files_are_whole", "examined_files"),
    ),
    Statement(
        "A7a",
        "PostgreSQL checks every page it reads, and found none changed on disk",
        "数据库校验其读取的每一页，未发现磁盘上被改动的页",
        rows("a7a_checksums", "examined_pages"),
    ),
    Statement(
        "A7b",
        "On every table of money, and on every partition of it, no row can be changed or removed",
        "每张资金表及其各分区上，任何行都不能更改或删除",
        evidence.append_only,
    ),
    Statement(
        "A7c",
        "No role of a service may change money, or write what only the database's functions write",
        "任何服务角色都无权更改资金，也无权写入只由数据库函数写入的表",
        evidence.privileges,
    ),
)
